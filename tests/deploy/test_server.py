"""The check finds quantities that a server would write in another form."""

import pytest

from tests.deploy.server import canonical


def test_amounts_are_written_as_kubernetes_writes_them() -> None:
    """The number is an integer, in the largest unit in which it is one."""
    expected = {
        "1000m": "1",
        "0.5": "500m",
        "1.5Gi": "1536Mi",
        "1024Mi": "1Gi",
        "1000Mi": "1000Mi",
        "2000": "2k",
        "4Gi": "4Gi",
        "500m": "500m",
        "0": "0",
        "1.0": "1",
    }
    assert {text: canonical(text) for text in expected} == expected


@pytest.mark.parametrize("text", ["", "1Gigs", "-1", "4 Gi", "0.0001"])
def test_what_is_no_amount_is_an_error(text: str) -> None:
    """A quantity that is finer than Kubernetes counts is an error too."""
    with pytest.raises(ValueError, match=r"is not an amount|is finer than"):
        canonical(text)
