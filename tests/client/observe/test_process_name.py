"""The names by which people, and the aggregators' logs, tell processes apart."""

import os
import re
import signal
import subprocess
import sys

import pytest

from psum.client.observe import process_name

PROGRAM = "from psum.client.observe import process_name; print(process_name.name())"


@pytest.fixture(autouse=True)
def _unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds the name that another one has computed."""
    monkeypatch.setattr(process_name, "_name", "")


def test_a_process_of_the_host_has_its_host_and_pid(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process of the host has this pid at the same time."""
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[4026531836]")
    assert process_name.name().endswith(f" pid {os.getpid()}")


@pytest.mark.parametrize("told", [True, False], ids=["", "where the system does not tell"])
def test_processes_of_containers_differ_by_their_start(monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    """A replacement has its predecessor's host name and pid."""

    def readlink(path: str) -> str:
        if not told:
            raise FileNotFoundError(path)
        return "pid:[4026532001]"

    monkeypatch.setattr(os, "readlink", readlink)
    monkeypatch.setattr(process_name, "pid", 1)
    names = []
    for age in (100.0, 90.0):
        monkeypatch.setattr(process_name, "_name", "")
        monkeypatch.setattr(process_name, "age_seconds", lambda age=age: age)
        names.append(process_name.name())
        # Computed once: a later age must not change it.
        monkeypatch.setattr(process_name, "age_seconds", lambda: 0.0)
        assert process_name.name() == names[-1]
    assert all(re.search(r" pid 1 since \d\d:\d\d:\d\dZ$", name) for name in names)
    assert names[0] != names[1]


def test_process_1_of_a_container_tells_its_start() -> None:
    """It finds out by itself that it is in a container."""
    prefix = ["unshare", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not make namespaces of processes")
    done = subprocess.run([*prefix, sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert re.search(r" pid 1 since \d\d:\d\d:\d\dZ\n$", done.stdout)


def test_a_forked_child_has_a_name_of_its_own() -> None:
    """Not the one that its parent had computed."""
    name = process_name.name()
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(writing, process_name.name().encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as file:
        told = file.read()
    assert f" pid {child}" in told
    assert told != name
