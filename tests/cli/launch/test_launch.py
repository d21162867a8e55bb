"""`psum launch` with real aggregators and real workers."""

import os
import pathlib
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from psum.cli.launch.command import suitable_processes
from psum.cli.launch.store_port import StorePort
from tests.polling import PATIENCE_SECONDS, wait_until

Launch = Callable[..., "subprocess.CompletedProcess[str]"]

#: A worker that waits for ever, once it has said so, and so does a child of its own.
WAIT = "sleep 600 & echo ready; wait"

#: The same, deaf to SIGTERM.
WAIT_DEAF = "trap '' TERM; sleep 600 & echo ready; while :; do wait; done"

#: A worker that takes part in one sum.
SUM = """
import numpy as np, psum.client
with psum.client.connect() as client:
    value = np.full(3, client.rank + 1.0)
    client.store().push_pull('x', value)
    print(*value)
"""


def wait_until_ready(process: "subprocess.Popen[str]", workers: int) -> None:
    """Read a launcher's output until all workers have said that they are ready."""
    assert process.stdout is not None
    lines = {process.stdout.readline() for _ in range(workers)}
    assert lines == {f"[{rank}] ready\n" for rank in range(workers)}


def test_lines_are_prefixed_with_the_rank_of_who_wrote_them(launch: Launch) -> None:
    """Standard output and standard error stay apart. A last line without an end is shown too."""
    done = launch("--workers", "2", shell="echo out $PSUM_RANK; echo err $PSUM_RANK >&2; printf 'no end'")
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == ["[0] no end", "[0] out 0", "[1] no end", "[1] out 1"]
    assert {"[0] err 0", "[1] err 1"} <= set(done.stderr.splitlines())


@pytest.mark.parametrize(
    ("usable", "workers", "aggregators", "processes"),
    [(2, 4, 1, 1), (8, 8, 1, 2), (16, 8, 1, 4), (16, 3, 1, 3), (16, 8, 2, 2), (16, 8, 8, 1), (96, 64, 1, 8)],
)
def test_aggregators_get_as_many_processes_as_suit_the_machine(
    usable: int, workers: int, aggregators: int, processes: int
) -> None:
    """A quarter of the processors for all aggregators together, and no more than workers."""
    assert suitable_processes(usable, workers, aggregators) == processes


def test_an_aggregator_may_have_several_processes(launch: Launch) -> None:
    """Workers find one address in the environment, and use all processes. The fixture checks that none is left."""
    script = SUM + "    print(len(client.settings.aggregators), os.environ['PSUM_AGGREGATORS'].count(','))"
    done = launch("--workers", "2", "--processes", "2", python="import os" + script)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[0] 2 0", "[0] 3.0 3.0 3.0", "[1] 2 0", "[1] 3.0 3.0 3.0"]


def test_workers_find_their_job_in_the_environment(launch: Launch) -> None:
    """Contradicting names of other systems are removed, and so is another fleet's relay."""
    names = "JOB AGGREGATORS RANK NUM_WORKERS LOCAL_RANK LOCAL_SIZE PLANE RELAY"
    script = "echo " + " ".join(f"$PSUM_{name}" for name in names.split()) + ' "<$DMLC_ROLE$BYTEPS_LOCAL_RANK>"'
    done = launch(
        *("--workers", "2", "--aggregators", "2", "--plane", "inline"),
        shell=script,
        PSUM_JOB="mine",
        PSUM_RELAY="10.0.0.5:50051",
        DMLC_ROLE="server",
        BYTEPS_LOCAL_RANK="7",
    )
    lines = sorted(done.stdout.splitlines())
    address = r"127\.0\.0\.1:\d+"
    for rank, line in enumerate(lines):
        assert re.fullmatch(rf"\[{rank}\] mine {address},{address} {rank} 2 {rank} 2 inline off <>", line)
    assert len(lines) == 2


def test_workers_find_their_job_in_torchs_names_too(launch: Launch) -> None:
    """With a port for torch's store, and without what torchrun has set for processes of its own."""
    names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    script = "echo " + " ".join(f"${name}" for name in names.split()) + ' "<$TORCHELASTIC_USE_AGENT_STORE$GROUP_RANK>"'
    environ = {"RANK": "7", "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_RANK": "3"}
    lines = sorted(launch("--workers", "2", shell=script, **environ).stdout.splitlines())
    (port,) = {line.split()[6] for line in lines}
    assert port.isdecimal()
    assert lines == [f"[{rank}] {rank} 2 {rank} 2 127.0.0.1 {port} <>" for rank in range(2)]


def test_the_ports_of_two_jobs_differ() -> None:
    """As long as both run. In the meantime a worker can listen on its job's port, on all addresses."""
    with StorePort() as one, StorePort() as other:
        assert one.number != other.number
        with socket.create_server(("", one.number)) as server:
            assert server.getsockname()[1] == one.number


def test_the_plane_is_that_of_the_environment_where_no_other_is_asked_for(launch: Launch) -> None:
    """PSUM_PLANE counts, as for a worker that is started without the launcher."""
    done = launch("--workers", "1", shell="echo $PSUM_PLANE", PSUM_PLANE="inline")
    assert done.stdout == "[0] inline\n"
    done = launch("--workers", "1", "--plane", "auto", shell="echo $PSUM_PLANE", PSUM_PLANE="inline")
    assert done.stdout == "[0] auto\n"


def test_the_sum_of_two_workers_over_two_aggregators(launch: Launch) -> None:
    """A job runs from start to end without any complaint."""
    done = launch("--workers", "2", "--aggregators", "2", python=SUM)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["[0] 3.0 3.0 3.0", "[1] 3.0 3.0 3.0"]


def test_a_worker_that_never_joined_is_named(launch: Launch) -> None:
    """It ended successfully, but trained alone. A worker that joined a job of one is not reported."""
    script = f"import os\nif os.environ['PSUM_RANK'] == '0':\n os.environ['PSUM_NUM_WORKERS'] = '1'\n exec('''{SUM}''')"
    done = launch("--workers", "2", python=script)
    assert done.returncode == 0
    assert "worker rank 1 ended without having joined the job" in done.stderr
    assert "from psum.mxnet import mx" in done.stderr
    assert "worker rank 0" not in done.stderr


def test_workers_that_never_joined_are_explained_once(launch: Launch) -> None:
    """The first is reported at once with an explanation, the others at the end in one line."""
    done = launch("--workers", "4", shell="sleep 0.$PSUM_RANK")
    assert done.returncode == 0
    first, rest = done.stderr.splitlines()
    assert first.startswith("psum: worker rank 0 ended without having joined the job: nothing was summed for it")
    assert rest == "psum: worker ranks 1, 2, 3 also ended without having joined the job"


def test_progress_that_is_rewritten_is_left_out_where_there_is_no_terminal(launch: Launch) -> None:
    """Only its last state is shown."""
    done = launch("--workers", "1", shell=r"printf '1 %%\r2 %%\r'; printf '3 %%\r'; echo done; printf '4\r5\r'")
    assert done.stdout == "[0] done\n[0] 5\n"


def test_a_terminal_shows_progress_in_colour_as_it_goes(psum: Any) -> None:
    """Each rank has a row at the bottom, which disappears in the end."""
    reading, writing = pty.openpty()
    script = r"printf 'step 1\r'; sleep 0.3; printf 'step 2\r'; sleep 0.3; printf '      \r'; echo finished"
    process = psum.start_writing_to(writing, "launch", "--workers", "2", "--", "sh", "-c", script, TERM="xterm")
    os.close(writing)
    shown = b""
    try:
        while data := os.read(reading, 1 << 16):
            shown += data
    except OSError:
        # A pseudo-terminal reports this error when the other side was closed.
        pass
    finally:
        os.close(reading)
    assert process.wait() == 0
    text = shown.decode()
    for rank in "0", "1":
        for state in "step 1", "step 2":
            assert re.search(rf"\x1b\[\d+m\[{rank}\] \x1b\[0m{state}", text)
    assert "step" not in text[text.rindex("finished") :]
    assert text.count("finished") == 2


def test_the_first_failing_worker_gives_the_status_and_ends_the_others(launch: Launch) -> None:
    """The last line names it."""
    done = launch("--workers", "3", shell='[ "$PSUM_RANK" != 1 ] || exit 3; sleep 600')
    assert done.returncode == 3
    assert done.stderr == (
        "psum: worker rank 1 ended with status 3; ending the others\n"
        "psum: first failure: rank 1, which ended with status 3\n"
    )


#: One rank fails in mid-training by what is put in here. The others hear of it in the next sum.
FAIL = """
import os, sys, time, numpy as np, psum.client
store = psum.client.connect().store()
for step in range(3):
    store.push_pull('x', np.ones(3))
if store.client.rank == 1:
    {}
try:
    store.push_pull('x', np.ones(3))
except psum.client.PsumError as error:
    {}
"""


@pytest.mark.parametrize(
    ("fails", "others", "status", "verdict"),
    [
        ("raise RuntimeError('no more data')", "raise", 1, "rank 1, RuntimeError: no more data"),
        # It leaves the job in good order, after the others have ended.
        ("store.client.close(); time.sleep(1.5); raise KeyError('x')", "raise", 1, "rank 1, KeyError: 'x'"),
        # Neither the cause nor the others print an error.
        ("store.client.close(); time.sleep(1); sys.exit(5)", "sys.exit(1)", 5, "rank 1, which ended with status 5"),
        # The others print an error that is not psum's.
        (
            "store.client.close(); time.sleep(1); sys.exit(5)",
            "raise ValueError",
            5,
            "rank 1, which ended with status 5",
        ),
        # The cause ended with status 0.
        ("sys.exit()", "sys.exit(6)", 6, r"rank [02], which ended with status 6 after the report: rank 1 \(.*"),
    ],
    ids=["raises", "raises late", "exits late", "others hide it", "ends well"],
)
def test_the_first_cause_is_named_and_not_who_ended_first(
    launch: Launch, fails: str, others: str, status: int, verdict: str
) -> None:
    """The last line, after the output of all others, names the cause. Its status is the launcher's."""
    done = launch("--workers", "3", python=FAIL.format(fails, others))
    assert done.returncode == status, done.stderr
    assert re.fullmatch(f"psum: first failure: {verdict}", done.stderr.splitlines()[-1])


def test_a_worker_that_is_said_to_have_failed_and_does_not_end_is_not_waited_for_long(launch: Launch) -> None:
    """Then the first worker with a report about it is named, with the report."""
    program = FAIL.format("store.client.close(); time.sleep(600)", "raise")
    done = launch("--workers", "2", "--grace", "0.5", python=program)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("psum: first failure: rank 0, WorkerLostError: rank 1 (")


def test_what_to_do_about_mxnet_imported_before_psum(launch: Launch) -> None:
    """On Python 3.12, MXNet itself fails in a line of the user's program."""
    done = launch("--workers", "2", python="raise AttributeError(\"module 'numpy' has no attribute 'bool'.\\nmore\")")
    assert "first failure: rank" in done.stderr
    assert "write `from psum.mxnet import mx`" in done.stderr


def test_a_worker_that_was_killed_gives_the_status_that_a_shell_would(launch: Launch) -> None:
    """The status is 128 plus the number of the signal."""
    done = launch("--workers", "2", shell='[ "$PSUM_RANK" != 0 ] || kill -KILL $$; sleep 600')
    assert done.returncode == 128 + signal.SIGKILL
    assert "worker rank 0 was killed by SIGKILL" in done.stderr


def test_a_job_that_broke_off_in_mid_round_ends_at_once(psum: Any) -> None:
    """The aggregator does not wait for contributions of workers that have ended."""
    program = """
import os, numpy as np, psum.client
store = psum.client.connect().store()
if store.client.rank == 0:
    waiting = store.push_pull_async('x', np.ones(3))
# When this sum is there, rank 0's earlier contribution has arrived too.
store.push_pull('y', np.ones(3))
if store.client.rank == 1:
    os.abort()
waiting.result()
"""
    started = time.monotonic()
    done = psum.run("launch", "--workers", "2", "--grace", "25", "--", sys.executable, "-c", program, PSUM_GRACE="25s")
    assert done.returncode == 128 + signal.SIGABRT
    assert time.monotonic() - started < 15


def test_what_a_worker_started_ends_with_it(launch: Launch) -> None:
    """This holds even if it keeps the worker's output open."""
    done = launch("--workers", "1", shell="sleep 600 & echo done")
    assert (done.returncode, done.stdout) == (0, "[0] done\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything(psum: Any, number: signal.Signals) -> None:
    """Workers, their children and aggregators end. The fixture checks that no process is left."""
    process = psum.start("launch", "--workers", "2", "--aggregators", "2", "--", "sh", "-c", WAIT)
    wait_until_ready(process, 2)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert f"ending all processes on {number.name}" in process.stderr.read()


def test_a_signal_that_is_ignored_from_the_start_ends_nothing(psum: Any) -> None:
    """Under nohup, a launch outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = psum.start("launch", "--workers", "1", "--", "sh", "-c", WAIT)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until_ready(process, 1)
    process.send_signal(signal.SIGHUP)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert process.stderr.read() == "psum: ending all processes on SIGTERM\n"


def test_signals_of_schedulers_are_passed_on_to_workers(psum: Any) -> None:
    """Slurm sends such a signal before a job's time is over, so that the program can save its state."""
    script = "trap 'echo saved; kill $!; exit 0' USR1; sleep 600 & echo ready; wait"
    process = psum.start("launch", "--workers", "2", "--", "sh", "-c", script)
    wait_until_ready(process, 2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(PATIENCE_SECONDS) == 0
    assert sorted(process.stdout.read().splitlines()) == ["[0] saved", "[1] saved"]


#: A program that becomes the parent of all whose own parent has ended, as process 1 of a container is.
AS_INIT = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_as_process_1_it_leaves_no_zombies(psum: Any, tmp_path: pathlib.Path) -> None:
    """It reaps orphans while workers run. Its own children end as usual."""
    file, end = tmp_path / "orphans", tmp_path / "end"
    orphan = f"(setsid sh -c 'echo $$ >>{file}; exit 3' &)"
    script = f"{orphan}; {orphan}; {orphan}; echo ready; until [ -e {end} ]; do sleep 0.05; done; exit 4"
    process = psum.start_with([sys.executable, "-c", AS_INIT], "launch", "--workers", "1", "--", "sh", "-c", script)
    wait_until_ready(process, 1)
    wait_until(lambda: file.exists() and len(file.read_text().split()) == 3)
    wait_until(lambda: not any(pathlib.Path("/proc", pid).exists() for pid in file.read_text().split()))
    end.touch()
    assert process.wait(PATIENCE_SECONDS) == 4


def test_it_runs_where_the_end_of_children_is_ignored(psum: Any) -> None:
    """A parent that ignores SIGCHLD passes this on, and the system would then discard the status of workers."""
    ignore = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = psum.start_with([sys.executable, "-c", ignore], "launch", "--workers", "1", "--", "sh", "-c", "exit 7")
    assert process.wait(PATIENCE_SECONDS) == 7


def test_what_does_not_end_on_sigterm_is_killed_after_the_grace_period(psum: Any) -> None:
    """Processes that ignore SIGTERM do not outlive the launcher."""
    process = psum.start("launch", "--workers", "2", "--grace", "0.2", "--", "sh", "-c", WAIT_DEAF)
    wait_until_ready(process, 2)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM


def test_a_worker_that_is_stopped_ends_without_the_grace_period(launch: Launch, tmp_path: pathlib.Path) -> None:
    """SIGCONT lets a stopped worker handle SIGTERM."""
    file = tmp_path / "pid"
    stopped = f"until grep -q ') T ' /proc/$(cat {file})/stat; do :; done"
    script = f"if [ $PSUM_RANK = 0 ]; then echo $$ > {file}; kill -STOP $$; sleep 600; fi; {stopped}; exit 3"
    started = time.monotonic()
    done = launch("--workers", "2", "--grace", "25", shell=script)
    assert done.returncode == 3
    assert time.monotonic() - started < 15


def test_a_second_signal_does_not_wait_for_the_grace_period(psum: Any) -> None:
    """The grace period is longer here than the test may take."""
    process = psum.start("launch", "--workers", "2", "--grace", "3600", "--", "sh", "-c", WAIT_DEAF)
    wait_until_ready(process, 2)
    process.terminate()
    # Send the second signal after the launcher has handled the first.
    assert "ending all processes" in process.stderr.readline()
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM


def test_a_launcher_that_is_killed_leaves_nothing_running(psum: Any) -> None:
    """The guard ends its processes. The fixture checks that no process is left."""
    process = psum.start("launch", "--workers", "2", "--", "sh", "-c", WAIT)
    wait_until_ready(process, 2)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_an_aggregator_that_dies_ends_the_job(psum: Any) -> None:
    """The error names the aggregator."""
    process = psum.start("launch", "--workers", "2", "--aggregators", "2", "--", "sh", "-c", WAIT)
    wait_until_ready(process, 2)
    victim = next(pid for pid, command in psum.left().items() if "psum.cli aggregator" in command)
    os.kill(victim, signal.SIGKILL)
    assert process.wait() == 128 + signal.SIGKILL
    assert re.search(
        r"aggregator \d at 127\.0\.0\.1:\d+ was killed by SIGKILL while workers need it", process.stderr.read()
    )


def test_an_aggregator_that_cannot_start_ends_the_launch_with_its_own_words(launch: Launch) -> None:
    """No worker is started."""
    done = launch("--workers", "1", shell="echo started", PSUM_THREADS="many")
    assert (done.returncode, done.stdout) == (1, "")
    assert "[aggregator 0]" in done.stderr
    assert "PSUM_THREADS='many'" in done.stderr
    assert "aggregator 0 ended with status 1 before it was ready" in done.stderr


def test_a_misspelt_variable_is_told_before_anything_is_started(launch: Launch) -> None:
    """The error appears once, not for each process."""
    done = launch("--workers", "2", shell="echo started", PSUM_NUM_WORKER="2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "PSUM_NUM_WORKER: psum has no setting of this name; did you mean PSUM_NUM_WORKERS?" in done.stderr
    assert done.stderr.count("PSUM_NUM_WORKERS") == 1


def test_what_secures_other_aggregators_is_left_aside(launch: Launch) -> None:
    """TLS files and tokens for other aggregators are removed, and Kubernetes' variables for their service are too."""
    names = ["TLS_CA", "TLS_CERT", "TLS_KEY", "TOKEN_FILE"]
    elsewhere = {f"PSUM_{name}": "/nowhere" for name in names}
    elsewhere |= {f"PSUM_AGGREGATOR_{name}": "/nowhere" for name in ("TLS_CLIENT_CA", *names[1:])}
    service = {"PSUM_AGGREGATOR_SERVICE_HOST": "10.96.0.7", "PSUM_DATA_PORT": "tcp://10.96.0.8:50052"}
    done = launch("--workers", "2", python=SUM, PSUM_INSECURE="1", **elsewhere, **service)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["[0] 3.0 3.0 3.0", "[1] 3.0 3.0 3.0"]


def test_a_command_that_does_not_exist_is_named(psum: Any) -> None:
    """The status is the one that a shell would give."""
    done = psum.run("launch", "--workers", "2", "--", "no-such-command")
    assert done.returncode == 127
    assert done.stderr == "psum: cannot run 'no-such-command' as a worker: No such file or directory\n"


def test_everything_ends_when_nobody_reads_the_output_any_more(psum: Any) -> None:
    """This happens in a pipe to `head`."""
    process = psum.start("launch", "--workers", "1", "--", sys.executable, "-c", "while True: print('line')")
    assert process.stdout.readline() == "[0] line\n"
    process.stdout.close()
    assert process.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workers", "2"], "Missing argument 'COMMAND...'"),
        (["--", "true"], "Missing option '--workers'"),
        (["--workers", "2", "--aggergators", "2", "--", "true"], "No such option '--aggergators'"),
        (["--workers", "0", "--", "true"], "0 is not in the range"),
        (["--workers", "1", "--aggregators", "0", "--", "true"], "0 is not in the range"),
        (["--workers", "1", "--plane", "smoke", "--", "true"], "'smoke' is not one of"),
    ],
)
def test_wrong_usage_is_explained(psum: Any, arguments: list[str], complaint: str) -> None:
    """The error comes before any process starts."""
    done = psum.run("launch", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
