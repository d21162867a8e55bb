"""What tests.bench.torch_overlap makes of its measurements."""

import pytest

from tests.bench.torch_overlap import least_exposed, report, table


@pytest.mark.parametrize(
    ("ready", "durations", "end", "expected"),
    [
        ([1.0, 2.0, 3.0], [0.5, 0.5, 0.5], 3.0, 0.5),  # only the last one is exposed
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], 3.0, 4.0),  # the link is busy from the first one on
        ([1.0, 2.0], [0.5, 0.5], 4.0, 0.0),  # all ends before the backward pass
    ],
)
def test_what_must_be_exposed(ready: list[float], durations: list[float], end: float, expected: float) -> None:
    """A bucket begins when it is ready and the one before has ended."""
    assert least_exposed(ready, durations, end) == expected


def test_parts() -> None:
    """With everything hidden that can be, the result is one; with nothing hidden, it is zero."""
    buckets, end = [(0.1, 10), (0.2, 10)], 0.2
    best = report([0.3], [0.1], [0.35], buckets, end)
    assert best == {
        "compute_ms": 300.0,
        "communication_ms": 100.0,
        "step_ms": 350.0,
        "exposed_ms": 50.0,
        "least_exposed_ms": 50.0,
        "hidden": 0.5,
        "of_possible": 1.0,
    }
    assert report([0.3], [0.1], [0.4], buckets, end)["of_possible"] == 0.0


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (
            0.354,
            "92% of",
        ),
        (0.356, "88% of"),
    ],
)
def test_the_output_says_what_was_measured_and_whether_that_is_enough(step: float, said: str) -> None:
    """A sentence names the part of the possible overlap, and for psum the target."""
    ways = {way: report([0.3], [0.1], [step], [(0.1, 10), (0.2, 10)], 0.2) for way in ("psum", "gloo")}
    *_, ours, gloo = table(ways).splitlines()
    assert ours.startswith(f"psum: {said} the communication that DistributedDataParallel's timeline lets overlap")
    assert ours.endswith(f"target ≥ 90%: {'reached' if step == 0.354 else 'missed'}")
    assert "target" not in gloo
