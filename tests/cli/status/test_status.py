"""What `psum status` asks aggregators, and how it shows their answers."""

import contextlib
import json
import os
import pathlib
import pty
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from psum import client as core
from psum.aggregator import Server, Settings
from psum.cli.formatting import ranks, seconds, size
from psum.cli.status.command import status
from psum.cli.status.view import Fleet
from psum.client.transport.loop_thread import LoopThread
from psum.v1 import aggregator_pb2 as pb
from psum.wire import report_of

#: How long anything in these tests may take.
PATIENCE_SECONDS = 30.0

NASTY = "\x1b]0;owned\x07[red]\n"
"""A key's name whose characters would control a terminal."""


@pytest.fixture
def fleet() -> Iterator[tuple[str, ...]]:
    """The addresses of two aggregators."""
    thread = LoopThread("fleet")
    servers = [Server(Settings(listen=("127.0.0.1:0",))) for _ in range(2)]
    for server in servers:
        thread.run(server.start(), PATIENCE_SECONDS)
    yield tuple(server.addresses[0] for server in servers)
    for server in servers:
        thread.run(server.stop(0), PATIENCE_SECONDS)
    thread.stop()


@pytest.fixture
def stalled(fleet: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The addresses of two aggregators with a job that waits for rank 1."""
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(core.connect(core.Settings(aggregators=fleet, rank=rank, num_workers=2, job="stalled")))
            for rank in range(2)
        ]
        fast, slow = (worker.store() for worker in workers)
        result = fast.push_pull_async(NASTY, np.ones(3, np.float32))
        yield fleet
        slow.push_pull(NASTY, np.ones(3, np.float32))
        result.result(PATIENCE_SECONDS)


def wait_until_waiting(addresses: tuple[str, ...]) -> None:
    """Wait until a round waits on one of the aggregators."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(job.rounds for address in addresses for job in core.fetch_status(address).jobs):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_names_the_rank_that_is_waited_for(psum: Any, stalled: tuple[str, ...]) -> None:
    """The line also has the key, without control characters, and its aggregator."""
    wait_until_waiting(stalled)
    done = psum.run("status", *stalled)
    assert done.returncode == 0, done.stderr
    assert "job stalled  2 of 2 workers" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("round 0 of ")]
    assert "\N{REPLACEMENT CHARACTER}]0;owned\N{REPLACEMENT CHARACTER}[red]\N{REPLACEMENT CHARACTER} shard 0 on" in line
    assert line.rstrip().endswith("for rank 1")
    assert "\x1b" not in done.stdout


def test_json_has_one_document_a_line(psum: Any, stalled: tuple[str, ...]) -> None:
    """Each answer stands under the address that was asked. The environment may give the addresses."""
    wait_until_waiting(stalled)
    done = psum.run("status", "--json", "--job", "stalled", PSUM_AGGREGATORS=",".join(stalled))
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)["aggregators"]
    assert [answer["address"] for answer in answers] == list(stalled)
    rounds = [entry for answer in answers for job in answer["jobs"] for entry in job["rounds"]]
    assert [(entry["key"], entry["waiting_for"]) for entry in rounds] == [(NASTY, [1])]
    assert json.loads(psum.run("status", "--json", "--job", "other", stalled[0]).stdout)["aggregators"][0]["jobs"] == []


def test_who_does_not_answer_is_said_and_the_others_are_shown(psum: Any, fleet: tuple[str, ...]) -> None:
    """The exit status is 1."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        # The one that is there has this time for its answer too, on a busy machine.
        asking = [psum.start("status", *form, fleet[0], nobody, "--timeout", "3") for form in ((), ("--json",))]
        done, told = (process.communicate(timeout=PATIENCE_SECONDS)[0] for process in asking)
    assert [process.returncode for process in asking] == [1, 1]
    assert f"{fleet[0]}  serves" in done
    assert f"{nobody}  no answer" in done
    assert "No job is in progress on the aggregators that answered." in done
    assert "it cannot be connected to: Connection refused" in json.loads(told)["aggregators"][1]["error"]


def test_a_range_asks_all_of_its_addresses(psum: Any) -> None:
    """A range is expanded without a shell, as in a container. Nothing listens, so each address has an error."""
    done = psum.run("status", "--json", "127.0.0.1:{1..3}", "--timeout", "0.5")
    assert done.returncode == 1
    answers = json.loads(done.stdout)["aggregators"]
    assert [answer["address"] for answer in answers] == ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]


def test_what_nobody_answered_is_not_said() -> None:
    """Without any answer, nothing is said about jobs. With --job, only that job is mentioned."""

    def shown(*answers: dict[str, Any], job: str = "") -> str:
        console = Console(width=160)
        with console.capture() as capture:
            console.print(Fleet(everything=False, job=job).show(answers, 0.0))
        return capture.get()

    silent = {"address": "a:1", "error": "aggregator a:1 did not say its status: it is not there"}
    own: dict[str, Any] = {"memory_budget_bytes": 0, "memory_reserved_bytes": 0, "draining": False}
    own |= {"uptime_seconds": 1.0, "incarnation": "1", "loop_lag_seconds": 0.0}
    idle = {"address": "b:1", "aggregator": own, "jobs": [], "ended": []}
    assert "in progress" not in shown(silent)
    assert "it is not there" in shown(silent)
    assert "No job is in progress on the aggregators that answered." in shown(silent, idle)
    assert "No job is in progress.\n" in shown(idle)
    assert "Job night is not in progress.\n" in shown(idle, job="night")


@contextlib.contextmanager
def listening(answer: bytes) -> Iterator[str]:
    """Listen at an address, and give everybody the same answer, or none if it is empty."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    accepted.append(connection)
                    if answer:
                        connection.sendall(answer)
                        connection.close()

        accepted: list[socket.socket] = []
        serving = pool.submit(serve)
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            # Also if the test fails. Otherwise the pool would wait for its thread without end.
            server.shutdown(socket.SHUT_RDWR)
            serving.result(PATIENCE_SECONDS)
            for connection in accepted:
                connection.close()


def test_it_waits_as_long_as_it_says(tmp_path: pathlib.Path) -> None:
    """It waits for an address where nothing listens or answers. The error says which."""
    with listening(b"") as silent:
        missing = f"unix:{tmp_path}/none"
        for address, text in ((silent, "accepts connections and does not answer"), (missing, "No such file")):
            begin = time.monotonic()
            with pytest.raises(core.ConnectError, match=rf"did not say its status within .* s: it .*{text}") as caught:
                core.fetch_status(address, timeout=0.5)
            took = time.monotonic() - begin
            said = float(str(caught.value).partition(" within ")[2].partition(" s: ")[0])
            # What is said is rounded.
            assert 0.5 <= said <= took + 0.05
            assert took < 4.0, "as long as by default"


def test_what_waiting_does_not_change_is_said_at_once() -> None:
    """If another program listens, such as an HTTP server, waiting would not help."""
    told = r"did not say its status: it speaks HTTP/1.*status page"
    answer = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with listening(answer) as page, pytest.raises(core.ConnectError, match=told):
        core.fetch_status(page, timeout=PATIENCE_SECONDS)


def test_an_aggregator_that_is_about_to_start_is_waited_for(unused_tcp_port: int) -> None:
    """Nothing listens at first."""
    thread = LoopThread("fleet")
    server = Server(Settings(listen=(f"127.0.0.1:{unused_tcp_port}",)))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(core.fetch_status, f"127.0.0.1:{unused_tcp_port}", timeout=PATIENCE_SECONDS)
        with pytest.raises(TimeoutError):
            asked.result(0.3)
        thread.run(server.start(), PATIENCE_SECONDS)
        assert asked.result(PATIENCE_SECONDS).addresses == [f"127.0.0.1:{unused_tcp_port}"]
    thread.run(server.stop(0), PATIENCE_SECONDS)
    thread.stop()


def test_a_token_of_the_environment_is_shown(psum: Any, tmp_path: pathlib.Path) -> None:
    """An aggregator that requires a token answers with it. Without it, the error says what is missing."""
    (tmp_path / "token").write_text("0123456789abcdef0123\n")
    thread = LoopThread("fleet")
    server = Server(Settings(listen=("127.0.0.1:0",), token_file=str(tmp_path / "token")))
    thread.run(server.start(), PATIENCE_SECONDS)
    try:
        assert psum.run("status", *server.addresses, PSUM_TOKEN_FILE=str(tmp_path / "token")).returncode == 0
        refused = psum.run("status", *server.addresses)
    finally:
        thread.run(server.stop(0), PATIENCE_SECONDS)
        thread.stop()
    assert refused.returncode == 1
    assert "none came" in " ".join(refused.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "no address is given"),
        (("nonsense",), "is not an address"),
        (("a-{2..1}:1",), "has its larger number first"),
    ],
)
def test_what_cannot_be_asked_is_refused(psum: Any, arguments: tuple[str, ...], text: str) -> None:
    """Wrong arguments are usage errors."""
    done = psum.run("status", *arguments, PSUM_AGGREGATORS="")
    assert done.returncode == 2
    assert text in done.stderr


def test_it_watches_in_a_terminal_until_it_is_interrupted(psum: Any, fleet: tuple[str, ...]) -> None:
    """It uses the alternate screen and restores the terminal."""
    leader, follower = pty.openpty()
    process = psum.start_writing_to(
        follower, "status", "--watch", "--interval", "0.1", *fleet, TERM="xterm", COLUMNS="120", LINES="40"
    )
    os.close(follower)
    seen = b""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while seen.count(b"serves") < 6 and time.monotonic() < deadline:
        seen += os.read(leader, 1 << 16)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):
        while part := os.read(leader, 1 << 16):
            seen += part
    os.close(leader)
    assert process.wait(PATIENCE_SECONDS) == 0
    assert b"B/s" in seen
    # The alternate screen was left again.
    assert seen.count(b"\x1b[?1049h") == seen.count(b"\x1b[?1049l") == 1


def test_of_a_large_job_those_who_are_behind_are_listed() -> None:
    """The other workers are only counted."""
    workers = [
        {
            "rank": rank,
            "ranks": [rank],
            "worker": f"host-{rank}",
            "state": "vanished" if rank == 70 else "connected",
            "behind_seconds": 5.0 if rank == 77 else 0.0,
            "way": "shm, stream" if rank == 77 else "shm",
            "last_heard_seconds": 0.1,
            "received_bytes": 0,
            "sent_bytes": 0,
        }
        for rank in range(100)
    ]
    job = {"name": "large", "num_workers": 100, "workers": workers, "rounds": [], "not_joined": [], "uplinks": []}
    job |= dict.fromkeys(("held_bytes", "received_bytes", "sent_bytes", "rounds_completed", "rounds_waiting"), 0)
    own = dict.fromkeys(("uptime_seconds", "memory_budget_bytes", "memory_reserved_bytes", "loop_lag_seconds"), 0)
    answer = {
        "address": "a:1",
        "aggregator": {**own, "incarnation": "1", "draining": False},
        "jobs": [job],
        "ended": [],
    }

    def shown(everything: bool) -> str:
        console = Console(width=160)
        with console.capture() as capture:
            console.print(Fleet(everything=everything).show([answer], 0.0))
        return capture.get()

    (behind,) = [line for line in shown(False).splitlines() if "host-77" in line]
    assert "shm, stream" in behind
    assert "host-70" in shown(False)
    assert "host-60" not in shown(False)
    assert "… and 80 more workers (--all)" in shown(False)
    assert "host-60" in shown(True)


def test_relays_are_shown_with_both_levels() -> None:
    """An aggregator lists the relays with their ranks. A relay lists its workers, and what it forwards
    to. One process may be both."""
    uplinks = [
        pb.UplinkStatus(address="a:1", connected=True, plane=pb.PLANE_DIRECT, data_connection=True, sent_bytes=1 << 20),
        pb.UplinkStatus(address="b:1", outstanding_shards=7, sent_bytes=2 << 20),
    ]
    waiting = pb.RoundStatus(key="w", waiting_for=[3], waiting_seconds=9)
    host = pb.JobStatus(name="job", num_workers=2, uplinks=uplinks, rounds=[pb.RoundStatus(key="v"), waiting])
    for rank in (1, 3):
        host.workers.add(rank=rank, worker=f"node pid {rank}", connected=rank == 1, plane=pb.PLANE_SHM)
    fleet = pb.JobStatus(name="job", num_workers=5)
    fleet.workers.add(rank=0, worker="lonely pid 1", connected=True)
    fleet.workers.add(rank=1, ranks=[1, 3], worker="relay on node", connected=True)

    def shown(**jobs: list[pb.JobStatus]) -> list[str]:
        console = Console(width=200)
        with console.capture() as capture:
            answers = [
                {"address": f"{name}:1", **report_of(pb.GetStatusResponse(jobs=found))} for name, found in jobs.items()
            ]
            console.print(Fleet(everything=False).show(answers, 1.0))
        return [" ".join(line.split()) for line in capture.get().splitlines()]

    lines = shown(a=[fleet, host], b=[fleet])
    assert lines[1].startswith("a:1 serves 0 ms 1 3 "), "one job, three connected workers"
    assert "job job 3 of 5 workers, 0 rounds done, 0 in progress, holds 0 B" in lines
    assert "not joined yet: ranks 2, 4" in lines
    assert "1, 3 connected 0 ms 0 ms 0 B 0 B relay on node" in lines
    assert "a:1 1 of 2 1, 3 1 of 2 aggregators direct 3.0 MiB 0 B 7 shards" in lines
    assert "relay a:1 is not connected to b:1" in lines
    assert "round 0 of w shard 0 at relay a:1 has waited 9.0 s for rank 3" in lines
    assert "1 a:1 connected 0 ms 0 ms 0 B 0 B shm, stream node pid 1" in lines
    assert "3 a:1 vanished 0 ms 0 ms 0 B 0 B shm, stream node pid 3" in lines
    host.num_workers = 3
    assert "relay a:1 waits until 3 workers of its group have joined" in shown(a=[host])
    alone = shown(a=[host])
    assert "job job" in alone
    assert not [line for line in alone if "not joined" in line], "a relay does not know which ranks will join"


def test_the_members_of_an_elastic_job_are_shown_with_their_changes() -> None:
    """Both aggregators know of the loss, and it is listed once. Other jobs have none."""
    lost = pb.MembershipEvent(change=pb.MEMBERSHIP_CHANGE_LOST, rank=1, text="node pid 1 vanished", seconds_ago=90)
    waits = pb.CandidateStatus(rank=1, worker="node pid 9", waiting_seconds=2)
    elastic = pb.ElasticStatus(min=2, max=4, members=2, losses=1, lost=[1], events=[lost], changed_seconds=90)
    job = pb.JobStatus(name="job", num_workers=3, elastic=elastic)
    job.elastic.candidates.append(waits)
    for rank in range(3):
        job.workers.add(rank=rank, worker=f"node pid {rank}", connected=rank != 1, lost=rank == 1)

    def shown(*, everything: bool = False) -> list[str]:
        console = Console(width=200)
        with console.capture() as capture:
            report = report_of(pb.GetStatusResponse(jobs=[job]))
            answers = [{"address": address, **report} for address in ("a:1", "b:1")]
            console.print(Fleet(everything=everything).show(answers, 1.0))
        return [" ".join(line.split()) for line in capture.get().splitlines()]

    lines = shown()
    assert "elastic 2:4: 2 members, 1 loss, 0 joins, 0 departures; last change 1 min 30 s ago" in lines
    assert "lost: rank 1" in lines
    assert "node pid 9 has waited 2.0 s to join as rank 1" in lines
    assert lines.count("lost 1 1 min 30 s node pid 1 vanished") == 1
    assert not [line for line in lines if "they need" in line or "not joined" in line]
    assert [line for line in lines if line.startswith("1 lost ")]
    job.elastic.members = 1
    job.elastic.events.extend(pb.MembershipEvent(change=pb.MEMBERSHIP_CHANGE_LEFT, rank=rank) for rank in range(2, 8))
    assert "rounds wait: they need 2 members" in shown()
    assert "… and 2 earlier changes (--all)" in shown()
    assert "lost 1 1 min 30 s node pid 1 vanished" in shown(everything=True)
    job.ClearField("elastic")
    assert not [line for line in shown() if "elastic" in line]


def test_a_key_that_is_a_number_is_shown_with_what_it_stands_for() -> None:
    """The label is shown without control characters."""
    waiting = pb.RoundStatus(key="0", label="dense0_weight\x1b", waiting_for=[1])
    job = pb.JobStatus(name="job", num_workers=2, rounds=[waiting])
    console = Console(width=200)
    with console.capture() as capture:
        console.print(
            Fleet(everything=False).show([{"address": "a:1", **report_of(pb.GetStatusResponse(jobs=[job]))}], 1.0)
        )
    assert "round 0 of 0 (dense0_weight\N{REPLACEMENT CHARACTER}) shard 0 on a:1" in capture.get()


def test_numbers_are_for_people() -> None:
    """Units keep numbers short."""
    assert [size(n) for n in (0, 1023, 1536, 200 << 20, 5 << 40)] == ["0 B", "1023 B", "1.5 KiB", "200 MiB", "5.0 TiB"]
    assert [seconds(n) for n in (0.25, 1.5, 61, 7200, 200_000)] == [
        "250 ms",
        "1.5 s",
        "1 min 1 s",
        "2 h 0 min",
        "2 d 7 h",
    ]
    assert [ranks(n) for n in ([3], [0, 1, 2, 7, 9, 10])] == ["rank 3", "ranks 0-2, 7, 9-10"]


def test_a_token_is_not_sent_past_a_relay(tmp_path: pathlib.Path) -> None:
    """Workers send theirs to their relay only; this command asks the aggregators themselves."""
    token = tmp_path / "token"
    token.write_text("secret")
    environ = {"PSUM_RELAY": "unix:/run/psum.sock", "PSUM_TOKEN_FILE": str(token), "PSUM_AGGREGATORS": "192.0.2.1:1"}
    done = CliRunner().invoke(status, ["--timeout", "0.1"], env=environ)
    assert done.exit_code == 1
    assert "to 192.0.2.1:1 the token would travel unencrypted" in done.output


def test_a_misspelt_variable_is_told(psum: Any) -> None:
    """Otherwise the aggregator would be asked without the token."""
    done = psum.run("status", "127.0.0.1:1", PSUM_TOKENFILE="token")
    assert (done.returncode, done.stdout) == (1, "")
    assert "PSUM_TOKENFILE: psum has no setting of this name; did you mean PSUM_TOKEN_FILE?" in done.stderr
