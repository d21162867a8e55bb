"""A GPU that fails when a result is there is an error for those who wait for it, at once."""

from typing import Any

import pytest
import torch

from psum.client import PsumError
from psum.torch import staging
from psum.torch.callback_threads import CallbackThreads
from psum.torch.outcome import Outcome, wait_for_all
from psum.torch.work import PsumWork

#: How long a wait would take if nobody told of the error.
PATIENCE_SECONDS = 30.0


class Store:
    """What an Outcome needs of a store."""

    client = None


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors are on a GPU on which nothing can be recorded."""

    def current_stream(_: object) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(staging, "devices_of", lambda tensors: [torch.device("cuda", 0)])
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)


def test_a_work_ends_with_the_error() -> None:
    """Whether it is waited for, or asked."""
    work = PsumWork(
        "all_reduce",
        [torch.zeros(1)],
        transfers=1,
        steps=(),
        callbacks=CallbackThreads("callbacks"),
        patience=PATIENCE_SECONDS,
        whom=lambda: "nobody",
    )
    work.done(None)
    assert work.is_completed()
    assert not work.is_success()
    assert str(work.exception()) == "the device is gone"


def test_an_outcome_ends_with_the_error() -> None:
    """It is psum's kind of error, so that those of other transfers are waited for before it is raised."""
    store: Any = Store()
    outcomes = [Outcome(store, torch.zeros(1)) for _ in range(2)]
    for outcome in outcomes:
        outcome(None)
    with pytest.raises(PsumError, match="the result has arrived, and cpu failed: the device is gone"):
        wait_for_all(outcomes)
