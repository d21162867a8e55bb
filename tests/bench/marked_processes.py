"""Finds the aggregators of a job by a mark in their environment."""

import pathlib
from collections.abc import Iterator


def aggregators(variable: str, mark: str) -> Iterator[int]:
    """Yields the process ids of the aggregators, with all of their processes, that have inherited a variable.

    Args:
        variable: The name of the variable.
        mark: Its value, which only the processes of this job have.
    """
    wanted = f"{variable}={mark}".encode()
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes()
                if b"psum.aggregator.processes" in command or b"\0aggregator\0" in command:
                    yield int(entry.name)
        except OSError:
            continue
