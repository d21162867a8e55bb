"""A worker's settings: read from the environment, and checked."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from psum.client.declared_settings import DeclaredSettings
from psum.client.doubtful_settings import doubts
from psum.client.foreign_variables import remarks, with_derived
from psum.runtime import load
from psum.wire import MAX_PARTITION_BYTES, MAX_WORKERS, PAYLOAD_ALIGNMENT_BYTES, is_local

#: However many aggregators there are, shards do not become smaller than this because of them. Each costs time.
_LEAST_SHARD_BYTES: Final = 512 << 10


@dataclasses.dataclass(frozen=True)
class Settings(DeclaredSettings):
    """The settings of one worker, mostly from its environment.

    The names that BytePS, ps-lite and Kubernetes use count too, unless psum's own are set: with `worker_id` from
    DMLC_WORKER_ID or JOB_COMPLETION_INDEX, rank = worker_id · local_size + local_rank, and
    num_workers = DMLC_NUM_WORKER · local_size.
    """

    def __post_init__(self) -> None:
        if self.elastic is not None:
            most = self.elastic.maximum or max(self.num_workers, self.elastic.minimum)
            object.__setattr__(self, "elastic", dataclasses.replace(self.elastic, maximum=most))
            # A job begins with the ranks below num_workers.
            object.__setattr__(self, "joining", self.joining or self.num_workers <= self.rank < most)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> "Settings":
        """Reads the settings from the environment. Those given here win (text is parsed, None is ignored).

        Raises:
            ConfigurationError: With every mistake that was found.
        """
        return load(cls, with_derived(environ), given, remarks(environ))

    @property
    def shard_bytes(self) -> int:
        """The most bytes that a shard has.

        The shards of one key travel to all aggregators at once. So with more aggregators smaller shards suffice to fill
        a worker's link. The last sums of a step can be sent back the sooner, the smaller the last shards are.
        """
        least = min(self.partition_bytes, _LEAST_SHARD_BYTES)
        return max(self.partition_bytes // max(1, len(self.aggregators)), least)

    def warnings(self) -> Iterator[str]:
        """Yields a sentence for everything that works but is probably not meant."""
        yield from self.remarks
        yield from doubts(self)

    def mistakes(self) -> Iterator[str]:
        """Yields a sentence for every value that is wrong together with others."""
        if self.elastic is None and self.rank >= self.num_workers:
            yield (
                f"rank {self.rank} of {self.num_workers} workers; ranks go from 0 to {self.num_workers - 1}"
                " (PSUM_RANK, PSUM_NUM_WORKERS)"
            )
        yield from self._elastic_mistakes()
        if self.local_rank >= self.local_size:
            yield (
                f"local rank {self.local_rank} of {self.local_size} on this node; local ranks go from 0 to"
                f" {self.local_size - 1} (PSUM_LOCAL_RANK, PSUM_LOCAL_SIZE)"
            )
        if self.num_workers > 1 and not self.aggregators:
            yield (
                f"{self.num_workers} workers need at least one aggregator: set PSUM_AGGREGATORS to its address,"
                " or start everything with `psum launch`"
            )
        if len(set(self.aggregators)) != len(self.aggregators):
            yield f"the list of aggregators (PSUM_AGGREGATORS) names one twice: {', '.join(self.aggregators)}"
        if self.weights and len(self.weights) != len(self.aggregators):
            yield f"{len(self.weights)} weights for {len(self.aggregators)} aggregators (PSUM_AGGREGATOR_WEIGHTS)"
        if not PAYLOAD_ALIGNMENT_BYTES <= self.partition_bytes <= MAX_PARTITION_BYTES:
            yield (
                f"a partition of {self.partition_bytes} bytes; expected {PAYLOAD_ALIGNMENT_BYTES} to"
                f" {MAX_PARTITION_BYTES} (PSUM_PARTITION_BYTES)"
            )
        if self.credit_bytes < 1:
            yield "a credit of 0 bytes would let nothing pass (PSUM_CREDIT_BYTES)"
        if not 0 < len(self.job) <= 253 or not self.job.isprintable():
            yield f"job={self.job!r}: a job's name has 1 to 253 printable characters (PSUM_JOB)"
        if bool(self.tls_cert) is not bool(self.tls_key):
            yield "tls_cert and tls_key: both are needed, or none"
        if (self.tls_cert or self.tls_server_name) and not self.tls_ca:
            yield "tls_cert and tls_server_name are for TLS, which needs tls_ca"
        if self.trace_dir and self.trace_end_step < self.trace_start_step:
            yield (
                f"a timeline from step {self.trace_start_step} to step {self.trace_end_step} has no steps"
                " (PSUM_TRACE_START_STEP, PSUM_TRACE_END_STEP)"
            )
        yield from self._relay_mistakes()
        if self.token_file and not self.tls_ca and not self.insecure:
            for address in self.destinations:
                if not is_local(address):
                    yield (
                        f"token_file={self.token_file}: to {address} the token would travel unencrypted, for anybody"
                        " between to read and use; set tls_ca to speak TLS, or PSUM_INSECURE=1"
                    )

    def _elastic_mistakes(self) -> Iterator[str]:
        """Yields a sentence for each error in what is said of an elastic job."""
        if (elastic := self.elastic) is None:
            if self.joining:
                yield "only an elastic job can be joined while it runs (PSUM_JOIN): set PSUM_ELASTIC as its workers do"
            return
        least, most = elastic.minimum, elastic.maximum
        if not 1 <= least <= most <= MAX_WORKERS:
            yield (
                f"an elastic job of at least {least} and at most {most} workers; expected at least 1, at most"
                f" {MAX_WORKERS}, and the first number no larger than the second (PSUM_ELASTIC)"
            )
        elif not least <= self.num_workers <= most:
            than = f"fewer than the {least} that it needs at least" if self.num_workers < least else f"more than {most}"
            yield (
                f"an elastic job that begins with {self.num_workers} workers, {than}; expected a number within the"
                " range (PSUM_NUM_WORKERS, PSUM_ELASTIC)"
            )
        elif self.rank >= most:
            yield (
                f"rank {self.rank} of an elastic job of at most {most} workers; ranks go from 0 to {most - 1}"
                " (PSUM_RANK, PSUM_ELASTIC)"
            )
        if not self.aggregators:
            yield (
                "an elastic job needs at least one aggregator (PSUM_ELASTIC): set PSUM_AGGREGATORS to its address, or"
                " start everything with `psum launch`"
            )

    def _relay_mistakes(self) -> Iterator[str]:
        """Yields a sentence for each error in the relays."""
        levels = self.relays
        if levels and not self.aggregators:
            yield (
                f"PSUM_RELAY={self.relay}: a relay forwards to aggregators, and none are named; set PSUM_AGGREGATORS to"
                " the same list on all workers"
            )
        if len({level.address for level in levels}) != len(levels):
            yield f"PSUM_RELAY={self.relay} names a relay twice; each forwards to the next one"
        smaller = 0
        for level in levels:
            size = level.group_size or self.local_size
            if size > self.num_workers:
                yield (
                    f"relay {level.address} would wait for {size} ranks (PSUM_RELAY, PSUM_LOCAL_SIZE), and the job has"
                    f" {self.num_workers} (PSUM_NUM_WORKERS)"
                )
            if size < smaller:
                yield (
                    f"relay {level.address} would sum {size} ranks, fewer than the {smaller} of the relay before it"
                    " (PSUM_RELAY)"
                )
            smaller = size


def next_port(address: str, number: int) -> str:
    """Returns the address with its port raised by a number. Port 0, which stands for a free one, stays."""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + number if int(port) else 0}"
