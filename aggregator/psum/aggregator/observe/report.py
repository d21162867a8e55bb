"""The data of the status page, as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from psum.aggregator.observe.throughput import SAMPLE_SECONDS
from psum.aggregator.settings import Settings
from psum.planes import Limit
from psum.runtime import Declaration, declarations, duration, size
from psum.v1 import aggregator_pb2 as pb
from psum.wire import report_of


def report(
    status: pb.GetStatusResponse, settings: Settings, throughput: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """The status with the settings and the throughput.

    Args:
        status: The status.
        settings: The aggregator's settings. They hold paths of secrets, but no secrets.
        throughput: Bytes per second received and sent, over SAMPLE_SECONDS each, the oldest first.
    """
    result = report_of(status)
    values = {
        declared.variables[0]: (getattr(settings, name), declared) for name, declared in declarations(Settings).items()
    }
    result["aggregator"]["settings"] = {variable: _plain(value) for variable, (value, _) in values.items()}
    # For people: with units, and the default's text instead of an empty value.
    result["aggregator"]["settings_text"] = {variable: _text(*setting) for variable, setting in values.items()}
    result["aggregator"]["settings_changed"] = [
        declarations(Settings)[field.name].variables[0]
        for field in dataclasses.fields(Settings)
        if getattr(settings, field.name) != field.default
    ]
    result["throughput"] = {
        "seconds": SAMPLE_SECONDS,
        "received_bytes_per_second": [round(received) for received, _ in throughput],
        "sent_bytes_per_second": [round(sent) for _, sent in throughput],
    }
    return result


def _plain(value: object) -> object:
    if isinstance(value, Limit):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any, declared: Declaration) -> str:
    if not value:
        return declared.default_text
    if value is True:
        return "on"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if declared.parse is duration:
        return f"{value:g} s"
    return f"{value / 2**20:g} MiB" if declared.parse is size else str(value)
