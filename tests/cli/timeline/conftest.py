"""A fixture that writes the file of a rank."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from psum.client.observe.trace import (
    Slice,
)
from tests.cli.timeline.written import document


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Write the file of a rank."""

    def write(slices: list[Slice], rank: int = 0, **other: Any) -> pathlib.Path:
        path = tmp_path / f"rank-{rank}.json"
        path.write_text(json.dumps(document(slices, rank, **other)))
        return path

    return write
