"""A client's timeline with real aggregators, from the settings to the output of `psum timeline`."""

import json
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from psum import client as psum
from psum.aggregator.service.send_queue import SendQueue
from psum.aggregator.sums.sums import add_up
from psum.cli.timeline.command import timeline
from tests.polling import wait_until
from tests.trace_events import checked

#: How long anything in these tests may take.
PATIENCE_SECONDS = 30.0

#: How long the slow rank lets the others wait, in each step, when all of them wait for it. Longer than a busy machine
#: takes to carry its gradients, or those would be the cause.
DELAY_SECONDS = 0.3

STEPS = 4


def summary(*paths: pathlib.Path) -> dict[str, Any]:
    """Returns the output of `psum timeline` for programs."""
    done = CliRunner().invoke(timeline, ["--json", *map(str, paths)])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.output)
    return found


def train(client: psum.Client, before_step: Callable[[int], None] = lambda step: None, steps: int = STEPS) -> None:
    """Runs steps with a large key and a small one, with weights first and another key now and then."""
    store = client.store()
    store.broadcast("weights", np.ones(5, np.float32))
    large, small = np.ones(700_000, np.float32), np.ones(5, np.float32)
    for step in range(steps):
        before_step(step)
        results = [store.push_pull_async("large", large), store.push_pull_async("small", small, priority=1)]
        for result in results:
            result.result(PATIENCE_SECONDS)
        if step % 2:
            store.push_pull("loss", np.ones(1, np.float32))
            store.broadcast("weights", np.ones(5, np.float32))


@pytest.mark.parametrize("plane", ["inline", "direct", "shm"])
def test_the_slow_rank_is_named(fleet: Any, tmp_path: pathlib.Path, plane: str) -> None:
    """`psum timeline` names the slow rank and what the others lost to it. Perfetto can read each file."""

    def waiting() -> int:
        jobs = fleet.servers[0]._service.status().jobs
        # Three shards of the large key, and the small one.
        return sum(len(round.waiting_for) == 1 for round in jobs[0].rounds)

    def work(client: psum.Client) -> None:
        def before_step(step: int) -> None:
            if client.rank == 1:
                wait_until(lambda: waiting() == 4)
                time.sleep(DELAY_SECONDS)

        train(client, before_step)

    traced = {"trace_dir": str(tmp_path), "trace_start_step": 1, "trace_end_step": 2}
    fleet.on_every_rank(3, work, plane=plane, partition_bytes=1 << 20, **traced)
    paths = [tmp_path / f"rank-{rank}.json" for rank in range(3)]
    assert sorted(tmp_path.iterdir()) == paths
    for path in paths:
        checked(path)
    found = summary(*paths)
    assert [s["step"] for s in found["steps"]] == [1, 2]
    assert [s["waited_for"] for s in found["steps"]] == [1, 1]
    slowest = found["slowest"][0]
    assert (slowest["rank"], slowest["steps"], slowest["cause"]) == (1, 2, "computing")
    assert slowest["waiting_seconds"] >= DELAY_SECONDS
    for rank, times in found["steps"][1]["ranks"].items():
        assert times["unknown"] == 0
        if rank == "1":
            assert times["computing"] >= DELAY_SECONDS
            assert "1" not in times["waited_for"] or times["waited_for"]["1"] == 0
        else:
            assert times["waited_for"]["1"] >= DELAY_SECONDS
    # One file says so too.
    assert summary(paths[0])["slowest"][0]["rank"] == 1


def test_a_slow_sum_is_told_from_the_wire(fleet: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`psum timeline` tells a slow sum from a slow wire and from a slow rank."""

    def slowly(*arguments: Any) -> None:
        time.sleep(DELAY_SECONDS)
        add_up(*arguments)

    monkeypatch.setattr("psum.aggregator.service.summation.add_up", slowly)
    together = threading.Barrier(2)

    def work(client: psum.Client) -> None:
        store = client.store()
        for _ in range(2):
            together.wait(PATIENCE_SECONDS)
            store.push_pull("w", np.ones(100_000, np.float32))

    fleet.on_every_rank(2, work, trace_dir=str(tmp_path), trace_start_step=0)
    for times in summary(*tmp_path.iterdir())["steps"][1]["ranks"].values():
        assert times["summing"] >= DELAY_SECONDS


def test_the_file_is_written_when_the_last_step_is_over(fleet: Any, tmp_path: pathlib.Path) -> None:
    """The client writes the file after the last step. The training goes on and requests no more timings."""
    settings = {"trace_dir": str(tmp_path / "new" / "folder"), "trace_start_step": 1, "trace_end_step": 2}
    path = tmp_path / "new" / "folder" / "rank-0.json"
    with fleet.worker(0, 1, **settings) as client:
        train(client)
        wait_until(path.exists)
        assert client._session.recorder is None
        written = path.read_bytes()
        train(client)
    assert path.read_bytes() == written
    assert [s["step"] for s in summary(path)["steps"]] == [1, 2]
    steps = {e["args"]["step"] for e in checked(path)["traceEvents"] if e["ph"] == "X" and e["name"] == "loss"}
    assert steps == {1}


def test_a_training_that_ends_before_leaves_what_there_is(fleet: Any, tmp_path: pathlib.Path) -> None:
    """If the training ends before the last step, the client writes the file when it is closed."""
    with fleet.worker(0, 1, trace_dir=str(tmp_path), trace_start_step=1, trace_end_step=1000) as client:
        train(client)
        assert list(tmp_path.iterdir()) == []
    assert [s["step"] for s in summary(tmp_path / "rank-0.json")["steps"]] == [1, 2, 3]


def test_a_broken_connection_is_survived(fleet: Any, tmp_path: pathlib.Path) -> None:
    """The training and the timeline survive a broken connection."""
    with fleet.worker(0, 1, trace_dir=str(tmp_path), trace_start_step=0, trace_end_step=1000) as client:

        def cut(step: int) -> None:
            if step == 2:
                fleet.cut()

        train(client, cut)
    checked(tmp_path / "rank-0.json")
    assert [s["step"] for s in summary(tmp_path / "rank-0.json")["steps"]] == [0, 1, 2, 3]


def test_a_rank_that_fails_leaves_the_steps_before(fleet: Any, tmp_path: pathlib.Path) -> None:
    """If a rank fails, the timeline has the steps before the failure."""

    def work(client: psum.Client) -> None:
        train(client)
        client.store().push_pull_async("differs", np.ones(client.rank + 1, np.float32)).exception(PATIENCE_SECONDS)

    fleet.on_every_rank(2, work, trace_dir=str(tmp_path), trace_start_step=0, trace_end_step=1000)
    assert [s["step"] for s in summary(*tmp_path.iterdir())["steps"]] == [0, 1, 2]


def test_without_a_directory_nothing_is_asked_for(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a directory, the client requests no timings."""
    told: list[object] = []
    monkeypatch.setattr(SendQueue, "put_timing", lambda queue, timing: told.append(timing))
    with fleet.worker(0, 1) as client:
        train(client)
        assert client._session.recorder is None
    assert told == []
    with fleet.worker(0, 1, trace_dir="/dev/null/none") as client:
        train(client)
    assert told == []


def test_ranks_need_not_all_ask(fleet: Any, tmp_path: pathlib.Path) -> None:
    """One rank can record a timeline although the others do not."""

    def work(client: psum.Client) -> None:
        train(client)

    with fleet.worker(0, 2, trace_dir=str(tmp_path), trace_start_step=0) as asking, fleet.worker(1, 2) as silent:
        threads = [threading.Thread(target=work, args=(client,)) for client in (asking, silent)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
    (path,) = tmp_path.iterdir()
    assert summary(path)["seconds"]["unknown"] == 0


def test_a_step_that_never_came_is_told(fleet: Any, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """If no step was recorded, the client warns and leaves no empty file."""
    with caplog.at_level(logging.WARNING, "psum"), fleet.worker(0, 1, trace_dir=str(tmp_path)) as client:
        train(client)
    assert "no timeline: the training had no step from 10 to 20 (PSUM_TRACE_START_STEP" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_does_not_stop_the_training(
    fleet: Any, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The client warns at the start if the directory cannot be written, or at the end if it was lost meanwhile."""
    file = tmp_path / "file"
    file.touch()
    lost = tmp_path / "lost"
    with caplog.at_level(logging.WARNING, "psum"):
        with fleet.worker(0, 1, trace_dir=str(file), trace_start_step=0) as client:
            assert f"no timeline in {file} (PSUM_TRACE_DIR): " in caplog.text
            train(client)
        with fleet.worker(0, 1, trace_dir=str(lost), trace_start_step=0) as client:
            train(client)
            os.rmdir(lost)
    assert f"no timeline in {lost / 'rank-0.json'} (PSUM_TRACE_DIR): No such file or directory" in caplog.text


def test_a_job_of_one_without_aggregators_has_nothing_to_show(tmp_path: pathlib.Path) -> None:
    """A job of one worker without aggregators has no steps to show."""
    with psum.connect(psum.Settings(trace_dir=str(tmp_path), trace_start_step=0)) as client:
        train(client)
    checked(tmp_path / "rank-0.json")
    done = CliRunner().invoke(timeline, [str(tmp_path / "rank-0.json")])
    assert done.output == f"Error: {tmp_path / 'rank-0.json'} has no complete step\n"
