"""The `psum` command itself."""

import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest


def test_version(psum: Any) -> None:
    """That of the installed distribution."""
    done = psum.run("--version")
    assert (done.returncode, done.stdout) == (0, f"psum, version {importlib.metadata.version('psum')}\n")


@pytest.mark.parametrize("command", ["aggregator", "bench", "launch"])
def test_every_subcommand_explains_itself(psum: Any, command: str) -> None:
    """It is in the list, and has a help text of its own."""
    assert f"\n  {command} " in psum.run("--help").stdout
    done = psum.run(command, "--help")
    assert done.returncode == 0
    assert f" {command} [OPTIONS]" in done.stdout


def test_an_unknown_subcommand_is_refused(psum: Any) -> None:
    """By name."""
    done = psum.run("fly")
    assert done.returncode == 2
    assert "No such command 'fly'" in done.stderr


def test_an_aggregator_loads_nothing_of_the_other_subcommands() -> None:
    """Neither the client, nor what draws tables."""
    program = (
        "import sys\n"
        "from psum.cli import main\n"
        "main(['aggregator', '--help'], standalone_mode=False)\n"
        "print([name for name in ('psum.client', 'psum.mxnet', 'rich') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
