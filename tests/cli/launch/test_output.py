"""What `psum launch` shows of its workers' output."""

import os
import pathlib
import pty
import re
import signal
import sys
from typing import Any

from tests.cli.launch.workers import Launch


def test_lines_are_prefixed_with_the_rank_of_who_wrote_them(launch: Launch) -> None:
    """Standard output and standard error stay apart. A last line without an end is shown too."""
    done = launch("--workers", "2", shell="echo out $PSUM_RANK; echo err $PSUM_RANK >&2; printf 'no end'")
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == ["[0] no end", "[0] out 0", "[1] no end", "[1] out 1"]
    assert {"[0] err 0", "[1] err 1"} <= set(done.stderr.splitlines())


def test_progress_that_is_rewritten_is_left_out_where_there_is_no_terminal(launch: Launch) -> None:
    """Only its last state is shown."""
    done = launch("--workers", "1", shell=r"printf '1 %%\r2 %%\r'; printf '3 %%\r'; echo done; printf '4\r5\r'")
    assert done.stdout == "[0] done\n[0] 5\n"


def test_a_terminal_shows_progress_in_colour_as_it_goes(psum: Any, tmp_path: pathlib.Path) -> None:
    """Each rank has a row at the bottom, which disappears in the end."""
    reading, writing = pty.openpty()
    states = ("step 1", "step 2")
    # Each waits until the test has seen what it wrote last: of what comes together, only the last state is shown.
    wait = "".join(f"printf '{state}\\r'; until [ -e '{tmp_path}/{state}' ]; do sleep 0.05; done; " for state in states)
    script = wait + r"printf '      \r'; echo finished"
    process = psum.start_writing_to(writing, "launch", "--workers", "2", "--", "sh", "-c", script, TERM="xterm")
    os.close(writing)
    shown = b""
    try:
        while data := os.read(reading, 1 << 16):
            shown += data
            for state in states:
                if all(re.search(rf"\x1b\[\d+m\[{rank}\] \x1b\[0m{state}".encode(), shown) for rank in "01"):
                    (tmp_path / state).touch()
    except OSError:
        # A pseudo-terminal reports this error when the other side was closed.
        pass
    finally:
        os.close(reading)
    assert process.wait() == 0
    text = shown.decode()
    assert all((tmp_path / state).exists() for state in states)
    assert "step" not in text[text.rindex("finished") :]
    assert text.count("finished") == 2


def test_everything_ends_when_nobody_reads_the_output_any_more(psum: Any) -> None:
    """This happens in a pipe to `head`."""
    process = psum.start("launch", "--workers", "1", "--", sys.executable, "-c", "while True: print('line')")
    assert process.stdout.readline() == "[0] line\n"
    process.stdout.close()
    assert process.wait() == 128 + signal.SIGPIPE
