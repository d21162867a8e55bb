"""What links carried over time."""

import pytest

from tests.bench.netlab.runs import Trace
from tests.bench.netlab.samples import Samples
from tests.bench.netlab.tables import watch

#: Host 0 sends 100 bytes per second to host 1, from second 1 to 3. Its queue drops a packet in second 2.
LINES = [
    "0.0 0 50 10 10 50\n",
    "1.0 0 50 10 10 50\n",
    "3.0 1 250 10 10 250\n",
    "5.0 1 250 10 10 250\n",
]


def test_bytes_between_two_times() -> None:
    """Bytes are interpolated between samples. Links carry nothing before the first and after the last sample."""
    samples = Samples.parse(LINES)
    assert samples.carried(0, 5) == [(200, 0), (0, 200)]
    assert samples.carried(1.5, 2) == [(50, 0), (0, 50)]
    assert samples.carried(-10, 0) == [(0, 0), (0, 0)]
    assert samples.carried(2, 100) == [(100, 0), (0, 100)]
    assert samples.fullness(1, 3, 400) == [(0.25, 0), (0, 0.25)]


def test_all_bytes_of_a_busy_time_count() -> None:
    """The count runs from the last sample before the time to the first sample after it, as far as there are samples."""
    samples = Samples.parse(LINES)
    for begin, end in ((1, 3), (0.9, 2.9), (-1, 9)):
        assert samples.carried_around(begin, end) == [(200, 0), (0, 200)]
        assert samples.dropped_around(begin, end) == 1
    assert samples.carried_around(3, 5) == [(0, 0), (0, 0)]
    assert samples.dropped_around(3, 5) == 0


def test_a_line_that_was_cut_off_is_left_out() -> None:
    """The sampler can be killed in the middle of a line."""
    assert Samples.parse([*LINES[:2], "2.0 0 15"]).carried(0, 9) == [(0, 0), (0, 0)]


def test_the_table_over_time_shows_when_a_link_was_full() -> None:
    """Each row shows a twentieth of a step, and names the ranks that ended the step in that time."""
    trace = Trace(Samples.parse(LINES), [[(0.0, 0.1), (1.0, 3.0)], [(0.0, 0.2), (1.0, 5.0)]], timed=(1, 2))
    header, *rows = watch(trace, bytes_per_second=100)
    assert "out of host:   0   1" in header
    assert len(rows) == 20
    assert [row.split()[1] for row in rows] == ["100"] * 10 + ["0"] * 10
    assert rows[9].endswith("0 ended step 0")
    assert rows[-1].endswith("1 ended step 0")
    assert (trace.begin, trace.end) == (1.0, 5.0)
    assert float(rows[10].split()[0]) == pytest.approx(2.0)
