"""The rules for files that Perfetto and chrome://tracing show completely.

They are the rules of the trace event format, and the stricter ones of Perfetto's importer: it shows partly overlapping
slices of one thread wrongly.
"""

import itertools
import json
import pathlib
from typing import Any

_NAMING = {
    "process_name": ("name", str),
    "thread_name": ("name", str),
    "process_sort_index": ("sort_index", int),
    "thread_sort_index": ("sort_index", int),
}


def checked(path: pathlib.Path) -> dict[str, Any]:
    """Return the content of a file after checking all rules."""
    text = path.read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text, parse_constant=_refuse)
    assert document.keys() == {"displayTimeUnit", "otherData", "traceEvents"}
    assert document["displayTimeUnit"] in ("ms", "ns")
    assert isinstance(document["otherData"], dict)
    check(document["traceEvents"])
    return document


def check(events: list[dict[str, Any]]) -> None:
    """Assert that events follow all rules."""
    assert isinstance(events, list)
    named: set[tuple[str, int, int]] = set()
    threads: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in events:
        assert isinstance(event["name"], str)
        assert event["name"]
        for field in ("pid", "tid"):
            # Both are 32 bits wide in Perfetto.
            assert type(event[field]) is int
            assert 0 <= event[field] < 2**31
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            assert event.keys() == {"name", "ph", "pid", "tid", "args"}
            field, kind = _NAMING[event["name"]]
            assert event["args"].keys() == {field}
            assert type(event["args"][field]) is kind
            place = event["name"], event["pid"], event["tid"]
            assert place not in named, "named twice"
            named.add(place)
            continue
        if event["ph"] == "i":
            # A moment, which is shown over all threads of its process.
            assert event.keys() == {"name", "cat", "ph", "s", "ts", "pid", "tid", "args"}
            assert event["s"] == "p"
            _nanoseconds(event["ts"])
            continue
        assert event["ph"] == "X"
        assert event.keys() == {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"}
        assert isinstance(event["cat"], str)
        begin, lasted = (_nanoseconds(event[field]) for field in ("ts", "dur"))
        threads.setdefault((event["pid"], event["tid"]), []).append((begin, begin + lasted))
    for (pid, tid), slices in threads.items():
        assert ("process_name", pid, 0) in named
        assert ("thread_name", pid, tid) in named
        slices.sort()
        for (_, end), (begin, _) in itertools.pairwise(slices):
            assert end <= begin, f"slices of thread {tid} overlap"


def _nanoseconds(microseconds: object) -> int:
    """Return a time in nanoseconds. Perfetto truncates smaller fractions."""
    assert type(microseconds) in (int, float)
    assert isinstance(microseconds, int | float)
    assert 0 <= microseconds < 2**53 / 1000
    assert float(microseconds * 1000).is_integer(), "it would be rounded"
    return int(microseconds * 1000)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")
