"""Runs sessions, jobs and relays in random histories of faults against a model: every rank gets every sum once.

`scripts/model --histories 10000 --seed 0` runs more histories.
"""

import functools
import logging
from collections.abc import Callable, Iterator

import pytest

import elastic_mutations
import elastic_relay_mutations
import join_mutations
import mutations
import payload_mutations
import relay_mutations
from mutation_search import MisfitError, found_by
from psum.aggregator.core.round import ShardRounds
from simulation import Counters, Failure, History, run, shrink
from simulation.elastic_steps import ELASTIC_STEPS
from simulation.plan import ELASTIC_FAULTS, FAULTS, RELAY_FAULTS, WORK
from simulation.steps import STEPS

HISTORIES = 150

ELASTIC_HISTORIES = 80

#: Those with relays take longer.
ELASTIC_RELAY_HISTORIES = 50


# CPU-bound: some seconds on an idle core, and many times that on a busy machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """Silence the aggregators' log messages about the injected faults."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_every_rank_gets_every_sum_once() -> None:
    """Under all faults no operation fails without cause, hangs or gets a wrong sum, and nothing is left over."""
    counters = Counters()
    try:
        for seed in range(HISTORIES):
            run(History.draw(seed), counters)
    except Failure as failure:
        pytest.fail(shrink(failure).report)
    assert counters["histories"] == HISTORIES
    assert counters["deliveries"] > 10 * HISTORIES
    assert counters["relayed"] > counters["levels"] > 0
    assert counters["direct"] > HISTORIES // 3


def test_an_elastic_job_goes_on_without_lost_ranks() -> None:
    """Under all faults survivors get the same bits and counts, and no operation of theirs fails or hangs."""
    counters = Counters()
    try:
        for seed in range(ELASTIC_HISTORIES):
            run(History.draw(seed, relayed=False, elastic=True), counters)
    except Failure as failure:
        pytest.fail(shrink(failure).report)
    assert counters["ranks lost"] > ELASTIC_HISTORIES
    assert counters["joins"] > ELASTIC_HISTORIES // 2
    assert counters["deliveries"] > 5 * ELASTIC_HISTORIES


def test_an_elastic_job_with_relays_goes_on_without_lost_ranks() -> None:
    """Groups shrink and grow, relays and owners are started again, and survivors get the same bits and counts."""
    counters = Counters()
    try:
        for seed in range(ELASTIC_RELAY_HISTORIES):
            run(History.draw(seed, relayed=True, elastic=True), counters)
    except Failure as failure:
        pytest.fail(shrink(failure).report)
    assert counters["relayed"] == ELASTIC_RELAY_HISTORIES
    assert counters["levels"] > 0
    assert counters["ranks lost"] > ELASTIC_RELAY_HISTORIES
    assert counters["joins"] > ELASTIC_RELAY_HISTORIES // 2
    assert counters["deliveries"] > 5 * ELASTIC_RELAY_HISTORIES


def test_every_step_can_be_drawn() -> None:
    """Each step has a weight, and each weight has a step."""
    assert STEPS.keys() == WORK.keys() | FAULTS.keys() | RELAY_FAULTS.keys()
    assert ELASTIC_STEPS.keys() == ELASTIC_FAULTS.keys()


def test_a_history_repeats_itself() -> None:
    """The seed determines a history completely, so a failure can be reproduced."""
    counts = []
    for _ in range(2):
        counters = Counters()
        run(History.draw(12), counters)
        counts.append(dict(counters))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("mutate", mutations.ALL, ids=lambda mutation: mutation.__name__)
def test_a_bug_in_the_product_is_found(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each injected bug makes at least one history without relays fail."""
    mutate(monkeypatch)
    assert found_by(functools.partial(History.draw, relayed=False), mutations.SEEDS.get(mutate))


@pytest.mark.parametrize("mutate", relay_mutations.ALL, ids=lambda mutation: mutation.__name__)
def test_a_bug_in_a_relay_is_found(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each bug injected into relays makes at least one history with a relay fail."""
    mutate(monkeypatch)
    assert found_by(functools.partial(History.draw, relayed=True), relay_mutations.SEEDS.get(mutate))


@pytest.mark.parametrize("mutate", elastic_mutations.ALL, ids=lambda mutation: mutation.__name__)
def test_a_bug_in_an_elastic_job_is_found(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each bug injected into elastic jobs makes at least one of their histories fail."""
    mutate(monkeypatch)
    draw = functools.partial(History.draw, relayed=False, elastic=True)
    assert found_by(draw, elastic_mutations.SEEDS.get(mutate))


@pytest.mark.parametrize("mutate", elastic_relay_mutations.ALL, ids=lambda mutation: mutation.__name__)
def test_a_bug_in_a_relay_of_an_elastic_job_is_found(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each bug injected into relays of elastic jobs makes at least one of their histories fail."""
    mutate(monkeypatch)
    draw = functools.partial(History.draw, relayed=True, elastic=True)
    assert found_by(draw, elastic_relay_mutations.SEEDS.get(mutate))


@pytest.mark.parametrize("mutate", join_mutations.ALL, ids=lambda mutation: mutation.__name__)
def test_a_bug_in_joins_is_found(mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bug injected into joins makes at least one history of an elastic job fail."""
    mutate(monkeypatch)
    draw = functools.partial(History.draw, relayed=False, elastic=True)
    assert found_by(draw, join_mutations.SEEDS.get(mutate))


@pytest.mark.parametrize("mutate", payload_mutations.ALL, ids=lambda mutation: mutation.__name__)
def test_a_bug_in_the_order_of_payloads_is_found(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each bug in how payloads follow their messages makes at least one history with data connections fail."""
    mutate(monkeypatch)
    draw = functools.partial(History.draw, direct=True, **payload_mutations.ALL[mutate])
    assert found_by(draw, payload_mutations.SEEDS.get(mutate))


def test_a_mutation_that_does_not_fit_the_product_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug counts as found by what it does wrong, not because it lacks an argument or raises an error itself."""
    adopt = ShardRounds.adopt

    def without_an_argument(self: ShardRounds[object], holder: int) -> None:
        adopt(self, holder, 0.0)

    def with_an_error(_self: ShardRounds[object], _holder: int, _now: float) -> None:
        raise RuntimeError("what this mutation needs is no more there")

    draw = functools.partial(History.draw, relayed=False)
    for mutant, error in (
        (without_an_argument, "failed with TypeError at recovery.py"),
        (with_an_error, "failed with RuntimeError at test_histories.py"),
    ):
        monkeypatch.setattr(ShardRounds, "adopt", mutant)
        with pytest.raises(MisfitError, match=error):
            found_by(draw)
