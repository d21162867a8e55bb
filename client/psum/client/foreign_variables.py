"""The environment variables that BytePS, ps-lite and Kubernetes set for a worker."""

from collections.abc import Iterator, Mapping
from typing import Final

from psum.runtime import similar

#: The variables that psum reads.
_UNDERSTOOD: Final = (
    "BYTEPS_GLOBAL_RANK",
    "BYTEPS_LOCAL_RANK",
    "BYTEPS_LOCAL_SIZE",
    "BYTEPS_PARTITION_BYTES",
    "BYTEPS_TRACE_DIR",
    "BYTEPS_TRACE_END_STEP",
    "BYTEPS_TRACE_ON",
    "BYTEPS_TRACE_START_STEP",
    "DMLC_NUM_WORKER",
    "DMLC_ROLE",
    "DMLC_WORKER_ID",
    "JOB_COMPLETION_INDEX",
)

#: What a shell shows for a process that SIGTERM has ended.
_ENDED_BY_SIGTERM: Final = 143

#: How similar a name must be to one of these to count as a misspelling. Below that, it is another variable of those
#: systems.
_MISSPELT: Final = 0.85


def with_derived(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment, completed from other systems' variables if psum's are missing.

    It completes the rank, the number of workers, the directory of the timeline, and the status of workers that leave.
    """
    derived = dict(environ)

    def first(*names: str, otherwise: str) -> str:
        return next((environ[name] for name in names if environ.get(name)), otherwise)

    local_size = first("PSUM_LOCAL_SIZE", "BYTEPS_LOCAL_SIZE", otherwise="1")
    local_rank = first("PSUM_LOCAL_RANK", "BYTEPS_LOCAL_RANK", otherwise="0")
    worker_id = first("DMLC_WORKER_ID", "JOB_COMPLETION_INDEX", otherwise="")
    nodes = first("DMLC_NUM_WORKER", otherwise="")
    if all(n.isdecimal() for n in (local_size, local_rank, worker_id)):
        rank = int(worker_id) * int(local_size) + int(local_rank)
        if not environ.get("BYTEPS_GLOBAL_RANK"):
            derived["PSUM_RANK"] = environ.get("PSUM_RANK") or str(rank)
    elif worker_id and not worker_id.isdecimal():
        # The parser rejects it and says why.
        derived["PSUM_RANK"] = environ.get("PSUM_RANK") or worker_id
    if environ.get("BYTEPS_TRACE_ON") == "1":
        derived["PSUM_TRACE_DIR"] = first("PSUM_TRACE_DIR", "BYTEPS_TRACE_DIR", otherwise=".")
    if environ.get("JOB_COMPLETION_INDEX"):
        # With status 0, the Job would never start a successor of an evicted pod.
        derived["PSUM_LEAVE_STATUS"] = environ.get("PSUM_LEAVE_STATUS") or str(_ENDED_BY_SIGTERM)
    if nodes:
        product = str(int(nodes) * int(local_size)) if nodes.isdecimal() and local_size.isdecimal() else nodes
        derived["PSUM_NUM_WORKERS"] = environ.get("PSUM_NUM_WORKERS") or product
    return derived


def remarks(environ: Mapping[str, str]) -> Iterator[str]:
    """Yields a sentence for each of these systems' variables that looks as if it counted, but does not.

    It leaves out the variables that those systems define and psum ignores: manifests written for them set these.
    """
    for name in sorted(environ):
        if name.startswith(("BYTEPS_", "DMLC_")) and name not in _UNDERSTOOD:
            for meant in similar(name, _UNDERSTOOD, _MISSPELT, by_words=False)[:1]:
                yield f"{name} means nothing to psum; did you mean {meant}?"
    role = environ.get("DMLC_ROLE")
    if role and role != "worker":
        yield (
            f"DMLC_ROLE={role}: psum has no such processes, and this one joins its job as a worker. Start workers only,"
            " and aggregators with `psum aggregator`"
        )
