"""Makes torch.distributed.init_process_group understand psum's names of ranks and sizes."""

import functools
import importlib
import os
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, Final

from psum.torch.rendezvous.names import missing_from_torch

#: The way of init_process_group that reads the environment, its default.
_SCHEME: Final = "env"


def install() -> None:
    """Completes torch's variables from psum's whenever init_process_group reads the environment.

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
        return handler(url, *arguments, **named)

    return complete
