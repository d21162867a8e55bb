"""Compiles streaming.c of psum.runtime while psum is built or installed. Without a compiler, psum does without it."""

import pathlib
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCE = "proto/psum/runtime/streaming.c"
_LIBRARY = "psum/runtime/libpsum_streaming.so"
_TIMEOUT_SECONDS = 60


class Hook(BuildHookInterface[Any]):
    """Adds the library to wheels, and puts it beside its source for an editable installation."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is made. See hatchling's BuildHookInterface."""
        self._directory = pathlib.Path(tempfile.mkdtemp(prefix="psum-build-"))
        library = self._directory / "streaming.so"
        problem = compile_library(pathlib.Path(self.root, _SOURCE), library)
        if problem is None and version == "editable":
            try:
                shutil.copy(library, pathlib.Path(self.root, "proto", _LIBRARY))
            except OSError as error:
                problem = str(error)
        elif problem is None:
            build_data["force_include"][str(library)] = _LIBRARY
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
        if problem is not None:
            self.app.display_warning(f"psum goes without streaming copies, which make large sums faster: {problem}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Clean up after the wheel is made."""
        shutil.rmtree(self._directory, ignore_errors=True)


def compile_library(source: pathlib.Path, library: pathlib.Path) -> str | None:
    """Compile the library; return why that is not possible, None if it was."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64" or sys.maxsize < 2**32:
        return f"they are for Linux on x86_64, and this is {sysconfig.get_platform()}"
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return "there is no C compiler (cc, gcc or clang)"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else f"{compiler} failed: {done.stderr.strip()}"
