"""The options of gRPC channels and servers."""

import pytest

from psum.wire import grpc_options


@pytest.mark.parametrize("keepalive", [0.0001, 1e9])
def test_any_keepalive_gives_options_that_grpc_takes(keepalive: float) -> None:
    """gRPC's options are whole numbers of 31 bits, and 0 has another meaning."""
    assert all(0 <= value < 2**31 for _, value in grpc_options(keepalive))
    assert dict(grpc_options(keepalive))["grpc.keepalive_time_ms"] > 0
