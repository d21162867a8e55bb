"""A small /dev/shm, as containers have it, which psum shares with others who would be killed if they found it full."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

#: Two workers with a key that is larger than /dev/shm; then somebody else who writes to half of it.
_PROGRAM = """
import mmap, os, signal
import numpy as np
from tests.integration.conftest import Fleet
from psum.aggregator import Settings

fleet = Fleet([Settings(listen=("127.0.0.1:0",))])

def work(client):
    assert client.planes == ("shm",)
    values = [np.full(500_000, client.rank + 1, np.float32) for _ in range(12)]
    for _ in range(2):
        store = client.store()
        for future in [store.push_pull_async(i, value) for i, value in enumerate(values)]:
            future.result(20)
    assert all((value == 6).all() for value in values)
    if client.rank == 0:
        free = os.statvfs("/dev/shm")
        print("free", free.f_bavail * free.f_frsize)
        child = os.fork()
        if child == 0:
            with open("/dev/shm/of-another", "w+b") as file:
                file.truncate(8 << 20)
                mapped = mmap.mmap(file.fileno(), 8 << 20)
                mapped[:] = bytes(8 << 20)
            os._exit(0)
        print("status", os.waitpid(child, 0)[1])
    client.store().push_pull("end", np.zeros(1, np.float32))

fleet.on_every_rank(2, work, credit_bytes=2 << 20)
fleet.close()
"""


def _in_namespace(*command: str) -> list[str]:
    """The command in its own mount namespace; skips the test if this user may not have one."""
    unshare = shutil.which("unshare")
    for options in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        probe = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
        if unshare and subprocess.run([unshare, *options, "sh", "-c", probe], capture_output=True).returncode == 0:
            return [unshare, *options, *command]
    pytest.skip("this user may not mount a file system, not even in a namespace of its own")


def test_whoever_comes_later_finds_half_of_it() -> None:
    """What does not fit in psum's half travels in messages, with one warning on either side; the sums are right."""
    done = subprocess.run(
        _in_namespace(
            "sh", "-c", 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$0" -c "$1"', sys.executable, _PROGRAM
        ),
        cwd=pathlib.Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split() for line in done.stdout.splitlines())
    # psum used its whole half, except for less than a shard of 2 MiB.
    assert 8 << 20 <= int(said["free"]) < 10 << 20
    # Not 7, SIGBUS.
    assert said["status"] == "0"
    [warning] = [line for line in done.stderr.splitlines() if "fit" in line]
    assert "further sums travel in messages" in warning
    assert "leaves 8.0 MiB to others (PSUM_SHM_LIMIT=50%)" in warning
