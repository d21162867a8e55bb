"""`psum bench` with real processes."""

import json
from typing import Any

import pytest

FIGURES = ("gb_per_s_per_worker", "ms_per_step", "worker_cpu_s_per_gb", "aggregator_cpu_s_per_gb")


def test_json_is_one_line_with_the_fields_of_all_systems(psum: Any) -> None:
    """And with the plane, the element type and the aggregators' share of the work."""
    done = psum.run(
        *(
            "bench",
            "--workers",
            "2",
            "--aggregators",
            "2",
            "--workload",
            "small",
            "--steps",
            "2",
            "--warmup",
            "1",
            "--json",
        )
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    report = json.loads(done.stdout)
    figures = {name: report.pop(name) for name in FIGURES}
    assert report == {
        "system": "psum",
        "workload": "small",
        "workers": 2,
        "servers": 2,
        "plane": "shm",
        "dtype": "float32",
    }
    assert all(figure > 0 for figure in figures.values())
    # Two ways to say the same, but for rounding.
    payload = 256 * 1024 * 4
    assert figures["gb_per_s_per_worker"] == pytest.approx(payload / figures["ms_per_step"] / 1e6, rel=0.05)


def test_plain_lines_where_there_is_no_terminal(psum: Any) -> None:
    """In another element type, and without steps before the timed ones."""
    done = psum.run(
        "bench", "--workers", "1", "--workload", "small", "--dtype", "bfloat16", "--steps", "1", "--warmup", "0"
    )
    assert (done.returncode, done.stderr) == (0, "")
    title, *figures = done.stdout.splitlines()
    assert title == "small in bfloat16, 1 worker, 1 aggregator, plane shm"
    assert [line.partition(":")[0] for line in figures] == [
        "GB/s per worker",
        "ms per step",
        "CPU s per GB, worker",
        "CPU s per GB, aggregators",
    ]


def test_a_worker_that_fails_fails_the_benchmark(psum: Any) -> None:
    """With what went wrong, and without figures."""
    done = psum.run("bench", "--workload", "small", "--json", PSUM_CREDIT_BYTES="plenty")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "PSUM_CREDIT_BYTES='plenty'" in done.stderr
    assert "ended with status 1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workload", "huge"], "'huge' is not one of 'big', 'small', 'resnet50', 'vgg16'"),
        (["--dtype", "complex64"], "'complex64' is not one of"),
        (["--workers", "0"], "0 is not in the range"),
        (["--aggregators", "0"], "0 is not in the range"),
        (["--steps", "0"], "0 is not in the range"),
    ],
)
def test_wrong_usage_is_explained(psum: Any, arguments: list[str], complaint: str) -> None:
    """Before anything is started."""
    done = psum.run("bench", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
