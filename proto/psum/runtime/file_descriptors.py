"""File descriptors: this process's limit and number, and the error when there are too few."""

import contextlib
import errno
import os
import resource
import sys
from typing import Final

#: How to raise the limit where aggregators and workers are started.
HOW_TO_RAISE: Final = "raise it with ulimit -n, LimitNOFILE= in a systemd unit, or --ulimit nofile= of a container"

_OURS: Final = "/proc/self/fd"


def raise_descriptor_limit() -> int:
    """Raise this process's soft limit to the hard limit, which any process may do, and return the new limit.

    Use this in psum's own processes only. In a program that uses psum as a library, other code may use select(), which
    fails with descriptors above 1023.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # If a sandbox forbids it, go on with the soft limit.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return descriptor_limit()


def descriptor_limit() -> int:
    """Return the number of descriptors that this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def open_descriptors() -> int:
    """Return the number of open descriptors. If counting fails for lack of a descriptor, return the limit."""
    try:
        # Linux 6.2 and later give the number without another descriptor and at no cost.
        return os.stat(_OURS).st_size or len(os.listdir(_OURS)) - 1
    except OSError:
        return descriptor_limit()


def lacks_descriptors(wanted: int) -> str | None:
    """Return an error sentence if this process cannot open so many more descriptors, otherwise None."""
    if descriptor_limit() - open_descriptors() < wanted:
        # Do not find out by taking all: if another thread needs one meanwhile, gRPC ends the process.
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
    """Return a sentence if an error means that there are no more file descriptors, otherwise None."""
    match getattr(error, "errno", None):
        case errno.EMFILE:
            return (
                f"process {os.getpid()} may have no more than {descriptor_limit()} files and connections open (its"
                f" limit of file descriptors); {HOW_TO_RAISE}"
            )
        case errno.ENFILE:
            return "this machine has reached its limit of open files and connections; raise fs.file-max (sysctl)"
    return None
