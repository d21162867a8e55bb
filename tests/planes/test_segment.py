"""Shared memory: who may open it, what happens without it, and that nothing is left behind."""

import errno
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from psum.planes import DEFAULT_DIRECTORY, Segment, SegmentError, sweep
from tests.processes import running
from tests.shared_memory import emptied_directory


def test_what_one_process_writes_another_reads() -> None:
    """The second process opens it by name, and sees later writes too."""
    mine = Segment.create(DEFAULT_DIRECTORY, 1 << 20)
    mine.reserve(0, mine.size)
    other = Segment.open(DEFAULT_DIRECTORY, mine.name)
    mine.view[5:8] = b"sum"
    assert other.size == mine.size
    assert bytes(other.view[5:8]) == b"sum"
    other.close()
    mine.close()
    with pytest.raises(SegmentError, match="No such file"):
        Segment.open(DEFAULT_DIRECTORY, mine.name)


def test_a_view_outlives_the_segment() -> None:
    """A sum that is kept stays unchanged after both sides have closed the memory."""
    mine = Segment.create(DEFAULT_DIRECTORY, 4096)
    mine.view[:3] = b"sum"
    kept = Segment.open(DEFAULT_DIRECTORY, mine.name).view[:3]
    mine.close()
    assert bytes(kept) == b"sum"


def test_memory_is_taken_only_where_it_was_reserved() -> None:
    """A segment may be much larger than the machine's memory."""
    segment = Segment.create(DEFAULT_DIRECTORY, 1 << 38)
    segment.reserve(1 << 30, 8192)
    path = pathlib.Path(DEFAULT_DIRECTORY) / segment.name
    assert path.stat().st_size == 1 << 38
    assert path.stat().st_blocks * 512 == 8192
    segment.close()


def test_a_directory_that_is_full_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what was wanted, where, and what there is."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    segment = Segment.create(DEFAULT_DIRECTORY, 4096)
    with pytest.raises(SegmentError, match=r"4096 bytes .* /dev/shm \(No space left on device\); \d+ bytes are free"):
        segment.reserve(0, 4096)
    segment.close()


def test_where_there_is_no_such_directory_there_is_no_shared_memory() -> None:
    """As on a machine without shared memory."""
    with pytest.raises(SegmentError, match="no shared memory in /nowhere"):
        Segment.create("/nowhere", 4096)
    assert sweep("/nowhere") == []


@pytest.mark.parametrize("name", ["", "../etc/passwd", "psum-1", f"psum-{'0' * 32}"])
def test_only_segments_can_be_opened(name: str) -> None:
    """A worker cannot make an aggregator open another file."""
    with pytest.raises(SegmentError):
        Segment.open(DEFAULT_DIRECTORY, name)


@pytest.mark.parametrize("kind", ["readable by others", "a link", "a directory"])
def test_what_does_not_belong_to_this_user_alone_is_not_opened(kind: str, tmp_path: pathlib.Path) -> None:
    """Even if the file has the name of a segment."""
    path = tmp_path / f"psum-{'a' * 32}"
    match kind:
        case "readable by others":
            path.write_bytes(b"x" * 4096)
            path.chmod(0o644)
        case "a link":
            (tmp_path / "file").write_bytes(b"x" * 4096)
            path.symlink_to(tmp_path / "file")
        case "a directory":
            path.mkdir()
    with pytest.raises(SegmentError):
        Segment.open(str(tmp_path), path.name)


def test_what_a_killed_owner_left_is_swept_and_nothing_else() -> None:
    """A segment whose owner lives is never removed."""
    program = (
        "from psum.planes import Segment; import sys, time\n"
        "segment = Segment.create(sys.argv[1], 4096); print(segment.name, flush=True); time.sleep(60)"
    )
    # A directory of its own: in another one, any program that uses psum may sweep first.
    with (
        emptied_directory() as directory,
        running([sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        mine = Segment.create(str(directory), 4096)
        assert sweep(str(directory)) == []
        Segment.open(str(directory), name).close()
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert sweep(str(directory)) == [name]
        with pytest.raises(SegmentError):
            Segment.open(str(directory), name)
        Segment.open(str(directory), mine.name).close()
        mine.close()
