"""The aggregator: an asyncio gRPC service that sums what the workers of many jobs push to it.

`run` is the whole process as `psum aggregator` starts it; `Server` serves within a running event loop.
"""

import os

# Of handshakes that fail gRPC writes lines that do not name the peer; clients say what is wrong.
# Why an address cannot be listened on is said in an error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from psum.aggregator.server import Server, run
from psum.aggregator.settings import Settings

__all__ = ["Server", "Settings", "run"]
