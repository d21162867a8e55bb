"""What BytePS, ps-lite and Kubernetes tell a worker, under names of their own."""

from collections.abc import Iterator, Mapping
from typing import Final

from psum.runtime import similar

#: Their variables that count here.
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

#: How alike a name must be to one of these to be a misspelling. Less alike are other variables of those systems.
_MISSPELT: Final = 0.85


def with_derived(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, with what other systems' names say where psum's are missing: the rank, the number of workers,
    and whether there is to be a timeline."""
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
        # Left for the parser, which says what is wrong with it.
        derived["PSUM_RANK"] = environ.get("PSUM_RANK") or worker_id
    if environ.get("BYTEPS_TRACE_ON") == "1":
        derived["PSUM_TRACE_DIR"] = first("PSUM_TRACE_DIR", "BYTEPS_TRACE_DIR", otherwise=".")
    if nodes:
        product = str(int(nodes) * int(local_size)) if nodes.isdecimal() and local_size.isdecimal() else nodes
        derived["PSUM_NUM_WORKERS"] = environ.get("PSUM_NUM_WORKERS") or product
    return derived


def remarks(environ: Mapping[str, str]) -> Iterator[str]:
    """What of these systems' variables does not count, though it looks as if it should.

    Their own names that psum has no use for are none of that: manifests that were written for those systems have them.
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
