"""The three source roots make one namespace package, its folders import only what they may, and nothing is for show."""

import ast
import graphlib
import importlib
import pathlib
import re
from collections.abc import Iterator
from typing import Final

import pytest

import psum.aggregator
import psum.client
from psum.runtime import BaseSettings, declarations

ROOT: Final = pathlib.Path(__file__).parent.parent

#: Which folders each folder may import, by their names within psum. A folder's files may import each other.
#: docs/architecture.md shows this table.
MAY_IMPORT: Final[dict[str, tuple[str, ...]]] = {
    "v1": (),
    "wire": ("v1",),
    "runtime": ("wire",),
    "planes": ("runtime", "v1", "wire"),
    "aggregator.core": ("runtime", "v1", "wire"),
    "aggregator.sums": ("planes", "v1", "wire"),
    "aggregator.access": ("aggregator", "runtime", "v1", "wire"),
    "aggregator.relay.core": ("aggregator.core", "client.core", "planes", "runtime", "v1", "wire"),
    "aggregator.relay": (
        *("aggregator", "aggregator.core", "aggregator.relay.core", "client.observe", "client.transport"),
        *("planes", "runtime", "v1", "wire"),
    ),
    "aggregator.service": (
        *("aggregator", "aggregator.access", "aggregator.core", "aggregator.relay", "aggregator.sums"),
        *("planes", "runtime", "v1", "wire"),
    ),
    "aggregator.observe": ("aggregator", "aggregator.service", "planes", "runtime", "v1", "wire"),
    "aggregator.processes": ("aggregator", "aggregator.core", "aggregator.observe", "runtime", "v1", "wire"),
    "aggregator": (
        *("aggregator.access", "aggregator.core", "aggregator.observe", "aggregator.processes", "aggregator.service"),
        *("planes", "runtime", "v1", "wire"),
    ),
    "client.core": ("planes", "runtime", "v1", "wire"),
    "client.transport": ("client", "client.core", "planes", "runtime", "v1", "wire"),
    "client.observe": ("client", "client.core", "runtime", "wire"),
    "client.elastic": ("client", "client.core", "client.transport", "v1", "wire"),
    "client": (
        *("client.core", "client.elastic", "client.observe", "client.transport"),
        *("planes", "runtime", "v1", "wire"),
    ),
    "mxnet.arrays": ("client", "mxnet"),
    "mxnet.engine": ("client", "mxnet", "runtime"),
    "cuda": (),
    "mxnet.staging": ("client", "cuda", "mxnet", "mxnet.arrays", "mxnet.engine"),
    "mxnet": ("client", "mxnet.arrays", "mxnet.engine", "mxnet.staging"),
    "torch": ("client", "torch.byteps", "torch.collectives", "torch.rendezvous", "torch.staging"),
    "torch.byteps": ("client", "torch", "torch.staging"),
    "torch.collectives": ("client", "torch"),
    "torch.rendezvous": ("client", "runtime", "wire"),
    "torch.staging": ("client", "cuda", "torch"),
    "cli.launch": ("cli", "client", "client.observe", "runtime", "wire"),
    "cli.bench": ("cli", "cli.launch", "client", "mxnet", "wire"),
    "cli.status": ("cli", "client", "runtime", "wire"),
    "cli.timeline": ("cli", "client.observe"),
    "cli": ("aggregator", "planes", "runtime", "wire"),
}

#: Folders that decide: everything in them is synchronous and does no I/O.
PURE: Final = ("aggregator.core", "aggregator.relay.core", "client.core")

#: What nothing pure may import.
IMPURE: Final = frozenset({"asyncio", "grpc", "mmap", "selectors", "socket", "subprocess", "uvloop"})


def modules() -> Iterator[tuple[str, pathlib.Path]]:
    """Every module of psum with its file, but for generated ones."""
    for root in ("proto", "aggregator", "client"):
        for path in sorted((ROOT / root / "psum").rglob("*.py")):
            if "_pb2" not in path.name:
                parts = path.relative_to(ROOT / root).with_suffix("").parts
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


PATHS: Final = dict(modules())


def folder(module: str) -> str:
    """The folder that a module is in, as the table names it."""
    name = module if PATHS[module].name == "__init__.py" else module.rpartition(".")[0]
    return name.removeprefix("psum.")


def imports(module: str) -> Iterator[str]:
    """The modules that a module imports, for types only and within functions too."""
    for node in ast.walk(ast.parse(PATHS[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{module} has a relative import"
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in PATHS else node.module


@pytest.mark.parametrize("root", ["proto", "aggregator", "client"])
def test_no_source_root_hides_the_others(root: str) -> None:
    """An __init__.py directly in psum/ would make the other roots' packages unimportable."""
    assert not (ROOT / root / "psum" / "__init__.py").exists()


@pytest.mark.parametrize(
    "package", ["v1", "wire", "runtime", "planes", "aggregator", "client", "mxnet", "torch", "cli"]
)
def test_every_package_is_typed(package: str) -> None:
    """Each portion is found under the one name, and carries its type marker."""
    path = PATHS[f"psum.{package}"]
    assert path.with_name("py.typed").exists()
    if package not in ("mxnet", "torch"):
        assert importlib.import_module(f"psum.{package}").__file__ == str(path)


@pytest.mark.parametrize(("side", "kind"), [("client", psum.client.Settings), ("aggregator", psum.aggregator.Settings)])
def test_every_setting_does_something(side: str, kind: type[BaseSettings]) -> None:
    """What is declared and documented is read somewhere: a variable without effect is found by no linter."""
    source = "".join(path.read_text() for path in (ROOT / side / "psum").rglob("*.py"))
    unread = [name for name in declarations(kind) if not re.search(rf"(?<!\w)\w+\.{name}\b", source)]
    assert unread == []


def test_folders_import_only_what_they_may() -> None:
    """Every import between two folders is in the table, and every folder is."""
    wrong = []
    for module in PATHS:
        here = folder(module)
        for other in imports(module):
            if other in PATHS or other.startswith("psum.v1"):
                there = "v1" if other.startswith("psum.v1") else folder(other)
                if there != here and there not in MAY_IMPORT[here]:
                    wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_the_table_allows_no_more_than_is_needed() -> None:
    """What the table allows is used: an entry that nobody needs would let in what was not thought about."""
    used = {(folder(m), folder(o)) for m in PATHS for o in imports(m) if o in PATHS}
    used |= {(folder(m), "v1") for m in PATHS for o in imports(m) if o.startswith("psum.v1")}
    unused = [
        f"{here} → {there}" for here, others in MAY_IMPORT.items() for there in others if (here, there) not in used
    ]
    assert unused == []


@pytest.mark.parametrize("pure", PURE)
def test_what_decides_does_no_io(pure: str) -> None:
    """No module of a core imports an event loop, a socket or a process."""
    wrong = [
        f"{module} imports {other}"
        for module in PATHS
        if folder(module) == pure
        for other in imports(module)
        if other.partition(".")[0] in IMPURE
    ]
    assert wrong == []


def test_no_circles() -> None:
    """No module imports, directly or through others, itself: neither when it is loaded nor for types only."""
    graph = {m: {o for o in imports(m) if o in PATHS and o != m and PATHS[o].name != "__init__.py"} for m in PATHS}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_every_folder_says_what_it_is() -> None:
    """The docstring of each folder tells what lives there, what it may import, and where to begin."""
    for name in MAY_IMPORT:
        if "." in name or name in ("wire", "runtime", "planes"):
            text = ast.get_docstring(ast.parse(PATHS[f"psum.{name}"].read_text())) or ""
            assert "import" in text, f"psum.{name}"
            assert "Begin with" in text, f"psum.{name}"


def test_the_architecture_page_shows_the_table() -> None:
    """docs/architecture.md has a row for each folder with what it may import."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    for name, others in MAY_IMPORT.items():
        listed = ", ".join(f"`{other}`" for other in sorted(others)) or "nothing of psum"
        assert f"| `{name}` | {listed} |" in page
