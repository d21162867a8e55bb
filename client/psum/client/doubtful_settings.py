"""Warnings about settings of a worker that work but are probably not meant."""

from collections.abc import Iterator
from typing import Final

from psum.client.declared_settings import DeclaredSettings

#: Settings that need aggregators, with their variables.
_FOR_AGGREGATORS: Final = {
    "tls_ca": "PSUM_TLS_CA",
    "tls_cert": "PSUM_TLS_CERT",
    "token_file": "PSUM_TOKEN_FILE",
}


def doubts(settings: DeclaredSettings) -> Iterator[str]:
    """Yields a sentence for each doubt: what will happen, and what to change."""
    yield from _alone(settings)
    yield from _without_effect(settings)
    if settings.local_size > settings.num_workers:
        yield (
            f"{settings.local_size} workers on this node (PSUM_LOCAL_SIZE) of {settings.num_workers} in the whole job"
            " (PSUM_NUM_WORKERS)"
        )
    if settings.credit_bytes < settings.partition_bytes and settings.aggregators:
        yield (
            f"a credit of {settings.credit_bytes} bytes (PSUM_CREDIT_BYTES) is less than one shard of"
            f" {settings.partition_bytes} bytes (PSUM_PARTITION_BYTES): shards travel one by one, which is slow"
        )
    if 2 * settings.keepalive > settings.round_timeout and "keepalive" in settings.sources:
        yield (
            f"a silent connection is given up after twice {settings.keepalive:g} s (PSUM_KEEPALIVE), but a sum times"
            f" out after {settings.round_timeout:g} s (PSUM_ROUND_TIMEOUT): errors will name slow workers where a"
            " connection is broken"
        )


def _alone(settings: DeclaredSettings) -> Iterator[str]:
    """The worker trains alone, probably by mistake. Settings that the program itself made are meant."""
    if not settings.sources or "num_workers" in settings.sources:
        pass
    elif settings.aggregators:
        yield (
            "PSUM_AGGREGATORS names aggregators, but PSUM_NUM_WORKERS is not set: this worker believes that it is the"
            " only one, and trains alone"
        )
        return
    elif "rank" in settings.sources:
        yield (
            f"this worker has rank {settings.rank}, but neither the number of workers (PSUM_NUM_WORKERS) nor"
            " aggregators (PSUM_AGGREGATORS) are set: it believes that it is the only one, and trains alone"
        )
        return
    named = [variable for name, variable in _FOR_AGGREGATORS.items() if getattr(settings, name)]
    if named and not settings.aggregators:
        yield (
            f"{' and '.join(named)} can be of use only with aggregators, and none are named (PSUM_AGGREGATORS): this"
            " worker trains alone"
        )


def _without_effect(settings: DeclaredSettings) -> Iterator[str]:
    """A setting changes nothing."""
    if len(settings.aggregators) == 1 and settings.weights:
        yield "weights (PSUM_AGGREGATOR_WEIGHTS) change nothing with a single aggregator"
    if settings.destinations and all(address.startswith("unix:") for address in settings.destinations):
        sockets = "the relay is a unix socket" if settings.relays else "all aggregators are unix sockets"
        if settings.tls:
            yield (f"{sockets}, which do not use TLS: PSUM_TLS_CA and the other files for TLS have no effect")
        if settings.plane == "direct":
            yield (
                f"{sockets}, which have no data connections: with PSUM_PLANE=direct everything"
                " goes in messages; auto or shm shares memory"
            )
    sized = "local_size" in settings.sources or any(level.group_size for level in settings.relays[:1])
    if settings.sources and settings.relays and not sized:
        yield (
            f"PSUM_RELAY={settings.relay}: the number of workers on this node (PSUM_LOCAL_SIZE) is not set, so the"
            " relay sums this worker alone, which saves nothing"
        )
    # Not if the steps come from BytePS's variables: there, another variable turns the timeline on.
    steps = [settings.sources.get(name) for name in ("trace_start_step", "trace_end_step")]
    named = [source for source in steps if source is not None and not source.startswith("BYTEPS_")]
    if named and not settings.trace_dir:
        yield f"{' and '.join(named)}: there is no timeline without a directory for it (PSUM_TRACE_DIR)"
