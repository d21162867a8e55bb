"""The README's tables of settings are what the code declares."""

import pathlib

import pytest

import psum.aggregator
import psum.client
from psum.wire import BaseSettings, declarations

README = pathlib.Path(__file__).parent.parent / "README.md"

#: What is worked out from other systems' variables rather than read from one.
DERIVED = {
    "rank": "BYTEPS_GLOBAL_RANK, or from DMLC_WORKER_ID or JOB_COMPLETION_INDEX",
    "num_workers": "from DMLC_NUM_WORKER",
}


def table(kind: type[BaseSettings]) -> str:
    rows = ["| variable | default | meaning | also understood |", "|---|---|---|---|"]
    for name, declared in declarations(kind).items():
        own, *aliases = declared.variables
        also = DERIVED.get(name, ", ".join(aliases)) if kind is psum.client.Settings else ", ".join(aliases)
        rows.append(f"| {own} | {declared.default_text} | {declared.meaning} | {also} |")
    return "\n".join(rows)


@pytest.mark.parametrize("kind", [psum.client.Settings, psum.aggregator.Settings])
def test_the_readme_lists_every_setting_as_it_is(kind: type[BaseSettings]) -> None:
    """Names, defaults, meanings and aliases come from the declarations; a difference shows the table to put there."""
    assert table(kind) in README.read_text(), f"put this into README.md:\n{table(kind)}"
