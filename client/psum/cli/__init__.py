"""The `psum` command."""

from psum.cli._main import main

__all__ = ["main"]
