"""Files that are read again when they change."""

import pathlib

import pytest

from psum.runtime import WatchedFiles, read_file
from tests.scarcity import descriptors_left


def test_a_file_that_changes_while_descriptors_are_lacking_is_read_afterwards(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A certificate that is renewed at that moment is read as soon as there are descriptors."""
    file = tmp_path / "token"
    file.write_text("old")
    watched = WatchedFiles([str(file)], lambda: read_file(str(file), "token_file"))
    file.write_text("new and longer")
    with descriptors_left(0):
        assert watched.get() == b"old"
    assert "Too many open files" in caplog.text
    assert watched.get() == b"new and longer"
