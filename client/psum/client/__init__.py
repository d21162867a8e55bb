"""The core client: sums and broadcasts anything that has the buffer protocol, from any thread.

    import numpy as np
    import psum.client

    with psum.client.connect() as client:
        store = client.store()
        gradient = np.ones((2, 3), np.float32)
        store.push_pull("w", gradient)  # the sum over all ranks, in place

It needs no framework; psum.mxnet and psum.torch are built on it.
"""

import os

# Otherwise one of a hundred forked children aborts in gRPC's fork handlers (measured with grpcio 1.85). Forked children
# do not use psum's connections.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# gRPC's own log lines about failed handshakes are less useful than our errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Looks names up as other programs do. gRPC's own resolver, c-ares, reads /etc/hosts differently: it finds only one of a
# host's addresses if another one also belongs to another name, as 127.0.0.1 does.
os.environ.setdefault("GRPC_DNS_RESOLVER", "native")

from psum.client.client import Client
from psum.client.clients import connect, reserve_store, shared_client
from psum.client.comparison import ComparedTensor, Comparison, digest_of
from psum.client.core.contribution import Contribution
from psum.client.core.counters import OperationStatistics, Statistics, Times
from psum.client.core.operation import Operation
from psum.client.core.placement import UNIT_ELEMENTS as SHARD_UNIT_ELEMENTS
from psum.client.core.store_numbers import StoreNumber
from psum.client.core.ticket import Ticket
from psum.client.elastic.sources import StateSource
from psum.client.elastic.state import ElasticState
from psum.client.elastic_range import Elastic
from psum.client.exit_status import PEER_FAULT_STATUS
from psum.client.future import Outcome
from psum.client.scaling import scale
from psum.client.settings import Settings
from psum.client.store import Store, key_name
from psum.client.transport.aggregator_status import addresses_behind, fetch_status
from psum.planes import Block, Loan
from psum.wire import ElementType
from psum.wire.errors import (
    AbortedError,
    AggregatorLostError,
    ClosedError,
    ConfigurationError,
    ConnectError,
    DeniedError,
    DisagreementError,
    ExcludedError,
    ExhaustedError,
    FaultError,
    ForkedError,
    InternalError,
    InvalidError,
    MissingRanksError,
    OutOfStepError,
    ProtocolError,
    PsumError,
    RoundTimeoutError,
    TakenError,
    UnreachableError,
    WorkerLostError,
)

__all__ = [
    "PEER_FAULT_STATUS",
    "SHARD_UNIT_ELEMENTS",
    "AbortedError",
    "AggregatorLostError",
    "Block",
    "Client",
    "ClosedError",
    "ComparedTensor",
    "Comparison",
    "ConfigurationError",
    "ConnectError",
    "Contribution",
    "DeniedError",
    "DisagreementError",
    "Elastic",
    "ElasticState",
    "ElementType",
    "ExcludedError",
    "ExhaustedError",
    "FaultError",
    "ForkedError",
    "InternalError",
    "InvalidError",
    "Loan",
    "MissingRanksError",
    "Operation",
    "OperationStatistics",
    "OutOfStepError",
    "Outcome",
    "ProtocolError",
    "PsumError",
    "RoundTimeoutError",
    "Settings",
    "StateSource",
    "Statistics",
    "Store",
    "StoreNumber",
    "TakenError",
    "Ticket",
    "Times",
    "UnreachableError",
    "WorkerLostError",
    "addresses_behind",
    "connect",
    "digest_of",
    "fetch_status",
    "key_name",
    "reserve_store",
    "scale",
    "shared_client",
]
