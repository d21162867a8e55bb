"""A worker behind a relay tells the owners of shards that it lives."""

import asyncio
import itertools
import pathlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from psum.client.transport import vouching
from psum.client.transport.connection import AggregatorConnection
from psum.client.transport.credentials import Credentials
from psum.client.transport.vouching import Vouching
from psum.runtime import TlsFiles
from psum.v1 import aggregator_pb2 as pb


class Owners:
    """What was said to owners, each of which answers with the standings in turn.

    Args:
        standings: The answers, of which the last one is repeated.
    """

    def __init__(self, *standings: pb.Standing.ValueType) -> None:
        self.told: list[tuple[str, pb.GetStatusRequest]] = []
        self.heard = asyncio.Event()
        self._standings: Iterator[pb.Standing.ValueType] = itertools.chain(standings, itertools.repeat(standings[-1]))

    async def ask(
        self, address: str, _credentials: Credentials, question: pb.GetStatusRequest, _patience: float
    ) -> pb.GetStatusResponse:
        self.told.append((address, question))
        self.heard.set()
        return pb.GetStatusResponse(standing=next(self._standings))


def make(away: asyncio.Event, *addresses: str, goes_on: Any = lambda: True, token_file: str = "") -> Vouching:
    return Vouching(
        addresses,
        "night",
        pb.Alive(rank=3, incarnation=7),
        relay=cast(AggregatorConnection, SimpleNamespace(away=away)),
        credentials=Credentials(tls=TlsFiles(ca="", cert="", key=""), server_name="", token_file=token_file),
        goes_on=goes_on,
    )


@pytest.mark.parametrize(
    ("addresses", "token", "told"),
    [
        (["10.0.0.1:1", "127.0.0.1:1"], False, {"10.0.0.1:1", "127.0.0.1:1"}),
        (["10.0.0.1:1", "127.0.0.1:1", "unix:/a"], True, {"127.0.0.1:1", "unix:/a"}),
    ],
)
async def test_a_token_goes_unencrypted_to_no_other_machine(
    addresses: list[str], token: bool, told: set[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the relay knows it then, and the owners wait for the relay as long as without these calls."""
    owners, remaining = Owners(pb.STANDING_PRESENT), iter([True] * len(told) + [False] * 9)
    monkeypatch.setattr(vouching, "ask", owners.ask)
    away = asyncio.Event()
    away.set()
    each = make(away, *addresses, goes_on=lambda: next(remaining), token_file=str(tmp_path / "token") if token else "")
    async with asyncio.timeout(30):
        await each.run()
    assert {address for address, _ in owners.told} == told
    assert {(question.job, question.alive.rank, question.alive.incarnation) for _, question in owners.told} == {
        ("night", 3, 7)
    }


async def test_an_owner_is_told_soon_when_the_relay_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the next call would come a minute later."""
    owners, away = Owners(pb.STANDING_PRESENT, pb.STANDING_AWAITED), asyncio.Event()
    monkeypatch.setattr(vouching, "ask", owners.ask)
    task = asyncio.create_task(make(away, "a:1").run())
    async with asyncio.timeout(30):
        await owners.heard.wait()
        for _ in range(2):
            owners.heard.clear()
            away.set()
            await owners.heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(owners.told) == 3


async def test_nothing_is_said_after_the_job_has_ended_for_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner must not wait for it."""
    owners = Owners(pb.STANDING_PRESENT)
    monkeypatch.setattr(vouching, "ask", owners.ask)
    await make(asyncio.Event(), "a:1", goes_on=lambda: False).run()
    assert owners.told == []
