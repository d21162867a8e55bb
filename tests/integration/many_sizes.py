"""Rounds with keys of many sizes, whose sums must be the same however they travel."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.wire import report_of


def sums(client: psum.Client, sizes: tuple[int, ...] = (3, 20_000, 700_000, 1_000_001), rounds: int = 4) -> list[bytes]:
    """The values after some rounds with keys of many sizes."""
    chance = np.random.default_rng(client.rank)
    store = client.store()
    values = [chance.standard_normal(size).astype(np.float32) for size in sizes]
    for _ in range(rounds):
        for future in [store.push_pull_async(i, value, priority=-i) for i, value in enumerate(values)]:
            future.result(20)
        for value in values:
            value *= np.float32(0.25)
    store.broadcast("b", values[2])
    return [value.tobytes() for value in values]


def few_sums(client: psum.Client) -> list[bytes]:
    """The same with less data."""
    return sums(client, (3, 20_000, 100_000), 2)


def plane_of(fleet: Any) -> str:
    """How rank 0's payloads cross, as the aggregator's status says."""
    told = report_of(psum.fetch_status(fleet.addresses[0]))
    return str(told["jobs"][0]["workers"][0]["way"])


def message_bytes(client: psum.Client, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the messages that a client makes from now on, in bytes. The list grows with each."""
    sizes: list[int] = []
    take: Callable[[int], bytes | None] = client._session.next_message

    def watched(aggregator: int) -> bytes | None:
        message = take(aggregator)
        sizes.append(len(message or b""))
        return message

    monkeypatch.setattr(client._session, "next_message", watched)
    return sizes
