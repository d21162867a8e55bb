"""What the status page shows, as JSON has it."""

from collections.abc import Sequence
from typing import Any

from psum.aggregator._pulse import SAMPLE_SECONDS
from psum.aggregator._settings import Settings
from psum.v1 import aggregator_pb2 as pb
from psum.wire import declarations, report_of


def report(
    status: pb.GetStatusResponse, settings: Settings, throughput: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """The state with the settings and the throughput.

    Args:
        status: The state.
        settings: The aggregator's. They hold paths of secrets, but no secrets.
        throughput: Bytes per second received and sent, over SAMPLE_SECONDS each, the oldest first.
    """
    told = report_of(status)
    told["aggregator"]["settings"] = {
        declared.variables[0]: _shown(getattr(settings, name)) for name, declared in declarations(Settings).items()
    }
    told["throughput"] = {
        "seconds": SAMPLE_SECONDS,
        "received_bytes_per_second": [round(received) for received, _ in throughput],
        "sent_bytes_per_second": [round(sent) for _, sent in throughput],
    }
    return told


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
