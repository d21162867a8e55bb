"""What tests.bench.torch_ddp makes of its measurements."""

from typing import Any

import pytest

from tests.bench.torch_ddp import Case, Result, table


def _turn(plain: float, step: float, buckets: float, cpu: float = 1.0) -> dict[str, float]:
    return {
        "plain_ms": plain,
        "step_ms": step,
        "buckets_ms": buckets,
        "plain_cpu_ms": plain,
        "step_cpu_ms": plain + cpu,
        "buckets_cpu_ms": cpu,
    }


def _result(*rounds: Any) -> Result:
    measured = {"rounds": [{"psum": psum, "gloo": gloo} for psum, gloo in rounds], "plane": "shm"}
    return Result(Case("resnet50", 2, "own"), 1.0, measured)


def test_the_communication_is_a_step_less_the_same_step_without() -> None:
    """Ratios are those of the rounds, each of psum and Gloo in turn. The spread over the rounds follows the median."""
    result = _result(
        (_turn(10, 30, 18, 5), _turn(10, 50, 38, 9)),
        (_turn(20, 30, 9, 4), _turn(20, 50, 36, 8)),
        (_turn(10, 30, 20, 6), _turn(12, 52, 30, 7)),
    )
    found = result.as_json()
    assert (found["workload"], found["processes"], found["aggregators"]) == ("resnet50", 2, "own")
    assert found["communication_ms"] == {
        "psum": {"median": 20, "lowest": 10, "highest": 20},
        "gloo": {"median": 40, "lowest": 30, "highest": 40},
        "gloo / psum": {"median": 2, "lowest": 2, "highest": 3},
    }
    assert found["cpu_ms"]["psum"] == {"median": 5, "lowest": 4, "highest": 6}
    *_, row = table([result]).splitlines()
    assert row == (
        "| resnet50 | 2 | own (shm) | 20.0 (10.0-20.0) | 40.0 (30.0-40.0) | 2.00 (2.00-3.00) | ≥ 1.5: reached"
        " | 18.0 (9.0-20.0) | 36.0 (30.0-38.0) | 2.11 (1.50-4.00) | 5 (4-6) | 8 (7-9) |"
    )


@pytest.mark.parametrize(("gloo", "verdict"), [(40.0, "reached"), (39.9, "**missed**")])
def test_the_target_counts_for_the_median_of_a_steps_communication(gloo: float, verdict: str) -> None:
    """It is reached from 1.5 times as fast as Gloo on."""
    result = _result((_turn(10, 30, 20), _turn(10, gloo, 100)))
    assert f"| ≥ 1.5: {verdict} |" in table([result])
