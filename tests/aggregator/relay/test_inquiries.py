"""What a relay asks aggregators for its workers, and what it answers if they do not."""

import asyncio
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from psum.aggregator.relay import inquiries as module
from psum.aggregator.relay.core.introduction import Identity
from psum.aggregator.relay.inquiries import Inquiries
from psum.client.transport.credentials import Credentials
from psum.runtime import TlsFiles
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DeniedError, InvalidError

PATIENCE_SECONDS = 10.0

#: An aggregator of two processes, as it says itself, and as a relay hands it on.
STATUS = pb.GetStatusResponse(processes=[pb.Process(addresses=["a:1"]), pb.Process(addresses=["a:3"])])
INQUIRY = pb.Inquiry(processes=STATUS.processes)


class Network:
    """Aggregators that answer when they are told to, and a relay that asks them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, descriptors: Callable[[int], bool] | None = None) -> None:
        self.asked: list[str] = []
        self.questions: list[pb.GetStatusRequest] = []
        self.silent: set[str] = set()
        self.answer = asyncio.Event()
        self.status = STATUS
        self.descriptors = 0
        self.most = 0
        monkeypatch.setattr(module, "ask", self._ask)
        self.relay = Inquiries(
            Identity(7, "here"),
            Credentials(tls=TlsFiles(ca="", cert="", key="", ca_setting=""), server_name=""),
            insecure=False,
            connect_timeout=PATIENCE_SECONDS,
            descriptors=descriptors or self._take,
        )

    async def inquire(self, *addresses: str, token: str = "", patience: float | None = None, **given: Any) -> Any:
        """What the relay answers to a worker."""
        hello = pb.Hello(job="night", group_size=2, aggregators=addresses, **given)
        return list(await self.relay.ask(hello, token, patience))

    def _take(self, count: int) -> bool:
        self.descriptors += count
        self.most = max(self.most, self.descriptors)
        return True

    async def _ask(self, address: str, credentials: Credentials, question: Any, patience: float) -> Any:
        self.asked.append(address)
        self.questions.append(question)
        await (asyncio.Event() if address in self.silent else self.answer).wait()
        return self.status


@pytest.fixture
async def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """Aggregators and a relay."""
    return Network(monkeypatch)


async def begun(tasks: int) -> None:
    """Lets everything that can run run."""
    for _ in range(tasks):
        await asyncio.sleep(0)


async def test_workers_that_ask_together_share_a_question_and_nothing_is_remembered(network: Network) -> None:
    """An aggregator that is started again with another number of processes is asked anew."""
    together = [asyncio.create_task(network.inquire("a:1", "b:1", rank=rank)) for rank in range(4)]
    await begun(20)
    assert network.asked == ["a:1", "b:1"]
    network.answer.set()
    for task in together:
        assert await task == [INQUIRY, INQUIRY]
    network.status = pb.GetStatusResponse()
    assert await network.inquire("a:1") == [pb.Inquiry()]
    assert network.asked == ["a:1", "b:1", "a:1"]
    assert (network.most, network.descriptors) == (4, 0)


async def test_an_aggregator_that_is_silent_keeps_no_worker_beyond_its_patience(network: Network) -> None:
    """The worker hears in time what the others say. Nothing of the question is left."""
    network.silent, network.status = {"b:1"}, STATUS
    network.answer.set()
    found = await network.inquire("a:1", "b:1", patience=0.1)
    assert found == [INQUIRY, pb.Inquiry(problem="it has not answered", address="b:1")]
    await begun(5)
    assert network.descriptors == 0


async def test_who_waits_is_answered_when_the_relay_is_about_to_end(network: Network) -> None:
    """The next process is asked then."""
    waiting = asyncio.create_task(network.inquire("a:1"))
    await begun(5)
    network.relay.end()
    async with asyncio.timeout(PATIENCE_SECONDS):
        [inquiry] = await waiting
    assert inquiry.problem


async def test_a_worker_hears_which_ranks_of_its_job_have_no_process(network: Network) -> None:
    """Each aggregator says it of the job that the worker is about to join."""
    network.answer.set()
    network.status = pb.GetStatusResponse(vacant_ranks=[2, 3])
    assert await network.inquire("a:1") == [pb.Inquiry(vacant_ranks=[2, 3])]
    assert network.questions == [pb.GetStatusRequest(without_jobs=True, job="night")]


async def test_the_next_relay_is_asked_in_the_same_way(network: Network) -> None:
    """With what is behind it, and with the relays so far, so that a circle is noticed. Its answers are handed on."""
    network.answer.set()
    network.status = pb.GetStatusResponse(inquiries=[INQUIRY, pb.Inquiry(problem="gone", address="b:1", final=True)])
    levels = [pb.Relay(address="rack:1", group_size=4), pb.Relay(address="row:1", group_size=8)]
    assert await network.inquire("a:1", "b:1", next_relays=levels, forwarded_by=[5]) == list(network.status.inquiries)
    assert network.asked == ["rack:1"]
    hello = network.questions[0].hello
    assert (hello.job, list(hello.aggregators), hello.group_size) == ("night", ["a:1", "b:1"], 4)
    assert (list(hello.next_relays), list(hello.forwarded_by)) == (levels[1:], [5, 7])
    network.status = pb.GetStatusResponse(draining=True)
    problem = pb.Inquiry(problem="it is about to end", address="rack:1")
    assert await network.inquire("a:1", "b:1", next_relays=levels) == [problem] * 2


@pytest.mark.parametrize(
    ("addresses", "error", "text"),
    [
        (["a:1"], DeniedError, r"question of job 'night' on to a:1: the token .* unencrypted.*PSUM_RELAY_TLS_CA"),
        (["a"], InvalidError, "'a' is not an address"),
    ],
)
async def test_a_token_is_not_exposed_and_only_addresses_are_asked(
    network: Network, addresses: Sequence[str], error: type[Exception], text: str
) -> None:
    """Unencrypted, a token may travel on this machine only. The error says what to set."""
    network.answer.set()
    with pytest.raises(error, match=text):
        await network.inquire(*addresses, token="secret")
    assert network.asked == []
    assert await network.inquire("127.0.0.1:1", token="secret") == [INQUIRY]


async def test_a_lack_of_descriptors_is_a_problem_that_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC would end the process."""
    network = Network(monkeypatch, descriptors=lambda count: count < 0)
    [inquiry] = await network.inquire("a:1")
    assert "file descriptor" in inquiry.problem
    assert not inquiry.final
    assert network.asked == []


@pytest.mark.parametrize("own", [False, True], ids=["the worker's", "the relay's own"])
async def test_a_question_brings_the_token_of_the_uplinks(
    own: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An aggregator that lets in the relay must also answer it: the token is the same as on the connection later."""
    brought = []

    async def ask(address: str, credentials: Credentials, *_: object) -> pb.GetStatusResponse:
        brought.append((address, dict(credentials.metadata())["authorization"]))
        return pb.GetStatusResponse()

    monkeypatch.setattr(module, "ask", ask)
    file = tmp_path / "token"
    file.write_text("of-the-relay")
    credentials = Credentials(tls=TlsFiles("", "", ""), server_name="", token_file=str(file) if own else "")
    asking = Inquiries(Identity(1, "here"), credentials, insecure=True, connect_timeout=5, descriptors=lambda _: True)
    await asking.ask(pb.Hello(job="night", group_size=2, aggregators=["a:1"]), "of-the-worker", None)
    assert brought == [("a:1", "Bearer of-the-relay" if own else "Bearer of-the-worker")]
