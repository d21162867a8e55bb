"""The communication hook, without DistributedDataParallel: its keys, averages, priorities and errors."""

from typing import Any

import pytest
import torch

from psum import client as psum
from psum.torch import priority, staging
from psum.torch.ddp_hook import BucketKeys, hook
from psum.torch.outcome import torch_future
from tests.integration.conftest import Fleet


class Bucket:
    """What DistributedDataParallel hands to a hook."""

    def __init__(self, index: int, values: list[float]) -> None:
        self._index = index
        self._tensor = torch.tensor(values)

    def index(self) -> int:
        return self._index

    def buffer(self) -> Any:
        return self._tensor


def test_keys_keep_their_size_and_type() -> None:
    """A bucket that is cut anew gets another key; its former form has its former key again."""
    keys = BucketKeys("hook 0")
    first = keys.key(0, 10, torch.float32)
    assert first == "hook 0, bucket 0"
    assert keys.key(0, 12, torch.float32) == "hook 0, bucket 0, form 1"
    assert keys.key(0, 12, torch.float16) == "hook 0, bucket 0, form 2"
    assert keys.key(0, 10, torch.float32) == first
    assert keys.key(1, 12, torch.float32) == "hook 0, bucket 1"


def test_what_is_ready_last_goes_first() -> None:
    """The last bucket holds the first layers, and they are the most urgent; as are the first parameters."""
    assert sorted(range(4), key=priority.of_ready, reverse=True) == [3, 2, 1, 0]
    assert sorted(range(4), key=priority.of_forward, reverse=True) == [0, 1, 2, 3]


def test_buckets_go_with_their_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook gives each bucket the priority of its index, and sums it as gradients."""
    given = []
    push_pull = staging.push_pull

    def noted(*arguments: Any, priority: int, gradient: bool, **others: Any) -> None:
        given.append((priority, gradient))
        push_pull(*arguments, priority=priority, gradient=gradient, **others)

    monkeypatch.setattr(staging, "push_pull", noted)
    with psum.connect(psum.Settings()) as client:
        average = hook(client.store())
        for index in range(3):
            average(None, Bucket(index, [1.0])).wait()
    assert given == [(priority.of_ready(index), True) for index in range(3)]


def test_averages(fleet: Fleet, job: str) -> None:
    """All ranks get the average of each bucket; two models may share a store, and buckets may be cut anew."""

    def work(client: psum.Client) -> list[list[float]]:
        store = client.store()
        models = [hook(store), hook(store)]
        futures = [
            average(None, Bucket(0, [float(client.rank + model)] * size))
            for size in (2, 3)
            for model, average in enumerate(models)
        ]
        return [future.wait().tolist() for future in futures]

    expected = [[0.5] * 2, [1.5] * 2, [0.5] * 3, [1.5] * 3]
    assert fleet.on_every_rank(2, work, job=job) == [expected] * 2


def test_errors_have_psums_words(fleet: Fleet, job: str) -> None:
    """If buckets differ, waiting for one raises a RuntimeError with psum's text, and a later one psum's error."""

    def work(client: psum.Client) -> tuple[str, str]:
        store = client.store()
        average = hook(store)
        try:
            future = average(None, Bucket(0, [0.0] * (2 + client.rank)))
        except psum.PsumError as error:
            text = str(error)
        else:
            with pytest.raises(RuntimeError) as caught:
                future.wait()
            text = str(caught.value)
        with pytest.raises(psum.DisagreementError) as again:
            average(None, Bucket(0, [0.0] * (2 + client.rank)))
        return text, str(again.value)

    for text, again in fleet.on_every_rank(2, work, job=job):
        assert "hook 0, bucket 0" in text
        assert again in text


def test_a_failed_future_is_an_error_in_callbacks_too() -> None:
    """A callback of a failed future gets psum's error; wrappers of the hook pass it on."""
    with psum.connect(psum.Settings()) as client:
        future = hook(client.store())(None, Bucket(0, [1.0]))
        assert future.then(lambda ended: ended.value() * 2).wait().tolist() == [2.0]
        client.fail(psum.PsumError("what psum says"))
        tensor = torch.zeros(1)
        failed, done = torch_future(tensor)
        done(psum.PsumError("what psum says"))
        with pytest.raises(RuntimeError, match="what psum says"):
            failed.then(lambda ended: ended.value()).wait()
