"""Refusals are logged, but a peer cannot fill the log with them."""

import logging

import pytest

from psum.aggregator.access.refusals import LimitedLog


def test_of_each_kind_and_host_there_is_a_line_a_minute_that_counts_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Other hosts and other kinds have their own lines."""
    now = 0.0
    limited = LimitedLog(logging.getLogger("psum.test"), lambda: now)
    for number in range(50):
        limited.warn("token", "ipv4:10.0.0.7", "refused %d", number)
    limited.warn("token", "ipv4:10.0.0.8", "refused another")
    limited.warn("streams", "ipv4:10.0.0.7", "refused for another reason")
    now = 61.0
    limited.warn("token", "ipv4:10.0.0.7", "refused %d", 50)
    assert [record.getMessage() for record in caplog.records] == [
        "refused 0",
        "refused another",
        "refused for another reason",
        "refused 50 (and 49 more times since the last such line)",
    ]


def test_what_is_remembered_is_bounded() -> None:
    """The number of remembered hosts has a limit."""
    limited = LimitedLog(logging.getLogger("psum.test"), lambda: 0.0)
    for number in range(3000):
        limited.warn("token", f"host {number}", "refused")
    assert len(limited._known) == 1000
