"""What the pages name exists: paths of the repository and tests."""

import ast
import pathlib
import re
from typing import Final

import pytest

ROOT: Final = pathlib.Path(__file__).parent.parent

PAGES: Final = ("README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))))

#: Folders at the root. What begins with one of them and a slash is a path.
_ROOTS: Final = "aggregator|client|deploy|docs|examples|proto|scripts|tests"


def named(page: str) -> list[str]:
    """The paths and ids of tests in a page's backticks, without the arguments of commands and outside of blocks."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    # docs/faults.md names the files of tests without the folder and the ending.
    files = [f"tests/{name}.py" for name in re.findall(r"(?<![\w/`])((?:\w+/)+test_\w+)(?![\w.])", text)]
    return files + [name.rstrip(".,") for name in re.findall(rf"`((?:{_ROOTS})/[^\s`*{{<]+)(?: [^`]*)?`", text)]


def functions_in(path: pathlib.Path) -> set[str]:
    """The names of all functions in a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_tests_exist(page: str) -> None:
    """Each path in backticks is in the repository, and each test in its file."""
    wrong = []
    for name in named(page):
        path, _, test = name.partition("::")
        if not (ROOT / path).exists() or (test and test.partition("[")[0] not in functions_in(ROOT / path)):
            wrong.append(name)
    assert wrong == []


def test_pages_name_paths_and_tests() -> None:
    """The patterns find what they are to find."""
    found = named("docs/extending.md")
    assert "proto/psum/wire/elements.py" in found
    assert "scripts/chaos" in found
    assert "tests/integration/test_security.py" in named("docs/faults.md")
    assert "tests/test_element_types.py::test_the_table_has_the_types_of_the_protocol" in found
