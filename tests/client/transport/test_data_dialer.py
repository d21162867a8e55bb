"""Whether a data connection is worth trying: failures cost little, however often the stream is opened again."""

import pytest

from psum.client.transport.data_dialer import DialProspects


def test_what_cannot_be_opened_is_left_aside_for_longer_and_longer() -> None:
    """The pause grows from a minute to an hour, even if the stream breaks each second: few attempts in a day."""
    prospects, attempts = DialProspects(), []
    for now in range(2 * 24 * 3600):
        if prospects.worth_trying(now):
            attempts.append(now)
            prospects.failed(now)
    assert attempts[:4] == [0, 60, 180, 420]
    assert attempts[-1] - attempts[-2] == 3600
    assert len(attempts) < 60


@pytest.mark.parametrize(("lasting", "useful"), [(0.1, True), (60, False)])
def test_the_third_that_breaks_early_or_without_a_sum_is_the_last(lasting: float, useful: bool) -> None:
    """One may be an accident. A connection that lasts until probes give it up, but brings no sum, counts as short."""
    prospects, now = DialProspects(), 0.0
    ends = []
    for _ in range(3):
        assert prospects.worth_trying(now)
        prospects.opened(now)
        now += lasting
        ends.append(prospects.broke(now, useful=useful))
    assert ends == [False, False, True]
    assert not prospects.worth_trying(now + 59)
    assert prospects.worth_trying(now + 60)


def test_one_that_has_worked_clears_what_was_before() -> None:
    """Rare accidents do not add up, and the next pause is short again."""
    prospects = DialProspects()
    prospects.failed(0)
    prospects.failed(60)
    for now in range(1000, 2000, 100):
        prospects.opened(now)
        assert not prospects.broke(now + 1, useful=True)
        prospects.opened(now + 2)
        assert not prospects.broke(now + 50, useful=True)
    prospects.failed(3000)
    assert prospects.worth_trying(3060)
