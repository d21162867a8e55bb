"""The scripts for users and developers, as far as they run without a package registry."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

from tests.polling import wait_until
from tests.processes import running

ROOT = pathlib.Path(__file__).parent.parent

#: A fake Python. The Pythons of its environments only record their arguments.
PYTHON = """#!/bin/sh
case "$*" in
    "-m venv "*)
        mkdir -p "$3/bin"
        cat >"$3/bin/python" <<'TEXT'
#!/bin/sh
echo "$0 $*" >>{log}
[ "${{PYTEST_SLEEPS:-}} ${{2:-}}" != "1 pytest" ] || exec sleep 60
TEXT
        cp "$3/bin/python" "$3/bin/psum"
        cp "$3/bin/python" "$3/bin/helm"
        chmod +x "$3"/bin/* ;;
    "-c "*ensurepip*) echo "$0 {version}" ;;
    "-c "*) echo {version} ;;
    *) exec {python} "$@" ;;
esac
"""


class Checkout:
    """A copy of the scripts, with a Python that installs nothing.

    Attributes:
        directory: The directory of the copy.
        programs: The directory of the Python.
        log: What the Pythons of environments were called with.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        shutil.copytree(ROOT / "scripts", directory / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", directory)
        self.programs = directory.parent / "programs"
        self.programs.mkdir()
        self.log = directory.parent / "log"
        for version in ("3.11", "3.12", "3.13"):
            python = self.programs / f"python{version}"
            python.write_text(PYTHON.format(log=self.log, python=sys.executable, version=version))
            python.chmod(0o755)

    def run(self, *command: str, prefix: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
        """Run a script."""
        environ = {**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}"}
        return subprocess.run(
            [*prefix, *command], cwd=self.directory, env=environ, capture_output=True, text=True, timeout=30
        )

    def took(self) -> list[str]:
        """Return the arguments of programs in environments since the last call, without paths."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.removeprefix(f"{self.directory}/") for line in lines]


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> Checkout:
    """A checkout without any environment."""
    return Checkout(tmp_path / "psum")


def test_the_demo_installs_what_it_needs_alone(checkout: Checkout) -> None:
    """It uses its own environment, leaves that of scripts/setup alone, says how long each step takes, and shows pip's
    progress."""
    done = checkout.run("scripts/demo", "--epochs", "3")
    assert done.returncode == 0, done.stderr
    assert checkout.took() == [
        ".venv-demo/bin/python -m pip install --disable-pip-version-check -e .[aggregator,mxnet,demo]",
        ".venv-demo/bin/psum launch --workers 2 -- .venv-demo/bin/python scripts/digits.py --epochs 3",
    ]
    assert "setting up .venv-demo, once: pip installs -e .[aggregator,mxnet,demo] (1 to 5 minutes" in done.stderr
    assert re.search(r"set up \.venv-demo in \d+ s", done.stderr)
    assert not (checkout.directory / ".venv").exists()
    # The second time, nothing is installed.
    checkout.run("scripts/demo")
    assert len(checkout.took()) == 1


def test_the_demo_with_pytorch_has_an_environment_of_its_own(checkout: Checkout) -> None:
    """PyTorch is large, and MXNet is not needed. Another framework is an error that lists those there are."""
    done = checkout.run("scripts/demo", "--framework", "torch", "--epochs", "3")
    assert done.returncode == 0, done.stderr
    own = ".venv-demo-torch/bin"
    cpu = "torch==2.13.0+cpu --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu"
    assert checkout.took() == [
        f"{own}/python -m pip install --disable-pip-version-check -e .[torch,demo] {cpu}",
        f"{own}/psum launch --workers 2 -- {own}/python examples/torch_digits.py --epochs 3",
    ]
    for wrong in (("--framework", "jax"), ("--framework",)):
        done = checkout.run("scripts/demo", *wrong)
        assert done.returncode == 2
        assert "expected mxnet or torch" in done.stderr


def test_the_demo_uses_what_is_set_up(checkout: Checkout) -> None:
    """This holds as long as nothing has changed. After the demo, setting up again takes no time."""
    checkout.run("scripts/setup")
    assert len(checkout.took()) == 1
    checkout.run("scripts/demo")
    checkout.run("scripts/setup")
    assert checkout.took() == [".venv/bin/psum launch --workers 2 -- .venv/bin/python scripts/digits.py"]
    with (checkout.directory / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    checkout.run("scripts/demo")
    assert checkout.took()[0].startswith(".venv-demo/bin/python -m pip")


@pytest.mark.parametrize("script", ["demo", "setup", "test", "check"])
def test_a_checkout_that_cannot_be_written_to_is_told_at_once(checkout: Checkout, script: str) -> None:
    """The error says what cannot be written, and what to do."""
    directory = checkout.directory
    prefix: tuple[str, ...]
    if os.getuid() == 0:
        # Only a read-only file system stops this user from writing.
        mount = f"mount --bind {directory} {directory} && mount -o remount,bind,ro {directory} && cd {directory}"
        prefix = ("unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh")
        if subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
            pytest.skip("may not mount")
    else:
        prefix = ()
        directory.chmod(0o555)
    try:
        done = checkout.run(f"scripts/{script}", prefix=prefix)
    finally:
        directory.chmod(0o755)
    assert done.returncode == 1
    assert f" may not write to {directory}." in done.stderr
    assert f"cp -r {directory} ~/psum" in done.stderr
    assert checkout.took() == []


def test_all_tests_say_how_far_they_are(checkout: Checkout) -> None:
    """Each line has the environment, its number and the time since the start. The last line has the sums. Together, the
    two runs of the first environment have all tests."""
    done = checkout.run("scripts/test")
    assert done.returncode == 0, done.stderr
    lines = re.sub(r"\d:\d\d min", "0:00 min", done.stdout).splitlines()
    # Where tests take no time, they may wait for an environment, and make it.
    assert [line for line in lines if not line.startswith(("setting up ", "set up "))] == [
        "== 1 of 6: faults, commands, clients and KVStores on Python 3.11 with MXNet 1.9.1 (0:00 min since the start)",
        "beside it ran:",
        "== 2 of 6: everything else on Python 3.11 with MXNet 1.9.1 (0:00 min since the start)",
        "== 3 of 6: what depends on the interpreter on Python 3.12 with MXNet 1.9.1 (0:00 min since the start)",
        "== 4 of 6: the KVStore on Python 3.11 with MXNet 2.0.0b1 (0:00 min since the start)",
        "== 5 of 6: the PyTorch backend on Python 3.11 with PyTorch for the CPU (0:00 min since the start)",
        "== 6 of 6: client and aggregator on Python 3.13 without MXNet (0:00 min since the start)",
        "took 0:00 min",
        "0 passed, 0 failed, 0 skipped",
    ]
    commands = checkout.took()
    runs = [line.partition(" -m pytest --junit-xml=")[2].split()[1:] for line in commands if " -m pytest " in line]
    assert len(runs) == 6
    # Each environment was made once, though two jobs of the script need it.
    assert len([line for line in commands if " -m pip install " in line]) == 5
    (ignoring,) = (run for run in runs if any(argument.startswith("--ignore=") for argument in run))
    ignored = [argument.removeprefix("--ignore=") for argument in ignoring]
    assert ignored in runs
    assert all((ROOT / directory).is_dir() for directory in ignored)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_all_tests_can_be_ended(checkout: Checkout, number: signal.Signals) -> None:
    """Ctrl-C goes to all processes of a terminal, SIGTERM to the script alone. Nothing runs on."""
    environ = {**os.environ, "PATH": f"{checkout.programs}:{os.environ['PATH']}", "PYTEST_SLEEPS": "1"}
    with running(["scripts/test"], cwd=checkout.directory, env=environ, start_new_session=True) as process:
        wait_until(lambda: checkout.log.exists() and checkout.log.read_text().count(" -m pytest ") == 2)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(20) == 128 + number
        # All its processes are in the group.
        wait_until(lambda: not group_exists(process.pid))


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_setting_up_leaves_the_clock_of_all_tests_alone(checkout: Checkout) -> None:
    """Variables of shell functions are global, and could overwrite the start time."""
    program = '. scripts/lib.sh; begun=7; make_venv .venv python3.11 pyproject.toml -e .; echo "$begun"'
    assert checkout.run("sh", "-c", program).stdout.split()[-1] == "7"


def test_the_scripts_are_valid_shell() -> None:
    """This includes parts that these tests do not run."""
    for script in (ROOT / "scripts").iterdir():
        if script.is_file() and script.suffix != ".py":
            done = subprocess.run(["sh", "-n", str(script)], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), script


def test_the_demo_runs_with_the_interpreter_at_hand() -> None:
    """It runs on every Python with MXNet: two workers learn, and have the same parameters in the end."""
    pytest.importorskip("sklearn")
    pytest.importorskip("psum.mxnet")
    command = [sys.executable, "-m", "psum.cli", "launch", "--workers", "2", "--", sys.executable, "scripts/digits.py"]
    done = subprocess.run([*command, "--epochs", "12"], cwd=ROOT, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:12]] == [f"[0] epoch {n:2} of 12" for n in range(1, 13)]
    assert lines[-1] == "[0] all 2 workers hold the same parameters, bit for bit"
