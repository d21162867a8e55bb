"""File descriptors: how many this process may have, and what to say where one is lacking."""

import contextlib
import errno
import os
import resource
import sys
from typing import Final

#: What sets a limit, in the places where aggregators and workers are started.
HOW_TO_RAISE: Final = "raise it with ulimit -n, LimitNOFILE= in a systemd unit, or --ulimit nofile= of a container"

_OURS: Final = "/proc/self/fd"


def raise_descriptor_limit() -> int:
    """Raises this process's soft limit to the hard one, which any process may do; returns the limit that holds then.

    For processes of psum's own. The limit of a program that psum is only a library of is left alone: what uses select()
    fails with descriptors from 1024 on.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Where a sandbox does not allow it, the soft one does too.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return descriptor_limit()


def descriptor_limit() -> int:
    """How many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def open_descriptors() -> int:
    """How many descriptors this process has, all of them where that cannot be counted for lack of one."""
    try:
        # Linux tells the number from 6.2 on, without one more descriptor and at no cost.
        return os.stat(_OURS).st_size or len(os.listdir(_OURS)) - 1
    except OSError:
        return descriptor_limit()


def lacks_descriptors(wanted: int) -> str | None:
    """Says so where this process cannot open so many more files and connections: a sentence, else None."""
    if descriptor_limit() - open_descriptors() < wanted:
        # Not found out by taking them all: meanwhile another thread may need one, and gRPC ends the process then.
        return lack_of_descriptors(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    taken: list[int] = []
    try:
        for _ in range(wanted):
            taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return lack_of_descriptors(error)
    finally:
        for descriptor in taken:
            os.close(descriptor)
    return None


def lack_of_descriptors(error: BaseException) -> str | None:
    """Says so where an error means that there are no more file descriptors: a sentence, else None."""
    match getattr(error, "errno", None):
        case errno.EMFILE:
            return (
                f"process {os.getpid()} may have no more than {descriptor_limit()} files and connections open (its"
                f" limit of file descriptors); {HOW_TO_RAISE}"
            )
        case errno.ENFILE:
            return "this machine may have no more files and connections open; raise its fs.file-max (sysctl)"
    return None
