"""The names of psum's environment variables. They make a misspelt name an error.

The list has the names of both sides. One environment may be exported for both, so each side must know the other's
names, and either side may be installed alone. A test checks that the list equals what both sides declare.
"""

import difflib
import ipaddress
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

#: How similar two names must be, without their common prefix, for one to be suggested for the other.
_ALIKE: Final = 0.75

#: Names that are at least this similar differ by a typing error.
_TYPING_ERROR: Final = 0.9

#: How much less similar than the best suggestion a further one may be.
_SECOND: Final = 0.1

#: The most suggestions that are made.
_SUGGESTIONS: Final = 3

_PREFIX: Final = "PSUM_"

VARIABLES: Final = frozenset(
    {
        "PSUM_AGGREGATORS",
        "PSUM_AGGREGATOR_INSECURE",
        "PSUM_AGGREGATOR_TLS_CERT",
        "PSUM_AGGREGATOR_TLS_CLIENT_CA",
        "PSUM_AGGREGATOR_TLS_KEY",
        "PSUM_AGGREGATOR_TOKEN_FILE",
        "PSUM_AGGREGATOR_WEIGHTS",
        "PSUM_CHECK_EVERY",
        "PSUM_CLOSED_TIMEOUT",
        "PSUM_CONNECT_TIMEOUT",
        "PSUM_CREDIT_BYTES",
        "PSUM_DATA_PORT",
        "PSUM_DEVICE_BUFFERS",
        "PSUM_ELASTIC",
        "PSUM_ELASTIC_CLOSED_TIMEOUT",
        "PSUM_ELASTIC_TIMEOUT",
        "PSUM_FAULT_FILE",
        "PSUM_GRACE",
        "PSUM_HELLO_TIMEOUT",
        "PSUM_HTTP",
        "PSUM_INSECURE",
        "PSUM_JOB",
        "PSUM_JOIN",
        "PSUM_KEEPALIVE",
        "PSUM_KEEP_SUMS",
        "PSUM_LEAVE_STATUS",
        "PSUM_LEAVE_TIMEOUT",
        "PSUM_LISTEN",
        "PSUM_LOCAL_RANK",
        "PSUM_LOCAL_SIZE",
        "PSUM_LOG_FORMAT",
        "PSUM_LOG_LEVEL",
        "PSUM_MAX_JOBS",
        "PSUM_MAX_SHARDS",
        "PSUM_MAX_STREAMS",
        "PSUM_MEMORY_BUDGET",
        "PSUM_METRICS_PORT",
        "PSUM_NUM_WORKERS",
        "PSUM_PARTITION_BYTES",
        "PSUM_PLANE",
        "PSUM_PROCESSES",
        "PSUM_RANK",
        "PSUM_RANK_TIMEOUT",
        "PSUM_RECONNECT_TIMEOUT",
        "PSUM_REFLECTION",
        "PSUM_RELAY",
        "PSUM_RELAYING",
        "PSUM_RELAY_TLS_CA",
        "PSUM_RELAY_TLS_SERVER_NAME",
        "PSUM_RELAY_TOKEN_FILE",
        "PSUM_ROUND_TIMEOUT",
        "PSUM_SHM_DIRECTORY",
        "PSUM_SHM_LIMIT",
        "PSUM_THREADS",
        "PSUM_TLS_CA",
        "PSUM_TLS_CERT",
        "PSUM_TLS_KEY",
        "PSUM_TLS_SERVER_NAME",
        "PSUM_TOKEN_FILE",
        "PSUM_TORCH_LEND_RESULTS",
        "PSUM_TORCH_SHARE_BUFFERS",
        "PSUM_TRACE_DIR",
        "PSUM_TRACE_END_STEP",
        "PSUM_TRACE_START_STEP",
        "PSUM_WARN_AFTER",
        "PSUM_WORKER_TIMEOUT",
    }
)


def unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable that begins with PSUM_, is not empty, and is not a setting of psum.

    The text does not show values: they could be secrets.
    """
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in VARIABLES or not environ[name]:
            continue
        if is_service_link(name, environ[name]):
            continue
        found = similar(name, VARIABLES)
        advice = f"did you mean {' or '.join(found)}?" if found else "docs/settings.md lists all."
        yield (
            f"{name}: psum has no setting of this name; {advice} If it is a variable of your own, rename it: names that"
            " begin with PSUM_ are psum's"
        )


def similar(name: str, known: Collection[str], alike: float = _ALIKE, *, by_words: bool = True) -> list[str]:
    """The known names that are similar to an unknown one, the most similar first.

    Args:
        name: The unknown name.
        known: The known names.
        alike: How similar they must be, from 0 to 1.
        by_words: Whether names with the same words in another order are similar too.
    """
    prefix, _, rest = name.partition("_")
    others = {other: other.removeprefix(f"{prefix}_") for other in known if other.startswith(f"{prefix}_")}
    ratios = {other: difflib.SequenceMatcher(None, rest, part).ratio() for other, part in others.items()}
    best = max(ratios.values(), default=0.0)
    # The unknown name is the beginning of a known one, or has its words in another order.
    found = [
        other
        for other, part in others.items()
        if part.startswith(f"{rest}_") or sorted(part.split("_")) == sorted(rest.split("_"))
    ]
    if by_words and best < _TYPING_ERROR and 0 < len(found) <= _SUGGESTIONS:
        return sorted(found)
    found = [other for other, ratio in ratios.items() if ratio >= max(alike, best - _SECOND)]
    return sorted(found, key=lambda other: (-ratios[other], other))[:_SUGGESTIONS]


def without_service_links(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables that Kubernetes sets for each service of a namespace.

    For a service called psum-data, one of them is PSUM_DATA_PORT=tcp://10.0.0.1:50052.
    """
    return {name: value for name, value in environ.items() if not is_service_link(name, value)}


def is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes has set a variable, for a service whose name begins with psum.

    These variables have one of seven forms, each with its own form of value.
    """
    for ending, fits in _SERVICE_LINKS:
        if ending.fullmatch(name):
            return fits(value)
    return False


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_url(text: str) -> bool:
    return re.fullmatch(r"(tcp|udp|sctp)://\S+:\d+", text) is not None


_SERVICE: Final = r"PSUM(_[A-Z0-9_]+)?"

_SERVICE_LINKS: Final[tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...]] = (
    (re.compile(rf"{_SERVICE}_SERVICE_HOST"), _is_address),
    (re.compile(rf"{_SERVICE}_SERVICE_PORT(_[A-Z0-9_]+)?"), str.isdecimal),
    (re.compile(rf"{_SERVICE}_PORT_\d+_(TCP|UDP|SCTP)"), _is_url),
    (re.compile(rf"{_SERVICE}_PORT_\d+_(TCP|UDP|SCTP)_PROTO"), lambda text: text in ("tcp", "udp", "sctp")),
    (re.compile(rf"{_SERVICE}_PORT_\d+_(TCP|UDP|SCTP)_PORT"), str.isdecimal),
    (re.compile(rf"{_SERVICE}_PORT_\d+_(TCP|UDP|SCTP)_ADDR"), _is_address),
    # Last, because a misspelt setting may end in _PORT too: only the value distinguishes them.
    (re.compile(rf"{_SERVICE}_PORT"), _is_url),
)
