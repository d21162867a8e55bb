"""The aggregator: an asyncio gRPC service that sums the contributions of the workers of many jobs.

`run` is the whole process as `psum aggregator` starts it; `Server` serves within a running event loop.
"""

import os

# gRPC's own log lines about failed handshakes and addresses are less useful than psum's errors, which name the peer and
# the reason.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from psum.aggregator.server import Server, run
from psum.aggregator.settings import Settings

__all__ = ["Server", "Settings", "run"]
