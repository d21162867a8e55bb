"""The interpreter for psum through torch.distributed, which may be another one than the lab's."""

import os
import pathlib
import subprocess
import sys
from typing import Final

from psum.cli.bench.rivals import MissingError

_ROOT: Final = pathlib.Path(__file__).parents[3]

#: The longest time for finding out whether an interpreter has what is needed.
_PROBE_SECONDS: Final = 60.0


def environment() -> dict[str, str]:
    """The variable by which an interpreter finds psum in this repository. It need not be installed there."""
    return {"PYTHONPATH": os.pathsep.join(str(_ROOT / part) for part in ("proto", "aggregator", "client"))}


def find(python: str | None) -> str:
    """Returns the path of an interpreter that has PyTorch and psum.

    Args:
        python: The one to use; None for this one.

    Raises:
        MissingError: It cannot import them.
    """
    path = python or sys.executable
    command = [path, "-P", "-c", "import psum.torch"]
    try:
        probe = subprocess.run(
            command, env={**os.environ, **environment()}, capture_output=True, text=True, timeout=_PROBE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"skipping psum through torch: cannot run {path}: {error}") from None
    if probe.returncode != 0:
        cause = (probe.stderr.strip().splitlines() or ["it failed"])[-1]
        raise MissingError(
            f"skipping psum through torch: {path} cannot import psum.torch ({cause}). Make an environment with"
            " `pip install -e '.[torch]'`, and pass its interpreter to --torch-python"
        )
    return path
