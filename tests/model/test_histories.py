"""Sessions and jobs together, in random histories, against a trivial model: every rank gets every round's sum, once.

`scripts/model --histories 10000 --seed 0` runs more of them.
"""

import logging
from collections.abc import Callable, Iterator

import pytest

import mutations
from simulation import Counters, Failure, History, run, shrink

HISTORIES = 250

#: Of which a mutation must be caught by one; most are by one of the first twenty.
PATIENCE = 400


# It only computes, some seconds where it has a processor to itself, and many times that where it has not.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """What the aggregators have to say of all the failures that they are put through."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_every_rank_gets_every_sum_once() -> None:
    """Whatever breaks: no operation fails without a reason, none hangs, none gets a wrong sum, nothing is left over."""
    tally = Counters()
    try:
        for seed in range(HISTORIES):
            run(History.draw(seed), tally)
    except Failure as failure:
        pytest.fail(shrink(failure).account)
    assert tally["histories"] == HISTORIES
    assert tally["deliveries"] > 10 * HISTORIES


def test_a_history_repeats_itself() -> None:
    """The seed decides everything: what failed once can be looked at."""
    counts = []
    for _ in range(2):
        tally = Counters()
        run(History.draw(12), tally)
        counts.append(dict(tally))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("mutate", mutations.ALL, ids=lambda mutation: mutation.__name__)
def test_a_mistake_in_the_product_is_found(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The histories are such that each of these mistakes, once made on purpose, makes one of them fail."""
    mutate(monkeypatch)
    assert any(_fails(seed) for seed in range(PATIENCE))


def _fails(seed: int) -> bool:
    try:
        run(History.draw(seed))
    except Failure:
        return True
    return False
