"""How much shared memory psum takes: the part that is left to other programs stays free."""

import fcntl
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from psum.planes import DEFAULT_DIRECTORY, Limit, Segment, SegmentError
from psum.planes import space_limit as room

_MIB = 1 << 20

_FileSystem = Callable[[int], str]


@pytest.fixture
def file_system(monkeypatch: pytest.MonkeyPatch) -> Iterator[_FileSystem]:
    """Makes a directory look like a file system of this many bytes that only the directory's files fill."""
    with tempfile.TemporaryDirectory(dir=DEFAULT_DIRECTORY) as directory:

        def make(total: int) -> str:
            def statvfs(path: str) -> SimpleNamespace:
                assert path == directory
                used = 512 * sum(file.stat().st_blocks for file in pathlib.Path(directory).iterdir())
                return SimpleNamespace(f_frsize=512, f_blocks=total // 512, f_bavail=(total - used) // 512)

            monkeypatch.setattr(os, "statvfs", statvfs)
            return directory

        yield make


@pytest.mark.parametrize(
    ("text", "of_64_mib"),
    [
        ("50%", 32 * _MIB),
        ("0%", 0),
        ("100 %", 64 * _MIB),
        ("12.5%", 8 * _MIB),
        ("10MiB", 10 * _MIB),
        ("1GiB", 64 * _MIB),
    ],
)
def test_a_limit_is_a_part_or_a_size(text: str, of_64_mib: int) -> None:
    """The limit is never more than the file system's size."""
    assert Limit.parse(text).of(64 * _MIB) == of_64_mib
    assert Limit.parse(str(Limit.parse(text))) == Limit.parse(text)


@pytest.mark.parametrize("text", ["", "half", "101%", "-1%", "%", "5 apples"])
def test_anything_else_is_refused_with_what_was_expected(text: str) -> None:
    """The error names both forms."""
    with pytest.raises(ValueError, match=r"from 0% to 100%, such as 50%, or a size such as 2GiB"):
        Limit.parse(text)


def test_what_is_left_to_others_is_not_taken(file_system: _FileSystem) -> None:
    """The limit holds to the byte, by default half, and counts all programs; the text says what to set."""
    directory = file_system(64 * _MIB)
    segment = Segment.create(directory, 64 * _MIB)
    segment.reserve(0, 20 * _MIB)
    (pathlib.Path(directory) / "of another").write_bytes(bytes(4 * _MIB))
    with pytest.raises(
        SegmentError,
        match=r"8\.0 MiB more do not fit .* 40\.0 MiB of its 64\.0 MiB are free.*leaves 32\.0 MiB.*LIMIT=50%",
    ):
        segment.reserve(20 * _MIB, 8 * _MIB + 4096)
    segment.reserve(20 * _MIB, 8 * _MIB)
    segment.close()


def test_a_file_system_without_a_size_has_no_limit(file_system: _FileSystem) -> None:
    """A tmpfs that was mounted with size=0 cannot become full."""
    segment = Segment.create(file_system(0), 8192, Limit(bytes=4096))
    segment.reserve(0, 8192)
    segment.close()


def test_many_that_reserve_at_once_take_no_more_together(
    file_system: _FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when workers start together: as many as fit get memory, the others get nothing, and the rest stays free."""
    # However busy the machine is, each has its turn.
    monkeypatch.setattr(room, "_TURN_SECONDS", 30.0)
    directory = file_system(64 * _MIB)
    start = threading.Barrier(8)
    segments = [Segment.create(directory, 10 * _MIB) for _ in range(8)]

    def reserve(segment: Segment) -> bool:
        start.wait(10)
        try:
            segment.reserve(0, segment.size)
        except SegmentError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(reserve, segments)) == 3
    assert os.statvfs(directory).f_bavail * 512 == 34 * _MIB
    for segment in segments:
        segment.close()


def test_the_limit_holds_though_nobody_waits_for_anybody(
    file_system: _FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine, one may hold its turn for longer than the others wait. If two have found the same memory free,
    at most one of them keeps it."""
    directory = file_system(48 * _MIB)
    segments = [Segment.create(directory, 16 * _MIB) for _ in range(2)]
    both_checked, both_taken = threading.Barrier(2), threading.Barrier(2)
    fallocate = os.posix_fallocate

    def together(descriptor: int, offset: int, size: int) -> None:
        both_checked.wait(10)
        fallocate(descriptor, offset, size)
        both_taken.wait(10)

    def reserve(segment: Segment) -> str:
        try:
            segment.reserve(0, segment.size)
        except SegmentError as error:
            return str(error)
        return ""

    monkeypatch.setattr(room, "_TURN_SECONDS", 0.0)
    monkeypatch.setattr(os, "posix_fallocate", together)
    descriptor = os.open(directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with ThreadPoolExecutor(2) as pool:
        errors = list(filter(None, pool.map(reserve, segments)))
    os.close(descriptor)
    assert errors
    assert all("other processes reserved memory there at the same time" in error for error in errors), errors
    assert os.statvfs(directory).f_bavail * 512 == (16 + 16 * len(errors)) * _MIB
    for segment in segments:
        segment.close()


def test_what_cannot_be_had_whole_is_given_back(file_system: _FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large memory is reserved in pieces, so that nobody waits long. If others were faster, nothing is kept."""
    directory = file_system(128 * _MIB)
    segment = Segment.create(directory, 64 * _MIB)
    segment.reserve(0, 4 * _MIB)
    fallocate = os.posix_fallocate

    def and_another(descriptor: int, offset: int, size: int) -> None:
        fallocate(descriptor, offset, size)
        (pathlib.Path(directory) / "of another").write_bytes(bytes(20 * _MIB))

    monkeypatch.setattr(os, "posix_fallocate", and_another)
    with pytest.raises(SegmentError, match=r"34\.0 MiB more do not fit"):
        segment.reserve(4 * _MIB, 50 * _MIB)
    assert (pathlib.Path(directory) / segment.name).stat().st_blocks * 512 == 4 * _MIB
    segment.close()


def test_a_directory_that_stays_locked_holds_up_nobody_for_long(file_system: _FileSystem) -> None:
    """Any process can lock it, such as one that was stopped during its turn. The others go on without the lock."""
    directory = file_system(64 * _MIB)
    segment = Segment.create(directory, 4096)
    descriptor = os.open(directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    began = time.monotonic()
    segment.reserve(0, 4096)
    assert room._TURN_SECONDS <= time.monotonic() - began < 5
    os.close(descriptor)
    segment.close()


def test_a_directory_that_cannot_be_locked_is_used_all_the_same(
    file_system: _FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file system may have no locks, or this user may not read it."""
    segment = Segment.create(file_system(64 * _MIB), 40 * _MIB)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        segment.reserve(0, 4096)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        segment.reserve(4096, 4096)
        with pytest.raises(SegmentError, match="do not fit"):
            segment.reserve(0, 40 * _MIB)
    segment.close()
