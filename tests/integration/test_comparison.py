"""Comparisons of tensors over all ranks, which reach the same verdict."""

import threading
from collections.abc import Callable, Sequence

import pytest

from psum import client as psum
from psum.client import ComparedTensor, Comparison, digest_of

from .conftest import PATIENCE_SECONDS, Fleet


def tensors(**values: float) -> list[ComparedTensor]:
    """Makes tensors by name, with arbitrary values."""
    return [ComparedTensor(name, "float32 (1,)", digest_of(f"{value}".encode())) for name, value in values.items()]


def verdicts(fleet: Fleet, held: Sequence[Sequence[ComparedTensor]]) -> list[str]:
    """Compares the tensors of all ranks; returns each rank's error text, empty if there is none."""

    def compare(client: psum.Client) -> str:
        comparison = Comparison(client, "check")
        comparison.compare(tensors(same=1))
        try:
            comparison.compare(held[client.rank])
        except psum.OutOfStepError as error:
            return f"{error.ranks}: {error}"
        return ""

    return fleet.on_every_rank(len(held), compare)


def test_ranks_that_hold_the_same(fleet: Fleet) -> None:
    """Equal ranks get no error and exchange only a few numbers, whatever the size of the tensors."""

    def compare(client: psum.Client) -> int:
        Comparison(client, "check").compare(tensors(**{f"w{number}": number for number in range(1000)}))
        return client.statistics().push_pull.sent_bytes

    assert fleet.on_every_rank(3, compare) == [3 * 5 * 8] * 3


@pytest.mark.parametrize(
    ("held", "ranks", "words"),
    [
        ([tensors(a=1, b=1), tensors(a=1, b=2)], (1,), "compared with rank 0: rank 1 differs in b of 2 parameters."),
        (
            [tensors(a=1), tensors(a=2), tensors(a=2)],
            (0,),
            "compared with rank 1: rank 0 differs in a of 1 parameters.",
        ),
        (
            [tensors(**dict.fromkeys("abcde", value)) for value in (1, 2, 3)],
            (1, 2),
            "; ".join(f"rank {rank} differs in a, b, c and 2 more of 5 parameters" for rank in (1, 2)),
        ),
        (
            [tensors(a=1, b=1), tensors(a=1)],
            (1,),
            "rank 1 has 1 parameters, of which rank 0 has 2",
        ),
        (
            [tensors(a=1), []],
            (1,),
            "rank 1 has 0 parameters, of which rank 0 has 1",
        ),
        (
            [tensors(a=1, c=1), tensors(a=1, b=1)],
            (1,),
            "rank 1 has b, float32 (1,), as number 1, which is c, float32 (1,), on rank 0",
        ),
        (
            [tensors(a=1), [ComparedTensor("a", "float32 (1,)", tensors(a=1)[0].digest, "gpu(1) against gpu(0)")]],
            (1,),
            "rank 1 has different copies of a: gpu(1) against gpu(0)",
        ),
        (
            [tensors(ü=1), tensors(**{"ü" * 300: 1})],
            (1,),
            f"rank 1 has {'ü' * 254}",
        ),
    ],
    ids=["value", "most", "several", "fewer", "none", "names", "copies", "long name"],
)
def test_ranks_that_differ(fleet: Fleet, held: list[list[ComparedTensor]], ranks: tuple[int, ...], words: str) -> None:
    """All ranks get one error: what differs first, on which ranks, compared with most of the ranks."""
    told = verdicts(fleet, held)
    assert len(set(told)) == 1
    assert told[0].startswith(f"{ranks}: the ranks are out of step, compared with rank ")
    assert words in told[0]
    assert "docs/drift.md" in told[0]


def test_many_ranks_that_differ(fleet: Fleet) -> None:
    """If many ranks differ, the error names some of them."""
    (told,) = set(verdicts(fleet, [tensors(a=max(0, rank - 1)) for rank in range(11)]))
    assert "rank 9 differs in a of 1 parameters; 1 more ranks differ. docs/drift.md" in told


def test_a_rank_that_cannot_look(fleet: Fleet) -> None:
    """If a rank cannot read its tensors, the others learn why."""
    # A rank that has left before any other one came takes its reasons with it.
    joined = threading.Barrier(2)

    def compare(client: psum.Client) -> str:
        joined.wait(10)
        comparison = Comparison(client, "check")
        if client.rank == 1:
            comparison.abort("its parameters could not be read: out of memory")
            return ""
        with pytest.raises(psum.AbortedError, match=r"rank 1 .*key 'check' round 0: its parameters.*out of memory"):
            comparison.compare(tensors(a=1))
        return ""

    fleet.on_every_rank(2, compare)


def test_comparisons_do_not_meet_keys_of_the_program(fleet: Fleet) -> None:
    """A program's own keys, whatever their names, do not collide with comparisons and barriers."""

    def use(client: psum.Client) -> list[int]:
        stores = [client.store() for _ in range(2)]
        values = []
        for store in stores:
            for name in ("check", f"barrier of store {store.number}"):
                value = bytearray([client.rank + 1])
                store.push_pull(name, value)
                values.append(value[0])
            store.barrier()
            Comparison(client, "check").compare(tensors(a=1))
        return values

    assert fleet.on_every_rank(2, use) == [[3] * 4] * 2


def test_a_barrier_waits_for_all(fleet: Fleet) -> None:
    """No rank passes a barrier before the last one has come. Each store has a barrier of its own."""
    come: list[int] = []

    def work(client: psum.Client) -> Sequence[int]:
        first, second = client.store(), client.store()
        seen: list[int] = []
        for store in (first, second, first):
            come.append(client.rank)
            store.barrier()
            seen.append(len(come))
            store.barrier()
        return seen

    assert fleet.on_every_rank(3, work) == [[3, 6, 9]] * 3


def test_a_barrier_that_a_rank_does_not_come_to(make_fleet: Callable[..., Fleet]) -> None:
    """The error of a barrier that times out names the barrier and the missing ranks."""
    fleet = make_fleet(round_timeout=0.3)
    with fleet.worker(0, 2) as client, fleet.worker(1, 2):
        client.store()
        store = client.store()
        with pytest.raises(psum.RoundTimeoutError, match=r"key 'barrier of store 1' round 0 has waited .* for rank 1"):
            store.barrier()


def test_another_client_in_one_process(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that joins twice gets an error that names the client to use, not the advice to take another rank."""
    with fleet.worker(0, 2) as client:
        expected = (
            r"this process is rank 0 of job 'default' already.*use that one, or close it.*shared_client\(\) instead"
        )
        with pytest.raises(psum.TakenError, match=expected) as raised:
            fleet.worker(0, 2)
        assert raised.value.ranks == (0,)
        monkeypatch.setattr("psum.client.clients._shared", client)
        with pytest.raises(psum.TakenError, match=r"already.*: psum\.client\.shared_client\(\) gives it"):
            fleet.worker(0, 2)
    fleet.worker(0, 2, job="another").close()


def test_ranks_that_an_elastic_job_lacks(fleet: Fleet) -> None:
    """A rank that has left, and one that may still come, are not compared. The others are, and hear who differs."""
    elastic = psum.Elastic(1, 4)
    gone = threading.Event()

    def compare(client: psum.Client) -> str:
        Comparison(client, "check").compare(tensors(w=1))
        if client.rank == 1:
            client.close()
            gone.set()
            return ""
        assert gone.wait(PATIENCE_SECONDS)
        Comparison(client, "check").compare(tensors(w=1))
        with pytest.raises(psum.OutOfStepError) as caught:
            Comparison(client, "check").compare(tensors(w=client.rank))
        assert list(caught.value.ranks) == [2]
        return str(caught.value)

    first, _, last = fleet.on_every_rank(3, compare, elastic=elastic)
    assert first == last
