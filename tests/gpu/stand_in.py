"""Builds fake versions of the CUDA libraries that MXNet's GPU wheel needs, for a machine without a GPU.

The CUDA runtime is cudart.c in this folder. The other libraries only have the symbols that the wheel needs to load.
Their functions do nothing and return success, because copies do not use them. The script needs gcc and binutils.

usage: stand_in.py LIBMXNET DIRECTORY
"""

import collections
import pathlib
import re
import subprocess
import sys
from typing import Final

_RUNTIME: Final = pathlib.Path(__file__).with_name("cudart.c")

#: CUDA's libraries among those that the wheel needs, and CUDA's symbols among those without a library.
_LIBRARIES: Final = re.compile(r"lib(cu|nv|nccl)\w*\.so[.\d]*")
_SYMBOLS: Final = re.compile(r"(cu|nccl|nvtx)[A-Z]\w+")


def run(*command: object) -> str:
    return subprocess.run([*map(str, command)], check=True, text=True, stdout=subprocess.PIPE).stdout


def wanted_symbols(libmxnet: pathlib.Path, driver: str) -> dict[str, set[str]]:
    """Return the symbols that MXNet needs from each library. Symbols without a library go to the driver."""
    needed = re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p", libmxnet))
    wanted: dict[str, set[str]] = {library: set() for library in needed if _LIBRARIES.fullmatch(library)}
    for line in run("objdump", "-T", libmxnet).splitlines():
        if "*UND*" not in line:
            continue
        *_, version, symbol = line.split()
        if (library := version.strip("()")) in wanted:
            wanted[library].add(symbol)
        elif _SYMBOLS.fullmatch(symbol):
            wanted[driver].add(symbol)
    return wanted


def build(directory: pathlib.Path, library: str, symbols: set[str]) -> None:
    """Compile one library. The runtime gets its real source, and the driver is linked against the runtime."""
    source, versions = directory / f"{library}.c", directory / f"{library}.map"
    text, more = "", []
    status = 0
    if library.startswith("libcudart"):
        text, status = _RUNTIME.read_text(), 1
    elif library.startswith("libcuda."):
        # The runtime's source also defines functions of the driver.
        more = ["-Wl,--no-as-needed", *directory.glob("libcudart.so*[0-9]")]
    defined = set(re.findall(r"\b(\w+)\(", _RUNTIME.read_text()))
    text += "".join(f"long {symbol}(void) {{ return {status}; }}\n" for symbol in sorted(symbols - defined))
    source.write_text(text + "int stand_in;\n")
    versions.write_text(f"{library} {{ global: *; }};\n")
    options = [
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        f"-Wl,-soname,{library}",
        f"-Wl,--version-script={versions}",
        "-lpthread",
    ]
    run("gcc", *options, "-o", directory / library, source, *more)


def main(libmxnet: pathlib.Path, directory: pathlib.Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, set[str]] = collections.defaultdict(set, wanted_symbols(libmxnet, "libcuda.so.1"))
    # The runtime comes first, because the driver is linked against it.
    for library in sorted(wanted, key=lambda name: not name.startswith("libcudart")):
        build(directory, library, wanted[library])


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
