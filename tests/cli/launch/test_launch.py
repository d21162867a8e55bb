"""`psum launch` with real aggregators and real workers: what workers find in their environment, and what is refused."""

import re
import socket
from typing import Any

import pytest

from psum.cli.launch.command import suitable_processes
from psum.cli.launch.store_port import StorePort
from tests.cli.launch.workers import SUM, Launch


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
