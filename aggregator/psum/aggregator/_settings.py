"""The aggregator's settings."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from psum.wire import BaseSettings, choice, duration, integer, is_local, items, load, parse_address, setting, size


@dataclasses.dataclass(frozen=True)
class Settings(BaseSettings):
    """What one aggregator is told. Every field is a flag of `psum aggregator` and an environment variable."""

    listen: tuple[str, ...] = setting(
        "PSUM_LISTEN",
        default=("127.0.0.1:50051",),
        default_text="127.0.0.1:50051",
        parse=items(parse_address),
        meaning="Addresses to serve on: host:port (port 0: a free one), [ipv6]:port or unix:/path.",
    )
    insecure: bool = setting(
        "PSUM_INSECURE",
        default=False,
        default_text="off",
        parse=lambda text: choice("0", "1")(text) == "1",
        meaning="Serve on addresses that other machines can reach, though anybody there could read and change sums.",
    )
    worker_timeout: float = setting(
        "PSUM_WORKER_TIMEOUT",
        default=30.0,
        default_text="30 s",
        parse=duration,
        meaning="How long the place of a worker that vanished is kept, before its job fails on all ranks.",
    )
    round_timeout: float = setting(
        "PSUM_ROUND_TIMEOUT",
        default=600.0,
        default_text="600 s",
        parse=duration,
        meaning="How long a round may wait for its slowest rank.",
    )
    keepalive: float = setting(
        "PSUM_KEEPALIVE",
        default=10.0,
        default_text="10 s",
        parse=duration,
        meaning="Silence after which the other side is probed; as long again without an answer, and it is gone.",
    )
    hello_timeout: float = setting(
        "PSUM_HELLO_TIMEOUT",
        default=10.0,
        default_text="10 s",
        parse=duration,
        meaning="How long a new connection may take to introduce itself.",
    )
    grace: float = setting(
        "PSUM_GRACE",
        default=10.0,
        default_text="10 s",
        parse=duration,
        meaning="How long open rounds may take to be finished after SIGTERM.",
    )
    memory_budget: int = setting(
        "PSUM_MEMORY_BUDGET",
        default=0,
        default_text="no limit",
        parse=size,
        meaning="Memory for the sums of all jobs; keys that do not fit are refused when they are declared.",
    )
    threads: int = setting(
        "PSUM_THREADS",
        default=min(8, os.cpu_count() or 1),
        default_text="number of processors, at most 8",
        parse=integer(1, 256),
        meaning="Threads that sum.",
    )
    log_level: str = setting(
        "PSUM_LOG_LEVEL",
        default="info",
        parse=choice("debug", "info", "warning", "error"),
        meaning="What is logged at least.",
    )
    log_format: str = setting(
        "PSUM_LOG_FORMAT", default="text", parse=choice("text", "json"), meaning="How log lines are written."
    )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> "Settings":
        """The settings that the environment gives, beaten by those given here (text is parsed, None is ignored).

        Raises:
            ConfigurationError: With every mistake that was found.
        """
        return load(cls, environ, given)

    def mistakes(self) -> Iterator[str]:
        """What is wrong with the values taken together."""
        if not self.listen:
            yield "listen: at least one address is needed"
        for address in self.listen:
            if not is_local(address) and not self.insecure:
                yield (
                    f"listen={address}: other machines can reach this address, and connections are neither encrypted"
                    " nor authenticated; listen on a loopback address or a unix socket, or say --insecure"
                )
