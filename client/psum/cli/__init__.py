"""The `psum` command."""

from psum.cli.commands import main

__all__ = ["main"]
