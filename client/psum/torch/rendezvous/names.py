"""Ranks and sizes in the environment, in torch's names and in psum's."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Final

from psum.client import ConfigurationError, Settings


@dataclasses.dataclass(frozen=True, slots=True)
class _Value:
    """One value that both sides have names for.

    Attributes:
        torch: torch's variable.
        psum: psum's variables. The first one that is set counts.
        field: The name in psum's settings.
    """

    torch: str
    psum: tuple[str, ...]
    field: str

    def explicit(self, environ: Mapping[str, str]) -> str:
        """The first of psum's variables that is set; empty if none is."""
        return next((name for name in self.psum if environ.get(name)), "")


_RANK: Final = _Value("RANK", ("PSUM_RANK", "BYTEPS_GLOBAL_RANK"), "rank")
_SIZE: Final = _Value("WORLD_SIZE", ("PSUM_NUM_WORKERS",), "num_workers")
_LOCAL_RANK: Final = _Value("LOCAL_RANK", ("PSUM_LOCAL_RANK", "BYTEPS_LOCAL_RANK"), "local_rank")
_LOCAL_SIZE: Final = _Value("LOCAL_WORLD_SIZE", ("PSUM_LOCAL_SIZE", "BYTEPS_LOCAL_SIZE"), "local_size")

#: Stands for aggregators where only ranks are read: psum's settings ask several workers for some.
_ANY: Final = ("127.0.0.1:1",)

#: Variables from which psum takes the number of workers, and the most workers that a job may have.
_SIZES: Final = ("PSUM_NUM_WORKERS", "DMLC_NUM_WORKER")
_MOST: Final = 4096

#: How to start a script so that it has both.
_START: Final = "start the script with torchrun or `psum launch`, which set both"


def missing_from_torch(environ: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Returns torch's variables that are not set, with values from psum's.

    Args:
        environ: The environment.
        given: What the program has given to init_process_group: 'rank' and 'world_size'.

    Raises:
        ConfigurationError: One of rank and size is known and the other is not, or psum's names cannot be read.
    """
    has_rank = bool(environ.get("RANK") or "rank" in given)
    has_size = bool(environ.get("WORLD_SIZE") or "world_size" in given)
    derived: dict[str, str] = {}
    if not (has_rank and has_size):
        sized = any(environ.get(name) for name in _SIZES)
        # A rank without a size would be an error of psum's settings, which names only one side.
        settings = Settings.from_environment(environ, aggregators=_ANY, num_workers=None if sized else _MOST)
        for value in (_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE):
            if value.field in settings.sources and (sized or value is not _SIZE):
                derived[value.torch] = str(getattr(settings, value.field))
    for value in (_LOCAL_RANK, _LOCAL_SIZE):
        if name := value.explicit(environ):
            derived.setdefault(value.torch, environ[name])
    added = {name: value for name, value in derived.items() if not environ.get(name)}
    mistakes = list(_incomplete(has_rank or "RANK" in added, has_size or "WORLD_SIZE" in added, environ))
    if mistakes:
        raise ConfigurationError(mistakes)
    return added


def _incomplete(has_rank: bool, has_size: bool, environ: Mapping[str, str]) -> Iterator[str]:
    if has_size and not has_rank:
        known = environ.get("WORLD_SIZE") or environ.get("PSUM_NUM_WORKERS") or "given"
        yield (
            f"the number of processes is known (WORLD_SIZE or PSUM_NUM_WORKERS: {known}), but not this one's rank:"
            f" neither RANK nor PSUM_RANK is set; {_START}"
        )
    if has_rank and not has_size:
        known = environ.get("RANK") or environ.get("PSUM_RANK") or "given"
        yield (
            f"this process's rank is known (RANK or PSUM_RANK: {known}), but not the number of processes: neither"
            f" WORLD_SIZE nor PSUM_NUM_WORKERS is set; {_START}"
        )


def contradictions(environ: Mapping[str, str], rank: int, size: int) -> Iterator[str]:
    """Yields a sentence for each of psum's variables that differs from what torch says.

    Args:
        environ: The environment.
        rank: This process's rank in torch's default group.
        size: That group's size.
    """
    for value, meant in ((_RANK, rank), (_SIZE, size)):
        # What Kubernetes and ps-lite count is not torch's rank: there may be several processes for each of theirs.
        name = value.explicit(environ)
        if name and environ[name] != str(meant):
            torch = (
                value.torch if environ.get(value.torch) == str(meant) else f"init_process_group's {value.torch.lower()}"
            )
            yield _contradiction(name, environ[name], torch, str(meant))
    for value in (_LOCAL_RANK, _LOCAL_SIZE):
        name = value.explicit(environ)
        if name and environ.get(value.torch) and environ[name] != environ[value.torch]:
            yield _contradiction(name, environ[name], value.torch, environ[value.torch])


def _contradiction(name: str, value: str, other: str, others_value: str) -> str:
    return f"{name}={value} and {other}={others_value} mean the same and differ; unset {name}, or make them equal"


def local_place(environ: Mapping[str, str], hosts: tuple[int, ...], rank: int) -> tuple[int, int]:
    """The rank of a process among those on its host, and their number.

    Args:
        environ: The environment. What it says counts: with a relay, it may group processes in another way.
        hosts: The number of each rank's host.
        rank: The process's rank.
    """
    mine = hosts[rank]
    counted = (hosts[:rank].count(mine), hosts.count(mine))
    found = []
    for value, otherwise in zip((_LOCAL_RANK, _LOCAL_SIZE), counted, strict=True):
        text = environ.get(value.explicit(environ) or value.torch) or ""
        found.append(int(text) if text.isdecimal() else otherwise)
    return found[0], found[1]


def restarts(environ: Mapping[str, str]) -> int:
    """How often torchrun has started the processes of this job again."""
    text = environ.get("TORCHELASTIC_RESTART_COUNT") or "0"
    return int(text) if text.isdecimal() else 0


def is_elastic(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for an elastic job, rightly or not: psum's settings tell what is wrong with it."""
    return environ.get("PSUM_ELASTIC", "").strip().lower() not in ("", "off")


def node(environ: Mapping[str, str]) -> str:
    """The number of torchrun's agent that started this process; empty without torchrun.

    Agents on one host count as hosts of their own: each of them ends its processes without regard to the others'.
    """
    return environ.get("GROUP_RANK") or ""
