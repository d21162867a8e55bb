"""What tests.bench.small_keys measures."""

import pytest

from tests.bench.small_keys import main


def test_it_sums_each_key_in_each_step_and_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """For ranks that come together and one after the other, with messages alike and not."""
    main(["--keys", "600", "--steps", "4", "--workers", "3", "--lags", "0", "0.3"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[lag, kind] for lag in ("0 ms", "300 ms") for kind in ("alike", "differ")]
    assert all(float(median) >= float(least) > 0 for _, _, median, least in rows)
