"""The `psum` command itself."""

import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest


def test_version(psum: Any) -> None:
    """It prints the version of the installed distribution."""
    done = psum.run("--version")
    assert (done.returncode, done.stdout) == (0, f"psum, version {importlib.metadata.version('psum')}\n")


@pytest.mark.parametrize("command", ["aggregator", "bench", "launch", "status", "timeline"])
def test_every_subcommand_explains_itself(psum: Any, command: str) -> None:
    """It is in the list, and has its own help text."""
    assert f"\n  {command} " in psum.run("--help").stdout
    done = psum.run(command, "--help")
    assert done.returncode == 0
    assert f" {command} [OPTIONS]" in done.stdout


def test_an_unknown_subcommand_is_refused(psum: Any) -> None:
    """The error names it."""
    done = psum.run("fly")
    assert done.returncode == 2
    assert "No such command 'fly'" in done.stderr


def test_an_aggregator_loads_nothing_of_the_other_subcommands() -> None:
    """It loads neither the client nor the libraries for tables."""
    program = (
        "import sys\n"
        "from psum.cli import main\n"
        "main(['aggregator', '--help'], standalone_mode=False)\n"
        "print([name for name in ('psum.client', 'psum.mxnet', 'rich') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_a_missing_extra_is_named() -> None:
    """Only the subcommand that needs the extra fails. The others work, and so does the list."""
    program = (
        "import sys\nsys.modules['numkong'] = None\nfrom psum.cli import main\nmain(sys.argv[1:], prog_name='psum')"
    )

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)

    done = run("aggregator", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert done.stderr == (
        "Error: psum aggregator: needs numkong, which is not installed: pip install 'psum[aggregator]'\n"
    )
    assert "Needs numkong" in run("--help").stdout
    assert run("bench", "--help").returncode == 0


def test_an_aggregator_says_that_a_stranger_did_not_start_it(psum: Any) -> None:
    """`--end-with` names the process that starts the aggregator. With another one, it ends at once and says why."""
    done = psum.run("aggregator", "--listen", "127.0.0.1:0", "--end-with", "1000000000")
    assert done.returncode == 1
    assert "process 1000000000, with which it should end, has ended or did not start it" in done.stderr
