"""Finding psum's rivals and running them."""

import pathlib
import signal
import sys
from collections.abc import Callable

import pytest

from psum.cli.bench import rivals
from psum.cli.bench.cases import Case, Effort, System
from psum.cli.bench.measure import Plan
from psum.cli.bench.rivals import MissingError, Rival, find
from psum.cli.bench.runs import FailedError, once
from tests.polling import wait_until

PLAN = Plan("gloo", [1], "float32", 4, 0, 1, 0, 0.0, "", False)

Interpreter = Callable[[str], str]


@pytest.fixture
def interpreter(tmp_path: pathlib.Path) -> Interpreter:
    """Make a shell script that stands for a Python interpreter."""

    def make(script: str) -> str:
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        return str(python)

    return make


def test_a_rival_in_another_interpreter(interpreter: Interpreter, tmp_path: pathlib.Path) -> None:
    """gloo is found by running the other interpreter, which prints PyTorch's version."""
    python = interpreter("echo 2.15.0")
    assert find("gloo", python) == Rival("gloo", "PyTorch 2.15.0", python)
    with pytest.raises(MissingError, match="cannot run"):
        find("gloo", str(tmp_path / "none"))


def test_dist_sync_needs_mxnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to install MXNet."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install 'psum\[mxnet\]'"):
        find("dist_sync")


@pytest.mark.parametrize(
    ("wheels", "version"),
    [
        (["mxnet"], "MXNet 1.9.1"),
        (["mxnet-cu117"], "MXNet 1.9.1 (mxnet-cu117)"),
        (["mxnet", "mxnet-cu117"], "MXNet 1.9.1 (mxnet-cu117 over mxnet)"),
        ([], "MXNet"),
    ],
)
def test_dist_sync_of_any_wheel(monkeypatch: pytest.MonkeyPatch, wheels: list[str], version: str) -> None:
    """Wheels for CUDA have other names, and a build from source has no wheel."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"mxnet": wheels} if wheels else {})
    monkeypatch.setattr("importlib.metadata.version", {name: "1.9.1" for name in wheels}.__getitem__)
    assert find("dist_sync") == Rival("dist_sync", version, sys.executable)


def test_what_a_rival_writes_is_not_shown(interpreter: Interpreter, capfd: pytest.CaptureFixture[str]) -> None:
    """The output of a successful job would clutter the results."""
    assert rivals.run(Rival("gloo", "", interpreter("echo chatter; echo more >&2")), PLAN, workers=2, servers=1) == 0
    assert capfd.readouterr() == ("", "")


def test_what_a_rival_that_fails_wrote_is_shown(interpreter: Interpreter, capfd: pytest.CaptureFixture[str]) -> None:
    """Its output goes to standard error and its status is returned. The other ranks are ended: they would wait
    indefinitely."""
    rival = Rival(
        "gloo", "", interpreter('echo "rank $RANK of $WORLD_SIZE"; [ "$RANK" = 0 ] || exit 7; exec sleep 600')
    )
    assert rivals.run(rival, PLAN, workers=2, servers=1) == 7
    out, error = capfd.readouterr()
    assert out == ""
    assert "[1] rank 1 of 2\n" in error
    assert "psum: gloo rank 1 ended with status 7; ending the others\n" in error


def test_a_rival_that_hangs_is_ended(
    interpreter: Interpreter, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that takes longer than the time limit is ended with an error."""
    monkeypatch.setattr(rivals, "_JOB_TIMEOUT_SECONDS", 0.2)
    assert rivals.run(Rival("gloo", "", interpreter("exec sleep 600")), PLAN, workers=1, servers=1) == 1
    assert "gloo did not finish within 0.2 s" in capfd.readouterr().err


@pytest.mark.parametrize(("given", "threads"), [(None, "1"), ("", "1"), ("4", "4")])
def test_all_systems_have_as_many_openmp_threads(
    interpreter: Interpreter, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, given: str | None, threads: str
) -> None:
    """Every process of psum and of its rivals has one thread unless the user sets another number."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    file = tmp_path / "threads"
    python = interpreter(f'echo "$OMP_NUM_THREADS" >>{file}; exit 5')
    # Instead of a worker of psum.
    monkeypatch.setattr(sys, "executable", python)
    for rival in (None, Rival("gloo", "", python), Rival("dist_sync", "", python)):
        file.unlink(missing_ok=True)
        with pytest.raises(FailedError):
            once(System(rival=rival), Case("small", 1, 1, 1), Effort(1, 0, 0, 0.0))
        wait_until(file.exists)
        assert set(file.read_text().split()) == {threads}


def test_signals_are_handled_as_before_when_a_rival_has_run(interpreter: Interpreter) -> None:
    """A run restores the signal handlers of the program around it."""

    def handler(*_: object) -> None: ...

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        rivals.run(Rival("gloo", "", interpreter("true")), PLAN, workers=1, servers=1)
        assert [signal.getsignal(number) for number in before] == [handler] * 3
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def test_the_environment_of_a_rival_is_its_own(
    interpreter: Interpreter, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Import paths of this interpreter and roles set by other launchers are removed."""
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("DMLC_ROLE", "server")
    python = interpreter('echo "path=$PYTHONPATH role=$DMLC_ROLE at $MASTER_ADDR"; exit 1')
    assert rivals.run(Rival("gloo", "", python), PLAN, workers=1, servers=1) == 1
    assert "path= role= at 127.0.0.1\n" in capfd.readouterr().err
