"""Which workers copy past the processor's caches."""

import pathlib
import platform
import subprocess
import sys

import pytest

from psum.cli.launch.streaming_copies import VARIABLE, streaming_environment, vendor

TUNABLES = "glibc.cpu.x86_non_temporal_threshold=0x100000"


@pytest.fixture
def intel(tmp_path: pathlib.Path) -> pathlib.Path:
    """What describes two processors of Intel's."""
    file = tmp_path / "intel"
    file.write_text("".join(f"processor\t: {number}\nvendor_id\t: GenuineIntel\n\n" for number in range(2)))
    return file


@pytest.fixture
def amd(tmp_path: pathlib.Path) -> pathlib.Path:
    """What describes a processor of AMD's."""
    file = tmp_path / "amd"
    file.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\n")
    return file


@pytest.mark.parametrize("plane", ["auto", "shm"])
def test_workers_on_intel_copy_past_the_caches(intel: pathlib.Path, plane: str) -> None:
    """They do where sums are copied out of shared memory, from 1 MiB on."""
    assert streaming_environment(plane, {}, intel) == {VARIABLE: TUNABLES}


def test_others_copy_as_always(intel: pathlib.Path, amd: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Nothing is set on other processors or planes, where the processor is not known, or over what the user has set."""
    assert streaming_environment("auto", {}, amd) == {}
    assert streaming_environment("auto", {}, tmp_path / "missing") == {}
    assert [streaming_environment(plane, {}, intel) for plane in ("direct", "inline")] == [{}, {}]
    assert [streaming_environment("shm", {VARIABLE: own}, intel) for own in ("", "glibc.malloc.tcache_count=0")] == [
        {},
        {},
    ]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64", reason="glibc on x86 only")
def test_glibc_takes_the_setting(intel: pathlib.Path) -> None:
    """A process that is started with it has the threshold that the setting names."""
    loader = next(pathlib.Path("/").glob("lib*/ld-linux-x86-64.so.2"))
    listed = subprocess.run(
        [loader, "--list-tunables"], env=streaming_environment("shm", {}, intel), capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("this glibc does not list its settings")
    assert "glibc.cpu.x86_non_temporal_threshold: 0x100000 " in listed.stdout


def test_psum_launch_gives_it_to_workers(tmp_path: pathlib.Path) -> None:
    """A worker has what this machine's processors want; what the user sets reaches it unchanged."""
    show = f"import os; print('given', os.environ.get({VARIABLE!r}))"
    launch = [sys.executable, "-m", "psum.cli", "launch", "--workers", "1", "--", sys.executable, "-c", show]
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for own in ({}, {VARIABLE: "glibc.malloc.tcache_count=7"}):
        done = subprocess.run(launch, env=environ | own, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        expected = {**streaming_environment("auto", {}), **own}.get(VARIABLE)
        assert f"given {expected}" in done.stdout


def test_this_machine_names_its_vendor() -> None:
    """The vendor is read from what Linux tells of its processors."""
    if platform.machine() == "x86_64":
        assert vendor()
