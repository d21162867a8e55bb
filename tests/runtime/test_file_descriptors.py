"""Counting file descriptors, and clear errors when there are too few."""

import errno
import os
import subprocess
import sys

import pytest

from psum.planes import DEFAULT_DIRECTORY, Segment, SegmentError
from psum.runtime import (
    descriptor_limit,
    lack_of_descriptors,
    lacks_descriptors,
    open_descriptors,
)
from tests.processes import with_descriptors
from tests.scarcity import descriptors_left


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    """Any process may do this. The new limit is returned."""
    program = (
        "import resource; from psum.runtime import descriptor_limit, raise_descriptor_limit\n"
        "print(descriptor_limit(), raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        with_descriptors(60, [sys.executable, "-c", program], hard=90),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["60", "90", "90", "90"]


def test_those_that_are_open_are_counted() -> None:
    """Each opened descriptor counts. If none is left for counting, the limit is returned."""
    before = open_descriptors()
    assert 3 <= before == len(os.listdir("/proc/self/fd")) - 1
    with open(os.devnull), open(os.devnull):
        assert open_descriptors() == before + 2
    with descriptors_left(0):
        assert open_descriptors() >= descriptor_limit() - 1


def test_a_lack_is_told_before_it_is_met() -> None:
    """The sentence has the limit, the process and advice. The check keeps no descriptor."""
    before = open_descriptors()
    with descriptors_left(3):
        assert lacks_descriptors(3) is None
        said = lacks_descriptors(4)
        assert said == (
            f"process {os.getpid()} may have no more than {descriptor_limit()} files and connections open (its limit of"
            " file descriptors); raise it with ulimit -n, LimitNOFILE= in a systemd unit, or --ulimit nofile= of a"
            " container"
        )
        assert lacks_descriptors(3) is None
    assert open_descriptors() == before


def test_whose_limit_it_is_depends_on_the_error() -> None:
    """The limit may be that of the process or of the machine. Other errors are not about limits."""
    assert "its limit of file descriptors" in str(lack_of_descriptors(OSError(errno.EMFILE, "")))
    assert "fs.file-max" in str(lack_of_descriptors(OSError(errno.ENFILE, "")))
    assert lack_of_descriptors(OSError(errno.ENOENT, "")) is None
    assert lack_of_descriptors(ValueError()) is None


@pytest.mark.parametrize("left", [0, 1, 2])
def test_shared_memory_that_lacks_a_descriptor_says_so(left: int) -> None:
    """This holds at each step of making, opening and reserving it. No descriptor is leaked."""
    mine = Segment.create(DEFAULT_DIRECTORY, 4096)
    with descriptors_left(left):
        before = open_descriptors()
        with pytest.raises(SegmentError, match="limit of file descriptors") as caught:
            Segment.create(DEFAULT_DIRECTORY, 4096)
        assert caught.value.scarce
        if left < 2:
            with pytest.raises(SegmentError, match="limit of file descriptors"):
                Segment.open(DEFAULT_DIRECTORY, mine.name)
        if left < 1:
            with pytest.raises(
                SegmentError, match=r"4096 bytes of shared memory could not .* limit of file descriptors"
            ):
                mine.reserve(0, 4096)
        assert open_descriptors() == before
    mine.close()
