"""The guide for programs of elastic jobs shows what the example does, which is tested."""

import pathlib
import re

_ROOT = pathlib.Path(__file__).parents[3]


def test_the_guide_has_the_loop_of_the_example() -> None:
    """Each line of it is one of the example's, in the same order, but for those that it leaves out."""
    page = (_ROOT / "docs/elastic-guide.md").read_text()
    loop = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    example = iter(line.strip() for line in (_ROOT / "examples/elastic_numpy.py").read_text().splitlines())
    shown = [line.strip() for line in loop.splitlines() if not line.strip().startswith("...")]
    assert len(shown) > 10
    for line in shown:
        assert line in example, line
