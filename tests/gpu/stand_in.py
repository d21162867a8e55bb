"""Builds fake versions of the CUDA libraries that a GPU wheel of MXNet or PyTorch needs, for a machine without a GPU.

The CUDA runtime is a C file in this folder: cudart.c does everything at once, and cudart_streams.c has streams that run
late and beside each other. The other libraries only have the symbols that the wheel needs to load. Their functions do
nothing and return success, because copies do not use them. The script needs gcc and binutils.

usage: stand_in.py RUNTIME.c DIRECTORY LIBRARY_OF_THE_WHEEL…
"""

import pathlib
import re
import subprocess
import sys
from typing import Final

#: CUDA's libraries among those that the wheel needs, and CUDA's symbols among those without a library.
_LIBRARIES: Final = re.compile(r"lib(cu|nv|nccl)\w*\.so[.\d]*")
_SYMBOLS: Final = re.compile(r"(cu|cusparseLt|nccl|nvtx)[A-Z]\w+")


def run(*command: object) -> str:
    return subprocess.run([*map(str, command)], check=True, text=True, stdout=subprocess.PIPE).stdout


class Wanted:
    """What a wheel needs of one of CUDA's libraries.

    Attributes:
        symbols: The names of functions.
        version: The version of the symbols.
    """

    def __init__(self, library: str) -> None:
        self.symbols: set[str] = set()
        self.version = library


def find_wanted(wheel: list[pathlib.Path]) -> dict[str, Wanted]:
    """Return what the wheel's libraries need from each of CUDA's.

    Symbols without a library go to the driver, or to the runtime if the file that needs them does not need the driver.
    """
    wanted: dict[str, Wanted] = {}
    for path in wheel:
        headers = run("objdump", "-p", path)
        needed = [name for name in re.findall(r"NEEDED\s+(\S+)", headers) if _LIBRARIES.fullmatch(name)]
        for library in needed:
            wanted.setdefault(library, Wanted(library))
        # The driver comes before the runtime.
        for_others = min((name for name in needed if name.startswith("libcuda")), default=None)
        for library, version in re.findall(r"required from (\S+):\n\s+0x\S+ 0x\S+ \d+ (\S+)", headers):
            if library in wanted:
                wanted[library].version = version
        by_version = {one.version: one for one in wanted.values()}
        for line in run("objdump", "-T", path).splitlines():
            if "*UND*" not in line:
                continue
            *_, version, symbol = line.split()
            if (of_library := by_version.get(version.strip("()"))) is not None:
                of_library.symbols.add(symbol)
            elif for_others is not None and _SYMBOLS.fullmatch(symbol):
                wanted[for_others].symbols.add(symbol)
    return wanted


def build(directory: pathlib.Path, library: str, wanted: Wanted, runtime: str) -> None:
    """Compile one library. The runtime gets its real source, and the driver is linked against the runtime."""
    source, versions = directory / f"{library}.c", directory / f"{library}.map"
    text, more = "", []
    status = 0
    if library.startswith("libcudart"):
        text, status = runtime, 1
    elif library.startswith("libcuda."):
        # The runtime's source also defines functions of the driver.
        more = ["-Wl,--no-as-needed", *directory.glob("libcudart.so*[0-9]")]
    defined = set(re.findall(r"\b(\w+)\(", runtime))
    text += "".join(f"long {symbol}(void) {{ return {status}; }}\n" for symbol in sorted(wanted.symbols - defined))
    source.write_text(text + "int stand_in;\n")
    versions.write_text(f"{wanted.version} {{ global: *; }};\n")
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


def main(runtime: pathlib.Path, directory: pathlib.Path, *wheel: pathlib.Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    wanted = find_wanted([*wheel])
    # The runtime comes first, because the driver is linked against it.
    for library in sorted(wanted, key=lambda name: not name.startswith("libcudart")):
        build(directory, library, wanted[library], runtime.read_text())


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
