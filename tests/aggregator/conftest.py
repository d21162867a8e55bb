"""An aggregator as a process of its own."""

import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def serve_process(tmp_path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """A running `psum aggregator`: its address, and that of its HTTP server."""
    command = [sys.executable, "-m", "psum.cli", "aggregator", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            log = ""
            while (line := process.stderr.readline()) and "listening on" not in (log := log + line):
                pass
            served = re.search(r"listening on (\S+)", log)
            probed = re.search(r"probes at http://(\S+)/", log)
            assert served is not None, log
            assert probed is not None, log
            yield served[1], probed[1]
        finally:
            process.terminate()
            process.communicate(timeout=30)
