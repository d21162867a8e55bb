"""Makes torch.distributed.init_process_group understand psum's names of ranks and sizes."""

import functools
import importlib
import os
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch.distributed as dist
from psum.torch.rendezvous.names import is_elastic, missing_from_torch

#: The way of init_process_group that reads the environment, its default.
_SCHEME: Final = "env"


def install() -> None:
    """Completes torch's variables from psum's whenever init_process_group reads the environment.

    In an elastic job with the backend psum, it then also gives each process a store of its own, because processes come
    and go: no process may have a store that the others need.

    Not when psum.torch is imported: a program may set its variables between that and init_process_group, as one does
    that starts its processes itself. A second call changes nothing.
    """
    # The package has a function of the same name.
    module = importlib.import_module("torch.distributed.rendezvous")
    handlers: dict[str, Callable[..., Any]] = module._rendezvous_handlers
    if not hasattr(handlers[_SCHEME], "__wrapped__"):
        handlers[_SCHEME] = _completing(handlers[_SCHEME])


def _completing(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    @functools.wraps(handler)
    def complete(url: str, *arguments: Any, **named: Any) -> Iterator[Any]:
        given = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))
        os.environ.update(missing_from_torch(os.environ, given))
        if is_elastic(os.environ) and _is_for_psum():
            return iter([_alone(given)])
        return handler(url, *arguments, **named)

    return complete


def _alone(given: Mapping[str, str]) -> tuple[Any, int, int]:
    """What a rendezvous gives: a store that only this process has, its rank, and the number of ranks."""
    # torch gives -1 for what the program has not said.
    told = {name: given[name] for name in given if given[name] != "-1"}
    rank, size = (int(told.get(name) or os.environ[name.upper()]) for name in ("rank", "world_size"))
    return dist.HashStore(), rank, size


def _is_for_psum() -> bool:
    """Whether the rendezvous that is under way is that of the backend psum, and not of another one of torch's."""
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_code.co_name == "init_process_group" and "backend" in frame.f_locals:
            return "psum" in str(frame.f_locals["backend"]).lower()
    return True
