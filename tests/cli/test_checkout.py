"""What is done with a checkout that cannot be written to."""

import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_an_environment_that_cannot_be_made_is_told_in_words(tmp_path: pathlib.Path) -> None:
    """The scripts say that the checkout is to be copied, rather than what Python says of a directory."""
    read_only = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && cd "$1" || exit 99'
    program = f'{read_only}; . "$2/scripts/lib.sh"; make_venv .venv python3 "$2/pyproject.toml" nothing'
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", program, "sh", str(tmp_path), str(ROOT)],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except OSError:
        pytest.skip("needs unshare")
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("needs to mount a directory read-only")
    assert done.returncode == 1
    assert f"{tmp_path} cannot be written to, and .venv is to be made there: copy it to where you may" in done.stderr
