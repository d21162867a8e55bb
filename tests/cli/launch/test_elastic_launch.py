"""`psum launch --elastic` with real aggregators and real workers."""

import re
import signal
from typing import Any

import pytest

from tests.cli.launch.workers import WAIT, Launch, wait_until_ready

#: A worker of a training of some steps, in which a rank may do something else in the third one.
TRAIN = """
import os, sys, time, numpy as np, psum.client
with psum.client.connect() as client:
    store = client.store()
    for step in range(6):
        if step == 3 and client.rank == 1:
            {}
        value = np.ones(3)
        store.push_pull('x', value)
    print('done', *value)
"""


def test_the_others_go_on_without_a_worker_that_is_killed(launch: Launch) -> None:
    """They end well, and so does the launcher. The launch says who is gone."""
    program = TRAIN.format("os.kill(os.getpid(), 9)")
    done = launch("--workers", "3", "--elastic", "2", "--no-replace", python=program)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[0] done 2.0 2.0 2.0", "[2] done 2.0 2.0 2.0"]
    assert "psum: worker rank 1 was killed by SIGKILL; 2 left" in done.stderr.splitlines()


#: A training with a state. Rank 1 kills itself once, and its successor goes on with the others.
JOIN = """
import os, numpy as np, psum.client
with psum.client.connect() as client:
    store, total = client.store(), np.zeros(3)
    state = psum.client.ElasticState(client, {'total': total}, step_number=0, rejoined=0)
    while state.rejoined < 20:
        value = np.ones(3)
        store.push_pull('x', value)
        total += value
        state.step_number += 1
        if client.rank == 1 and state.step_number == 5 and not state.joined:
            os.kill(os.getpid(), 9)
        votes = np.array([client.rank == 1 and state.joined], np.int32)
        store.push_pull('rejoined', votes)
        state.rejoined += int(votes[0])
        state.step()
    print('done', total.tolist(), os.environ['PSUM_JOIN'])
"""


def test_a_worker_that_is_killed_is_replaced(launch: Launch) -> None:
    """Its successor joins with the state of the others. All end with the same bits, and the launch tells of it."""
    done = launch("--workers", "3", "--elastic", "2", python=JOIN)
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line[:9] for line in lines] == ["[0] done ", "[1] done ", "[2] done "]
    assert len({line[9:-2] for line in lines}) == 1, lines
    assert [line[-1] for line in lines] == ["0", "1", "0"]
    assert re.search(
        r"rank 1 was killed by SIGKILL; 2 left; starting another process in its place in \d\.\d s", done.stderr
    )
    assert re.search(r"psum: the new process of worker rank 1 has joined after \d+\.\d s", done.stderr)


def test_too_few_workers_end_the_job(launch: Launch) -> None:
    """The status is that of the worker without which it cannot go on."""
    program = TRAIN.format("raise RuntimeError('no more data')")
    done = launch("--workers", "2", "--elastic", "2:4", "--no-replace", python=program)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert "psum: worker rank 1 ended with status 1 (RuntimeError: no more data); too few are left" in lines
    assert (
        "psum: 1 worker is left, and the job needs at least 2 (--elastic). New processes could not join, because the"
        " others let them in after a step, and make no more steps; ending everything" in lines
    )
    assert lines[-1] == "psum: first failure: rank 1, RuntimeError: no more data"


def test_no_process_is_started_that_could_not_join(launch: Launch) -> None:
    """The members let others in after a step, and there is none with so few. The job does not wait for a time-out."""
    done = launch("--workers", "2", "--elastic", "2", python=TRAIN.format("os.kill(os.getpid(), 9)"))
    assert done.returncode == 128 + signal.SIGKILL
    assert "psum: worker rank 1 was killed by SIGKILL; too few are left" in done.stderr.splitlines()
    assert "New processes could not join" in done.stderr


def test_a_worker_that_ends_before_it_has_joined_is_started_again(launch: Launch, tmp_path: Any) -> None:
    """As a worker that the job begins with: nobody could admit it before all are there. Nor is the job over, though it
    has fewer workers than it needs for a moment.
    """
    mark = tmp_path / "mark"
    program = f"import os, sys\nif os.environ['PSUM_RANK'] == '1' and not os.path.exists({str(mark)!r}):\n"
    program += f"    open({str(mark)!r}, 'w').close()\n    sys.exit(3)\n"
    program += "print(os.environ['PSUM_ELASTIC'], os.environ['PSUM_JOIN'])\n" + TRAIN.format("pass")
    done = launch("--workers", "2", "--elastic", "2", python=program)
    assert done.returncode == 0, done.stderr
    assert "psum: worker rank 1 ended with status 3; 1 left; starting another process in its place in 0.5 s" in (
        done.stderr.splitlines()
    )
    shown = ["[0] 2:2 0", "[0] done 2.0 2.0 2.0", "[1] 2:2 0", "[1] done 2.0 2.0 2.0"]
    assert sorted(done.stdout.splitlines()) == shown


def test_a_failure_is_told_before_what_the_process_has_left_is_ended(launch: Launch, tmp_path: Any) -> None:
    """That takes longer here than the pause before the next process, which is told as it was decided."""
    first, second = tmp_path / "first", tmp_path / "second"
    leave = f"if mkdir '{first}'; then trap '' TERM; sleep 600 & exit 3; else mkdir '{second}'; fi"
    script = f"if [ $PSUM_RANK = 1 ]; then {leave}; else until [ -e '{second}' ]; do sleep 0.05; done; fi"
    done = launch("--workers", "2", "--elastic", "1", "--grace", "1", shell=script)
    assert done.returncode == 0
    assert "psum: worker rank 1 ended with status 3; 1 left; starting another process in its place in 0.5 s" in (
        done.stderr.splitlines()
    )


def test_a_worker_that_never_joins_is_given_up(psum: Any, tmp_path: Any) -> None:
    """The error says how often it was tried. The job goes on, and its status is that of the others."""
    given_up = tmp_path / "given up"
    script = f"[ $PSUM_RANK = 0 ] || exit 5; until [ -e '{given_up}' ]; do sleep 0.05; done"
    process = psum.start("launch", "--workers", "2", "--elastic", "1", "--", "sh", "-c", script)
    told = "4 processes in a row have ended before they had joined, so no other is started"
    assert any(told in line for line in process.stderr)
    given_up.touch()
    assert process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(psum: Any, number: signal.Signals) -> None:
    """No worker is replaced then. The fixture checks that no process is left."""
    process = psum.start("launch", "--elastic", "1", "--workers", "2", "--", "sh", "-c", WAIT)
    wait_until_ready(process, 2)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert process.stderr.read() == f"psum: ending all processes on {number.name}\n"


@pytest.mark.parametrize(
    ("elastic", "complaint"),
    [
        ("0", "'0': expected the least number of workers, or the least and the most, from 1, such as 2 or 2:8"),
        ("x:y", "'x:y': expected the least number of workers"),
        ("5:2", "'5:2': the least number of workers, 5, is larger than the most, 2"),
        ("3", "--workers 2: --elastic says at least 3"),
        ("3:8", "--workers 2: --elastic says at least 3"),
        ("1:1", "--workers 2: --elastic says at most 1"),
    ],
)
def test_a_wrong_range_is_explained(psum: Any, elastic: str, complaint: str) -> None:
    """The error comes before any process starts."""
    done = psum.run("launch", "--workers", "2", "--elastic", elastic, "--", "true")
    assert done.returncode == 2
    assert complaint in done.stderr


def test_a_wrong_range_in_the_environment_is_explained(psum: Any) -> None:
    """PSUM_ELASTIC means the same as the option."""
    done = psum.run("launch", "--workers", "3", "--", "true", PSUM_ELASTIC="5:2")
    assert done.returncode == 2
    assert "'5:2': the least number of workers, 5, is larger than the most, 2" in done.stderr
