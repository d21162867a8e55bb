"""A worker's settings come from psum's names, or from those that BytePS, ps-lite and Kubernetes use."""

import re
import signal
from typing import Any

import pytest

from psum.client import ConfigurationError, Elastic, Settings, connect


def test_nothing_set_is_a_job_of_one_worker_without_aggregators() -> None:
    """The defaults need no fleet."""
    settings = Settings.from_environment({})
    assert (settings.rank, settings.num_workers, settings.aggregators) == (0, 1, ())
    assert (settings.partition_bytes, settings.credit_bytes) == (2 << 20, 8 << 20)


def test_psums_own_names() -> None:
    """PSUM_… variables are read and parsed."""
    settings = Settings.from_environment(
        {
            "PSUM_JOB": "night",
            "PSUM_AGGREGATORS": "a:1, unix:/b",
            "PSUM_RANK": "1",
            "PSUM_NUM_WORKERS": "2",
            "PSUM_PARTITION_BYTES": "512KiB",
            "PSUM_CONNECT_TIMEOUT": "5",
        }
    )
    assert (settings.job, settings.aggregators, settings.rank, settings.num_workers) == (
        "night",
        ("a:1", "unix:/b"),
        1,
        2,
    )
    assert (settings.partition_bytes, settings.connect_timeout) == (512 << 10, 5)


def test_byteps_and_ps_lite_names_give_rank_and_size() -> None:
    """rank = worker_id · local_size + local_rank; the number of workers counts processes, not nodes."""
    environ = {
        "DMLC_NUM_WORKER": "3",
        "DMLC_WORKER_ID": "2",
        "BYTEPS_LOCAL_RANK": "1",
        "BYTEPS_LOCAL_SIZE": "4",
        "BYTEPS_PARTITION_BYTES": "4096000",
        "PSUM_AGGREGATORS": "a:1",
    }
    settings = Settings.from_environment(environ)
    assert (settings.rank, settings.num_workers, settings.local_rank, settings.local_size) == (9, 12, 1, 4)
    assert settings.partition_bytes == 4096000
    assert Settings.from_environment(environ | {"BYTEPS_GLOBAL_RANK": "5"}).rank == 5
    assert Settings.from_environment(environ | {"PSUM_RANK": "7"}).rank == 7
    assert Settings.from_environment(environ | {"PSUM_NUM_WORKERS": "10"}).num_workers == 10


def test_kubernetes_gives_the_rank_of_an_indexed_job() -> None:
    """JOB_COMPLETION_INDEX is the rank if nothing else sets it."""
    environ = {"JOB_COMPLETION_INDEX": "3", "PSUM_NUM_WORKERS": "4", "PSUM_AGGREGATORS": "a:1"}
    assert Settings.from_environment(environ).rank == 3
    assert Settings.from_environment(environ | {"PSUM_RANK": "2"}).rank == 2


def test_a_worker_of_an_indexed_job_that_leaves_has_not_done_its_work() -> None:
    """The Job would take status 0 for that, and start no other. A setting overrides it."""
    environ = FOUR | {"PSUM_ELASTIC": "2"}
    assert Settings.from_environment(environ).leave_status == 0
    environ |= {"JOB_COMPLETION_INDEX": "3"}
    assert Settings.from_environment(environ).leave_status == 128 + signal.SIGTERM
    assert Settings.from_environment(environ | {"PSUM_LEAVE_STATUS": "0"}).leave_status == 0


FOUR = {"PSUM_NUM_WORKERS": "4", "PSUM_AGGREGATORS": "a:1,b:1"}


@pytest.mark.parametrize(
    ("environ", "elastic", "joining"),
    [
        ({}, None, False),
        ({"PSUM_ELASTIC": "off"}, None, False),
        ({"PSUM_ELASTIC": "2"}, Elastic(2, 4), False),
        ({"PSUM_ELASTIC": " 2:8 "}, Elastic(2, 8), False),
        ({"PSUM_ELASTIC": "2:8", "PSUM_JOIN": "1"}, Elastic(2, 8), True),
        ({"PSUM_ELASTIC": "2:8", "PSUM_RANK": "5"}, Elastic(2, 8), True),
    ],
)
def test_an_elastic_job_has_a_minimum_and_a_maximum(
    environ: dict[str, str], elastic: Elastic | None, joining: bool
) -> None:
    """The maximum is the number of workers if it is left out. A rank that is not among the first ones joins."""
    settings = Settings.from_environment(FOUR | environ)
    assert (settings.elastic, settings.joining) == (elastic, joining)


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"PSUM_NUM_WORKERS": "2"}, "need at least one aggregator"),
        ({"PSUM_RANK": "2", "PSUM_NUM_WORKERS": "2", "PSUM_AGGREGATORS": "a:1"}, "ranks go from 0 to 1"),
        ({"PSUM_LOCAL_RANK": "1"}, "local rank 1 of 1"),
        ({"PSUM_AGGREGATORS": "a:1,a:1"}, "names one twice"),
        ({"PSUM_AGGREGATORS": "somewhere"}, "expected host:port"),
        ({"PSUM_AGGREGATORS": "a-{0..1}:1,a-1:1"}, "names one twice: a-0:1, a-1:1, a-1:1"),
        ({"PSUM_AGGREGATORS": "a-{3..1}:1"}, "PSUM_AGGREGATORS=.*expected the smaller number first"),
        ({"PSUM_AGGREGATORS": "a-{0..2}:1", "PSUM_AGGREGATOR_WEIGHTS": "1"}, "1 weights for 3 aggregators"),
        ({"PSUM_AGGREGATORS": "a:1,b:1", "PSUM_AGGREGATOR_WEIGHTS": "1"}, "1 weights for 2 aggregators"),
        ({"PSUM_PARTITION_BYTES": "1"}, "expected 16 to"),
        ({"PSUM_ELASTIC": "0"}, "PSUM_ELASTIC='0': expected the least number of workers"),
        ({"PSUM_ELASTIC": "2:"}, "PSUM_ELASTIC='2:': expected the least number of workers"),
        ({"PSUM_ELASTIC": "2:many"}, "PSUM_ELASTIC='2:many': expected the least number of workers"),
        (FOUR | {"PSUM_ELASTIC": "5:2"}, "the least number of workers, 5, is larger than the most, 2"),
        (FOUR | {"PSUM_ELASTIC": "5:8"}, "begins with 4 workers, fewer than the 5 that it needs"),
        (FOUR | {"PSUM_ELASTIC": "5"}, "begins with 4 workers, fewer than the 5 that it needs"),
        (FOUR | {"PSUM_ELASTIC": "2:3"}, "begins with 4 workers, more than 3"),
        (FOUR | {"PSUM_ELASTIC": "2:5000"}, "of at least 2 and at most 5000 workers; expected .* at most 4096"),
        (FOUR | {"PSUM_ELASTIC": "2", "PSUM_RANK": "4"}, "rank 4 of an elastic job of at most 4 workers"),
        ({"PSUM_ELASTIC": "1"}, "an elastic job needs at least one aggregator"),
        (FOUR | {"PSUM_JOIN": "1"}, "only an elastic job can be joined while it runs"),
        ({"PSUM_PLANE": "carrier pigeon"}, "expected one of"),
        ({"DMLC_WORKER_ID": "first"}, "PSUM_RANK='first'"),
        ({"DMLC_NUM_WORKER": "many"}, "PSUM_NUM_WORKERS='many'"),
    ],
)
def test_what_cannot_be_meant_is_refused(environ: dict[str, str], complaint: str) -> None:
    """A setting that cannot work is an error that says what is wrong."""
    with pytest.raises(ConfigurationError, match=complaint):
        Settings.from_environment(environ)


def test_all_mistakes_are_listed_together() -> None:
    """One error lists all mistakes."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environment({"PSUM_RANK": "x", "PSUM_PLANE": "y", "PSUM_CONNECT_TIMEOUT": "z"})
    assert len(caught.value.mistakes) == 3


@pytest.mark.parametrize(
    ("variable", "value", "others"),
    [
        ("PSUM_RANK", "1", {}),
        ("PSUM_NUM_WORKERS", "2", {"PSUM_RANK": "2"}),
        ("PSUM_LOCAL_RANK", "3", {}),
        ("PSUM_AGGREGATORS", "a:1,a:1", {}),
        ("PSUM_AGGREGATOR_WEIGHTS", "1,2", {"PSUM_AGGREGATORS": "a:1"}),
        ("PSUM_AGGREGATOR_WEIGHTS", "auto,1", {"PSUM_AGGREGATORS": "a:1,b:1"}),
        ("PSUM_AGGREGATOR_WEIGHTS", "1,0", {"PSUM_AGGREGATORS": "a:1,b:1"}),
        ("PSUM_PARTITION_BYTES", "3", {}),
        ("PSUM_CREDIT_BYTES", "0", {}),
        ("PSUM_JOB", "a\nb", {}),
    ],
)
def test_a_mistake_names_the_variable_to_change(variable: str, value: str, others: dict[str, str]) -> None:
    """Each mistake names its variable, even if it only shows when the values are taken together."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environment({variable: value} | others)
    assert variable in caught.value.mistakes[0]


@pytest.mark.parametrize(
    ("environ", "directory", "steps"),
    [
        ({}, "", (10, 20)),
        ({"BYTEPS_TRACE_DIR": "/t", "BYTEPS_TRACE_ON": "0"}, "", (10, 20)),
        ({"BYTEPS_TRACE_ON": "1"}, ".", (10, 20)),
        (
            {
                "BYTEPS_TRACE_ON": "1",
                "BYTEPS_TRACE_DIR": "/t",
                "BYTEPS_TRACE_START_STEP": "1",
                "BYTEPS_TRACE_END_STEP": "9",
            },
            "/t",
            (1, 9),
        ),
        ({"BYTEPS_TRACE_ON": "1", "BYTEPS_TRACE_DIR": "/t", "PSUM_TRACE_DIR": "/p"}, "/p", (10, 20)),
        ({"PSUM_TRACE_DIR": "/p", "PSUM_TRACE_START_STEP": "0", "BYTEPS_TRACE_START_STEP": "5"}, "/p", (0, 20)),
    ],
)
def test_a_timeline_is_asked_for_as_byteps_does_it_too(
    environ: dict[str, str], directory: str, steps: tuple[int, int]
) -> None:
    """In BytePS a switch turns the timeline on, in psum the directory does."""
    settings = Settings.from_environment(environ)
    assert (settings.trace_dir, (settings.trace_start_step, settings.trace_end_step)) == (directory, steps)


def test_a_timeline_that_ends_before_it_begins_is_refused() -> None:
    """The steps of a timeline are checked only if there is one."""
    environ = {"PSUM_TRACE_START_STEP": "30"}
    assert Settings.from_environment(environ).trace_dir == ""
    with pytest.raises(ConfigurationError, match=r"from step 30 to step 20 has no steps \(PSUM_TRACE_START_STEP"):
        Settings.from_environment(environ | {"PSUM_TRACE_DIR": "/t"})


def test_a_misspelt_variable_is_refused() -> None:
    """A misspelt variable is an error: the worker would train alone without notice."""
    environ = {"PSUM_AGGREGATORS": "a:1", "PSUM_NUM_WORKER": "2"}
    with pytest.raises(ConfigurationError, match=r"PSUM_NUM_WORKER: .* did you mean PSUM_NUM_WORKERS") as caught:
        Settings.from_environment(environ)
    assert len(caught.value.mistakes) == 1


def test_an_aggregators_variables_are_no_mistake_of_a_workers() -> None:
    """Variables of aggregators are no mistake: one environment may serve both sides."""
    environ = {"PSUM_LISTEN": "127.0.0.1:1", "PSUM_THREADS": "2", "PSUM_AGGREGATOR_TLS_CLIENT_CA": "ca.pem"}
    settings = Settings.from_environment(environ)
    assert settings == Settings()
    assert list(settings.warnings()) == []


JOB = {"PSUM_AGGREGATORS": "a:1,b:1", "PSUM_NUM_WORKERS": "2"}


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"PSUM_AGGREGATORS": "a:1"}, "PSUM_AGGREGATORS names .* PSUM_NUM_WORKERS is not set.* trains alone"),
        ({"PSUM_AGGREGATORS": "a:1", "PSUM_RANK": "0"}, "PSUM_AGGREGATORS names .* trains alone"),
        ({"PSUM_RANK": "0"}, r"has rank 0, but neither .*\(PSUM_NUM_WORKERS\) .* trains alone"),
        (
            {"DMLC_WORKER_ID": "0"},
            r"has rank 0, but neither .*\(PSUM_NUM_WORKERS\) .* trains alone",
        ),
        (
            {"JOB_COMPLETION_INDEX": "0"},
            r"has rank 0, but neither .*\(PSUM_NUM_WORKERS\) .* trains alone",
        ),
        (
            {"PSUM_TOKEN_FILE": "t", "PSUM_TLS_CA": "c"},
            "PSUM_TLS_CA and PSUM_TOKEN_FILE can be of use only with aggreg",
        ),
        ({"PSUM_TLS_CA": "c", "PSUM_NUM_WORKERS": "1"}, "PSUM_TLS_CA can be of use only with aggregators"),
        (JOB | {"PSUM_LOCAL_SIZE": "4"}, r"4 workers on this node \(PSUM_LOCAL_SIZE\) of 2 in the whole job"),
        (JOB | {"PSUM_CREDIT_BYTES": "1MiB"}, "a credit of 1048576 bytes .* is less than one shard of 2097152 bytes"),
        (JOB | {"PSUM_KEEPALIVE": "20", "PSUM_ROUND_TIMEOUT": "30"}, "after twice 20 s .* times out after 30 s"),
        (JOB | {"PSUM_AGGREGATORS": "a:1", "PSUM_AGGREGATOR_WEIGHTS": "3"}, "weights .* change nothing"),
        (JOB | {"PSUM_AGGREGATORS": "unix:/a", "PSUM_TLS_CA": "c"}, "which do not use TLS: PSUM_TLS_CA and"),
        (JOB | {"PSUM_AGGREGATORS": "unix:/a", "PSUM_PLANE": "direct"}, "which have no data connections"),
        (
            JOB | {"PSUM_TRACE_START_STEP": "3"},
            r"PSUM_TRACE_START_STEP: there is no timeline without a directory for it \(PSUM_TRACE_DIR\)",
        ),
        (JOB | {"DMLC_ROLE": "server"}, "DMLC_ROLE=server: psum has no such processes"),
        (JOB | {"DMLC_NUM_WORKERS": "2"}, r"DMLC_NUM_WORKERS means nothing to psum; did you mean DMLC_NUM_WORKER\?"),
        (JOB | {"BYTEPS_LOCAL_RNK": "2"}, r"BYTEPS_LOCAL_RNK means nothing to psum; did you mean BYTEPS_LOCAL_RANK\?"),
    ],
)
def test_what_can_hardly_be_meant_is_warned_of(environ: dict[str, str], text: str) -> None:
    """A setting that does not do what it seems to gets a warning that says what happens and what to change."""
    [warning] = Settings.from_environment(environ).warnings()
    assert re.search(text, warning)


#: Variables that BytePS, ps-lite and the training operator set and psum ignores.
OTHERS = (
    "BYTEPS_LOG_LEVEL",
    "BYTEPS_FORCE_DISTRIBUTED",
    "BYTEPS_SERVER_ENGINE_THREAD",
    "BYTEPS_SERVER_ENABLE_SCHEDULE",
    "BYTEPS_SCHEDULING_CREDIT",
    "BYTEPS_NCCL_GROUP_SIZE",
    "BYTEPS_PCIE_SWITCH_SIZE",
    "BYTEPS_ENABLE_ASYNC",
    "BYTEPS_ENABLE_IPC",
    "BYTEPS_THREADPOOL_SIZE",
    "BYTEPS_TELEMETRY_ON",
    "BYTEPS_JOB_ID",
    "BYTEPS_NUMA_ON",
    "BYTEPS_MIN_COMPRESS_BYTES",
    "DMLC_NUM_SERVER",
    "DMLC_SERVER_ID",
    "DMLC_PS_ROOT_URI",
    "DMLC_PS_ROOT_PORT",
    "DMLC_NODE_HOST",
    "DMLC_INTERFACE",
    "DMLC_TASK_ID",
    "DMLC_USE_KUBERNETES",
    "DMLC_ENABLE_RDMA",
    "DMLC_PS_VAN_TYPE",
    "DMLC_NUM_ATTEMPT",
    "DMLC_RANK",
    "DMLC_LOCAL",
)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        JOB | {"PSUM_RANK": "1", "PSUM_TOKEN_FILE": "t", "PSUM_TLS_CA": "c"},
        {"PSUM_AGGREGATORS": "a:1", "PSUM_NUM_WORKERS": "1"},
        JOB
        | {"DMLC_ROLE": "worker", "BYTEPS_TRACE_START_STEP": "5", "BYTEPS_TRACE_ON": "0"}
        | dict.fromkeys(OTHERS, "1"),
    ],
)
def test_what_is_meant_is_not_warned_of(environ: dict[str, str]) -> None:
    """Variables that only other systems use cause no warning: manifests written for those systems set them."""
    assert list(Settings.from_environment(environ).warnings()) == []


def test_what_the_program_sets_is_meant() -> None:
    """Settings that the program itself makes cause no warning that the worker trains alone."""
    assert list(Settings(aggregators=("a:1",)).warnings()) == []
    [warning] = Settings(aggregators=("a:1",), credit_bytes=1).warnings()
    assert "less than one shard" in warning


def test_warnings_are_logged_once_when_a_worker_starts(caplog: pytest.LogCaptureFixture) -> None:
    """Connecting logs the warnings, here the one of a worker that trains alone."""
    with connect(Settings.from_environment({"PSUM_RANK": "0"})):
        pass
    [text] = [record.getMessage() for record in caplog.records]
    assert "trains alone" in text


def test_shards_are_smaller_with_several_aggregators() -> None:
    """A partition is divided by the number of aggregators, but not below 512 KiB; a smaller one stays as it is."""

    def shard_bytes(aggregators: int, **given: Any) -> int:
        addresses = tuple(f"10.0.0.{number}:1" for number in range(aggregators))
        return Settings.from_environment({}, aggregators=addresses, **given).shard_bytes

    assert [shard_bytes(count) for count in (0, 1, 2, 3, 4, 64)] == [
        2 << 20,
        2 << 20,
        1 << 20,
        (2 << 20) // 3,
        512 << 10,
        512 << 10,
    ]
    assert shard_bytes(4, partition_bytes=8 << 20) == 2 << 20
    assert shard_bytes(4, partition_bytes=1 << 14) == 1 << 14
