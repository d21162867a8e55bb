"""A worker's settings come from psum's names, or from those that BytePS, ps-lite and Kubernetes use."""

import pytest

from psum.client import ConfigurationError, Settings


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
    """JOB_COMPLETION_INDEX is the rank where nothing else says one."""
    environ = {"JOB_COMPLETION_INDEX": "3", "PSUM_NUM_WORKERS": "4", "PSUM_AGGREGATORS": "a:1"}
    assert Settings.from_environment(environ).rank == 3
    assert Settings.from_environment(environ | {"PSUM_RANK": "2"}).rank == 2


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"PSUM_NUM_WORKERS": "2"}, "need at least one aggregator"),
        ({"PSUM_RANK": "2", "PSUM_NUM_WORKERS": "2", "PSUM_AGGREGATORS": "a:1"}, "ranks go from 0 to 1"),
        ({"PSUM_LOCAL_RANK": "1"}, "local rank 1 of 1"),
        ({"PSUM_AGGREGATORS": "a:1,a:1"}, "names one twice"),
        ({"PSUM_AGGREGATORS": "somewhere"}, "expected host:port"),
        ({"PSUM_AGGREGATORS": "a:1,b:1", "PSUM_AGGREGATOR_WEIGHTS": "1"}, "1 weights for 2 aggregators"),
        ({"PSUM_PARTITION_BYTES": "1"}, "expected 16 to"),
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
    """Nobody has to fix one to see the next."""
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
        ("PSUM_PARTITION_BYTES", "3", {}),
        ("PSUM_CREDIT_BYTES", "0", {}),
        ("PSUM_JOB", "a\nb", {}),
    ],
)
def test_a_mistake_names_the_variable_to_change(variable: str, value: str, others: dict[str, str]) -> None:
    """Those that only show in the values taken together as well."""
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
    """There a switch turns it on, here the directory does."""
    settings = Settings.from_environment(environ)
    assert (settings.trace_dir, (settings.trace_start_step, settings.trace_end_step)) == (directory, steps)


def test_a_timeline_that_ends_before_it_begins_is_refused() -> None:
    """Where there is to be one."""
    environ = {"PSUM_TRACE_START_STEP": "30"}
    assert Settings.from_environment(environ).trace_dir == ""
    with pytest.raises(ConfigurationError, match=r"from step 30 to step 20 has none \(PSUM_TRACE_START_STEP"):
        Settings.from_environment(environ | {"PSUM_TRACE_DIR": "/t"})
