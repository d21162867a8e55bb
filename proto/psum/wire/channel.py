"""What both ends of a gRPC connection agree on: the protocol's version, the options of channel and server.

The options are those that made large messages fast where they were measured: one HTTP/2 frame and a large read-ahead
for a whole shard, and no bandwidth probing, which shrinks the window that was just configured.
"""

from typing import Final

PROTOCOL_VERSION: Final = 1

#: The largest message that either side takes. A shard is at most MAX_PARTITION_BYTES, the rest is room for its header
#: and for declarations of many keys.
MAX_MESSAGE_BYTES: Final = 80 << 20
MAX_PARTITION_BYTES: Final = 64 << 20

#: Payloads below this travel several to a message, up to this much together.
BATCH_BYTES: Final = 512 << 10

#: The same for what one message announces that lies in shared memory, where it is copied in about a millisecond, or
#: follows on a data connection. An urgent one is behind as much.
BESIDE_BYTES: Final = 4 << 20

#: Payloads from this size on lie in shared memory where both sides have it.
SHARED_BYTES: Final = 64 << 10


#: gRPC would go to aggregators through the proxy that http_proxy names, even to one on this machine. A proxy is for the
#: world outside; most of them pass on neither plain HTTP/2 nor a stream that stays open.
NO_PROXY: Final = ("grpc.enable_http_proxy", 0)


def grpc_options(keepalive: float) -> tuple[tuple[str, int], ...]:
    """The options of a channel or server.

    Args:
        keepalive: Seconds of silence after which the peer is probed, and again that many for its answer, after which it
            counts as gone.
    """
    # gRPC takes whole milliseconds of 31 bits: some weeks are as good as ever.
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
        # Whoever is silent may be probed as often as the other side likes.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.ping_timeout_ms", milliseconds),
    )
