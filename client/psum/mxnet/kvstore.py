"""The KVStore 'byteps'."""

import contextlib
import copy
import operator
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Self

from psum.client import (
    Client,
    Comparison,
    Operation,
    PsumError,
    StoreNumber,
    key_name,
    shared_client,
)
from psum.mxnet.arguments import Arrays
from psum.mxnet.arrays.memory import usable_in_place
from psum.mxnet.compat import MXNetError, mx
from psum.mxnet.engine import lifecycle
from psum.mxnet.exchange import Exchange
from psum.mxnet.names import Labels
from psum.mxnet.staging.stages import StagePool, StageStatistics

_ON_THE_WORKERS = "this store keeps no weights and runs no optimizer: gluon.Trainer and Module do that on the workers."


class BytePS(mx.kvstore.KVStoreBase):  # type: ignore[misc]
    """Sums NDArrays over all workers of a job. What `mx.kv.create('byteps')` gives.

    Each store is a namespace of keys of its own, so all workers must create theirs in the same order; a Trainer that is
    given the name creates one where it is made itself, though it connects in its first step. Keys are str or int; 3 and
    '3' are one key. Made in a process that is later forked, it belongs to the parent only.

    Args:
        client: The worker's membership in its job; by default the one that the process shares, which joins the job
            that the environment names, and waits for its aggregators, when the first store is made.
        in_place: Whether the arrays of a context can be read and written where they are; those of all other contexts
            go through stage arrays in pinned memory. By default those in host memory can.
        number: The number that was reserved where the program made the store, None: it is made here.

    Attributes:
        labels: What its keys stand for, by operation and key, where a Trainer uses it.

    Raises:
        PsumError: The job could not be joined.
    """

    def __init__(
        self,
        client: Client | None = None,
        *,
        in_place: Callable[[Any], bool] = usable_in_place,
        number: StoreNumber | None = None,
    ) -> None:
        self._client = shared_client() if client is None else client
        self._store = self._client.store(number)
        self.labels: Labels = {}
        self._waits = True
        """Whether a broadcast waits until it is done, as its documentation says."""
        self._updates = 0
        """How often a Trainer or Module has updated parameters with its sums."""
        self._stages = StagePool.of(self._client)
        self._in_place = in_place
        # Reentrant, for signal handlers.
        self._ordering = threading.RLock()
        self._pid = os.getpid()
        lifecycle.watch(self._client)

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
        """How many stages this process has for arrays that cannot be used in place, for all stores of the client."""
        return self._stages.statistics()

    def pushpull(self, key: str | int, value: Any, out: Any = None, priority: int = 0) -> None:
        """Sums an array over all workers, asynchronously: returns at once, and readers of out wait for the sum.

        All workers must push-pull a key the same number of times, with the same shape and type. They all get the same
        bits. Where the sum fails, reading out raises an MXNetError that says why.

        Arrays that cannot be used in place, as those of a GPU, go through one array in host memory for each key: the
        next value is copied there when the last sum has been copied out.

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
        _check_key("pushpull", key)
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
        _check_key("broadcast", key)
        values = Arrays.of(value, "value")
        outs = values if out is None else Arrays.of(out, "out")
        values.check_like(outs, "value", "out")
        if len(values.items) > 1:
            raise ValueError(f"value has {len(values.items)} arrays; a broadcast sends one")
        exchange = self._begin(key, Operation.BROADCAST, values, outs, priority, contributes=self.rank == 0)
        if self._waits:
            exchange.wait()

    def init(self, key: str | int, value: Any) -> None:
        """Gives all workers the value of rank 0, in place. What Module.fit calls for each parameter."""
        _check_key("init", key)
        self.broadcast(key, value)

    def barrier(self) -> None:
        """Waits until all workers have called it. It does not wait for sums: reading their arrays does.

        Raises:
            MXNetError: A worker will not come: the round timeout is over, or it is gone.
        """
        try:
            self._store.barrier()
        except PsumError as error:
            raise MXNetError(str(error)) from error

    def push(self, key: Any, value: Any, priority: int = 0) -> NoReturn:
        """Not implemented."""
        raise NotImplementedError(
            "push: this store keeps no values for a later pull. kv.pushpull(key, value, out) does both at once"
        )

    def pull(self, key: Any, out: Any = None, priority: int = 0, ignore_sparse: bool = True) -> NoReturn:
        """Not implemented."""
        raise NotImplementedError(
            "pull: this store keeps no values. kv.pushpull(key, value, out) gives the sum over all workers,"
            " kv.broadcast(key, value, out) the value of rank 0"
        )

    def row_sparse_pull(self, key: Any, out: Any = None, priority: int = 0, row_ids: Any = None) -> NoReturn:
        """Not implemented."""
        raise NotImplementedError(
            "row_sparse_pull: psum sums dense arrays only. Make parameters with stype='default' and"
            " grad_stype='default' (Embedding: sparse_grad=False)"
        )

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

    # MXNet's own stores have these beside what its documentation shows, and programs use them.

    def _barrier(self) -> None:
        """The same as barrier."""
        self.barrier()

    def _set_updater(self, updater: Any) -> NoReturn:
        """Not implemented."""
        raise NotImplementedError(f"_set_updater: {_ON_THE_WORKERS} Update there what pushpull gives")

    def _send_command_to_servers(self, head: Any, body: Any) -> NoReturn:
        """Not implemented."""
        raise NotImplementedError(
            "_send_command_to_servers: aggregators take no commands of programs; `psum status` shows what they do"
        )

    # For Trainer and Module.

    def labelled(self, labels: Labels) -> Self:
        """The same store, which knows what its keys stand for: for one of the Trainers that use it.

        Its broadcasts do not wait, as its sums do not: in their first step Trainers broadcast all parameters, and ranks
        that first step several Trainers in different orders would wait for each other for ever.
        """
        labelled = copy.copy(self)
        labelled.labels, labelled._waits, labelled._updates = labels, False, 0
        return labelled

    def is_check_due(self) -> bool:
        """Called after each update of parameters: whether they are to be checked now (PSUM_CHECK_EVERY)."""
        self._updates += 1
        every = self._client.settings.check_every
        return every > 0 and self._updates % every == 0

    def comparison(self) -> Comparison:
        """Compares over all ranks the parameters that are updated with this store's sums."""
        return Comparison(self._client, f"check_in_step of store {self._store.number}")

    def _begin(
        self, key: str | int, operation: Operation, values: Arrays, outs: Arrays, priority: int, *, contributes: bool
    ) -> Exchange:
        priority = operator.index(priority)
        # The engine must get what is to be done on a key in the order of the rounds, from whatever threads the calls
        # come: it may be done on one array, and round 0 would wait there for round 1, which waits for it.
        with self._ordering if os.getpid() == self._pid else contextlib.nullcontext():
            try:
                ticket = self._store.reserve(
                    key,
                    shape=outs.shape,
                    element_type=outs.element_type,
                    operation=operation,
                    priority=priority,
                    label=self.labels[operation].get(key, "") if self.labels else "",
                )
            except PsumError as error:
                raise MXNetError(str(error)) from error
            exchange = Exchange(
                ticket,
                (self._store, key_name(key), operation),
                values if contributes else None,
                outs,
                self._stages,
                self._in_place,
                awaited=self._waits and operation is Operation.BROADCAST,
            )
            exchange.begin(priority)
        exchange.complete()
        return exchange


def _check_key(what: str, key: Any) -> None:
    """Before the arrays, of which there are several too where MXNet's own stores take a list of keys.

    Raises:
        TypeError: The key cannot be one.
    """
    if isinstance(key, list | tuple):
        raise TypeError(
            f"{what} of the keys {key!r}: psum takes one key a call, for which a list is the copies on several devices."
            f" Call it for each: for key, value in zip(keys, values): kv.{what}(key, value)"
        )
    key_name(key)
