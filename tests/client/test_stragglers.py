"""Which ranks an operation waits for, in words."""

from collections.abc import Sequence

from psum import client as psum
from psum.client.stragglers import sentence, whom
from psum.v1 import aggregator_pb2 as pb


def job(rounds: Sequence[tuple[str, int, list[int], str]]) -> pb.JobStatus:
    """A job of five workers. Worker 3 never came, worker 2 has vanished, worker 4 has left."""
    return pb.JobStatus(
        workers=[
            pb.WorkerStatus(rank=rank, worker=f"w{rank}", connected=rank not in (2, 4), left=rank == 4)
            for rank in (0, 1, 2, 4)
        ],
        rounds=[
            pb.RoundStatus(key=key, round=round, waiting_for=ranks, waiting_seconds=9 - place, label=label)
            for place, (key, round, ranks, label) in enumerate(rounds)
        ],
    )


def test_each_missing_rank_is_described() -> None:
    """One waits for this rank elsewhere, one has vanished, one never came, and one has left."""
    found = job([("5", 0, [0], "barrier of 1 × uint8"), ("7", 2, [1, 2, 3, 4], "")])
    text = sentence([found], {("7", 2)}, 0)
    assert text == (
        "Ranks 1-4 have not contributed to it. Rank 1 (w1) waits for rank 0 in barrier of 1 × uint8."
        " Rank 2 (w2) vanished 0.0 s ago. Rank 3 never joined. Rank 4 (w4) has left the job."
    )


def test_other_rounds_do_not_count() -> None:
    """An earlier round of the key and other keys wait for whom they like."""
    found = job([("7", 1, [2], ""), ("8", 2, [2], ""), ("7", 2, [1], "")])
    assert sentence([found], {("7", 2)}, 0).startswith("Rank 1 has not contributed to it.")
    assert sentence([found], {("9", 2)}, 0).startswith("No rank is late")
    assert sentence([job([("7", 2, [0], "")])], {("7", 2)}, 0).endswith(
        "Rank 0 is this process: what it gives is still on its way."
    )


def test_silence_is_said() -> None:
    """If an aggregator does not answer, the sentence says why."""
    with psum.connect(psum.Settings()) as client:
        assert whom(client, []).startswith("No rank is late")
    assert sentence([], {("7", 2)}, 0, ["it is gone"]) == "Which ranks it waits for is not known: it is gone."
