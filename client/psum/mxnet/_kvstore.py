"""The KVStore 'byteps'."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

from psum.client import Client, Operation, PsumError, shared_client
from psum.mxnet import _lifecycle
from psum.mxnet._arguments import Arrays
from psum.mxnet._compat import MXNetError, mx
from psum.mxnet._exchange import Exchange
from psum.mxnet._memory import usable_in_place
from psum.mxnet._stages import StagePool, StageStatistics

_ON_THE_WORKERS = "this store keeps no weights and runs no optimizer: gluon.Trainer and Module do that on the workers."


class BytePS(mx.kvstore.KVStoreBase):  # type: ignore[misc]
    """Sums NDArrays over all workers of a job. What `mx.kv.create('byteps')` gives.

    Each store is a namespace of keys of its own, so all workers must create theirs in the same order. Keys are str or
    int; 3 and '3' are one key. Made in a process that is later forked, it belongs to the parent only.

    Args:
        client: The worker's membership in its job; by default the one that the process shares, which joins the job
            that the environment names, and waits for its aggregators, when the first store is made.
        in_place: Whether the arrays of a context can be read and written where they are; those of all other contexts
            go through stage arrays in pinned memory. By default those in host memory can.

    Raises:
        PsumError: The job could not be joined.
    """

    def __init__(self, client: Client | None = None, *, in_place: Callable[[Any], bool] = usable_in_place) -> None:
        self._client = shared_client() if client is None else client
        self._store = self._client.store()
        self._stages = StagePool(self._client.allocate)
        self._in_place = in_place
        _lifecycle.watch(self._client)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._store!r}>"

    @property
    def type(self) -> str:
        """'byteps'."""
        return "byteps"

    @property
    def rank(self) -> int:
        """This worker's rank, from 0 to num_workers - 1."""
        return self._client.rank

    @property
    def num_workers(self) -> int:
        """The number of workers."""
        return self._client.num_workers

    @property
    def local_rank(self) -> int:
        """This worker's rank among those on its node, from 0."""
        return self._client.local_rank

    @property
    def stage_statistics(self) -> StageStatistics:
        """How many stage arrays there are for arrays that cannot be used in place."""
        return self._stages.statistics()

    def pushpull(self, key: str | int, value: Any, out: Any = None, priority: int = 0) -> None:
        """Sums an array over all workers, asynchronously: returns at once, and readers of out wait for the sum.

        All workers must push-pull a key the same number of times, with the same shape and type. They all get the same
        bits. Where the sum fails, reading out raises an MXNetError that says why.

        Args:
            key: The name of the array.
            value: An NDArray, or a list of NDArrays on any devices, which are added up first.
            out: The NDArray, or each of the list of NDArrays, that gets the sum. None: value itself.
            priority: The higher, the sooner; Trainer gives the first layers the highest.

        Raises:
            TypeError: The key or an array is of a type that cannot be used.
            ValueError: The arrays differ in shape or type, or from those that the key had before.
            MXNetError: The key, or the whole job, has failed before.
        """
        values = Arrays.of(value, "value")
        outs = values if out is None else Arrays.of(out, "out")
        values.check_like(outs, "value", "out")
        self._begin(key, Operation.SUM, values, outs, priority, contributes=True)

    def broadcast(self, key: str | int, value: Any, out: Any = None, priority: int = 0) -> None:
        """Gives all workers the array of rank 0, and waits until it is there.

        Args:
            key: The name of the array.
            value: An NDArray. That of rank 0 is sent; on other ranks it is not read.
            out: The NDArray, or each of the list of NDArrays, that gets rank 0's value. None: value itself.
            priority: The higher, the sooner.

        Raises:
            TypeError: The key or an array is of a type that cannot be used.
            ValueError: The arrays differ in shape or type, or from those that the key had before.
            MXNetError: The broadcast failed.
        """
        values = Arrays.of(value, "value")
        outs = values if out is None else Arrays.of(out, "out")
        values.check_like(outs, "value", "out")
        if len(values.items) > 1:
            raise ValueError(f"value has {len(values.items)} arrays; a broadcast sends one")
        self._begin(key, Operation.BROADCAST, values, outs, priority, contributes=self.rank == 0).wait()

    def init(self, key: str | int, value: Any) -> None:
        """Gives all workers the value of rank 0, in place. What Module.fit calls for each parameter."""
        self.broadcast(key, value)

    @staticmethod
    def is_capable(capability: str) -> bool:
        """False, whatever the capability: this store keeps no weights."""
        return False

    def set_optimizer(self, optimizer: Any) -> None:
        """Not implemented."""
        raise NotImplementedError(f"set_optimizer: {_ON_THE_WORKERS} Pass the optimizer to them")

    def save_optimizer_states(self, fname: str, dump_optimizer: bool = False) -> None:
        """Not implemented."""
        raise NotImplementedError(f"save_optimizer_states: {_ON_THE_WORKERS} Use Trainer.save_states")

    def load_optimizer_states(self, fname: str) -> None:
        """Not implemented."""
        raise NotImplementedError(f"load_optimizer_states: {_ON_THE_WORKERS} Use Trainer.load_states")

    def set_gradient_compression(self, compression_params: Mapping[str, Any] | None) -> None:
        """Takes only what asks for no compression: None, {} or {'type': 'none'}.

        Raises:
            NotImplementedError: It asks for something else.
        """
        if compression_params and compression_params.get("type") != "none":
            raise NotImplementedError(
                f"gradient compression {dict(compression_params)!r}: psum sends gradients as they are; leave"
                " compression_params out, and cast the network to float16 to halve the bytes"
            )

    def _begin(
        self, key: str | int, operation: Operation, values: Arrays, outs: Arrays, priority: int, *, contributes: bool
    ) -> Exchange:
        priority = operator.index(priority)
        try:
            ticket = self._store.reserve(
                key, shape=outs.shape, element_type=outs.element_type, operation=operation, priority=priority
            )
        except PsumError as error:
            raise MXNetError(str(error)) from error
        exchange = Exchange(
            ticket,
            values if contributes else None,
            outs,
            self._stages,
            self._in_place,
            awaited=operation is Operation.BROADCAST,
        )
        exchange.begin(priority)
        return exchange
