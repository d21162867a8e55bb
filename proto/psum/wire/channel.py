"""What both ends of a gRPC connection must agree on: the protocol version, limits, and channel options.

Measurements showed that these options make large messages fast: one HTTP/2 frame and a large read-ahead for a whole
shard, and no bandwidth probing, which would shrink the configured window.
"""

from typing import Final

PROTOCOL_VERSION: Final = 1

#: The rule by which a worker places shards, in its hello: by the weights in the hello, or by weights that follow from
#: where aggregators run, on which the ranks agree with a sum. See docs/protocol.md.
PLACEMENT_BY_WEIGHTS: Final = 1
PLACEMENT_BY_ROLES: Final = 2

#: The most workers that a job may have. Ranks go from 0 to one less.
MAX_WORKERS: Final = 4096

#: The largest message. A shard has at most MAX_PARTITION_BYTES. The rest is room for headers and many declarations.
MAX_MESSAGE_BYTES: Final = 80 << 20
MAX_PARTITION_BYTES: Final = 64 << 20

#: Tensors often have sizes that are powers of two, and fill a limit of this kind exactly. Then there is still room for
#: small payloads, such as the roll call of an elastic job, which would need a message of its own.
_SMALL_PAYLOADS_BYTES: Final = 16 << 10

#: A message carries several smaller payloads, up to this total size.
BATCH_BYTES: Final = (512 << 10) + _SMALL_PAYLOADS_BYTES

#: A message announces several payloads outside of it, up to this total size. They lie in shared memory, where a copy
#: takes about a millisecond, or follow on a data connection. An urgent payload waits behind at most this much.
OUTSIDE_BATCH_BYTES: Final = (4 << 20) + _SMALL_PAYLOADS_BYTES

#: The same for payloads that follow on a data connection to another host, where they may take a second.
FAR_BATCH_BYTES: Final = (1 << 20) + _SMALL_PAYLOADS_BYTES

#: Payloads of at least this size are large: they cross as their plane says. Smaller ones always travel in the message.
LARGE_PAYLOAD_BYTES: Final = 64 << 10

#: gRPC's name of the status with which an aggregator ends a stream because its data connection broke.
DATA_CONNECTION_BROKE: Final = "ABORTED"

#: By default, gRPC connects through the proxy in http_proxy, even to aggregators on this machine. Most proxies support
#: neither plain HTTP/2 nor long-lived streams.
NO_PROXY: Final = ("grpc.enable_http_proxy", 0)


def grpc_options(keepalive: float) -> tuple[tuple[str, int], ...]:
    """Return the options of a channel or server.

    Args:
        keepalive: Seconds of silence before a probe, and seconds to wait for its answer before the connection counts as
            lost.
    """
    # gRPC takes milliseconds in 31 bits, which are about three weeks.
    milliseconds = max(1, min(int(keepalive * 1000), 2**31 - 1))
    return (
        NO_PROXY,
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.http2.max_frame_size", (1 << 24) - 1),
        ("grpc.http2.lookahead_bytes", 64 << 20),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.keepalive_time_ms", milliseconds),
        ("grpc.keepalive_timeout_ms", milliseconds),
        ("grpc.keepalive_permit_without_calls", 1),
        # Allow any number of probes on silent connections.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.ping_timeout_ms", milliseconds),
    )
