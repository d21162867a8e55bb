"""The KVStore 'byteps'."""

import contextlib
import copy
import operator
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Self

from psum.client import (
    Client,
    Comparison,
    Operation,
    PsumError,
    StoreNumber,
    Ticket,
    key_name,
    shared_client,
)
from psum.mxnet.arguments import Arrays
from psum.mxnet.arrays.inspection import context_of
from psum.mxnet.arrays.memory import layout_can_be_set_at_once, usable_in_place
from psum.mxnet.compat import ENGINE_IS_NAIVE, MXNetError
from psum.mxnet.device_sum import DeviceSum, PipelineOf, pipeline_of
from psum.mxnet.engine import lifecycle
from psum.mxnet.in_place_sum import InPlaceSum
from psum.mxnet.known_sums import KnownSum, only_array
from psum.mxnet.names import Labels
from psum.mxnet.push_pull import PushPull
from psum.mxnet.shared_gradients import SharedGradients
from psum.mxnet.staging.lanes import Lane
from psum.mxnet.staging.lent_sums import LentSums
from psum.mxnet.staging.stages import StagePool, StageStatistics
from psum.mxnet.without_weights import StoreWithoutWeights


class BytePS(StoreWithoutWeights):
    """Sums NDArrays over all workers of a job. `mx.kv.create('byteps')` makes one.

    Each store is a namespace of keys, so all workers must create their stores in the same order. A Trainer that gets
    the name of the store counts as creating it when the Trainer is made, although it connects in its first step. A key
    is a str or an int; 3 and '3' are the same key. In a forked process, a store of the parent cannot be used.

    Args:
        client: The worker's client. By default, the client that the process shares. It joins the job from the
            environment, and waits for the aggregators, when the first store is made.
        in_place: Whether arrays of a context can be read and written in place. Arrays of all other contexts go through
            stages, which are arrays in pinned host memory. By default, arrays in host memory are used in place.
        pipeline_of: What moves the arrays of other contexts to stages and back, if they are summed one by one and in
            place. None, or all other arrays: MXNet does.
        number: The number that was reserved when the program made the store. None: the next number.

    Attributes:
        labels: What its keys stand for, by operation and key, if a Trainer uses it.

    Raises:
        PsumError: Joining the job failed.
    """

    def __init__(
        self,
        client: Client | None = None,
        *,
        in_place: Callable[[Any], bool] = usable_in_place,
        pipeline_of: PipelineOf = pipeline_of,
        number: StoreNumber | None = None,
    ) -> None:
        self._client = shared_client() if client is None else client
        self._store = self._client.store(number)
        self.labels: Labels = {}
        self._waits = True
        """Whether a broadcast waits until it is done, as `broadcast` documents."""
        self._updates = 0
        """How often a Trainer or Module has updated parameters with its sums."""
        self._stages = StagePool.of(self._client)
        self._shared = SharedGradients.of(self._client)
        self._lent_sums = LentSums.of(self._client)
        self._in_place = in_place
        self._pipeline_of = pipeline_of
        self._known: dict[str | int, KnownSum] = {}
        self._lanes: dict[str, Lane] = {}
        """Of the keys whose sums a pipeline has moved."""
        # Reentrant, for signal handlers.
        self._ordering = threading.RLock()
        self._forks = lifecycle.forks()
        # It is looked up once in a process, which must not come with the first sum.
        layout_can_be_set_at_once()
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
        """The number of stages for arrays that cannot be used in place, of all stores of the client."""
        return self._stages.statistics()

    def pushpull(self, key: str | int, value: Any, out: Any = None, priority: int = 0) -> None:
        """Sums an array over all workers. Returns at once; readers of out wait for the sum.

        All workers must push-pull a key the same number of times, with the same shape and type. They all get the same
        bits. If the sum fails, reading out raises an MXNetError that tells why.

        In an elastic job, a sum of floating-point numbers to which only m of the n workers contributed is multiplied by
        n / m, because it is taken for gradients: divided by num_workers, it is their mean. Integers are never scaled.
        For exact sums and counts of other things, use the core client (psum.client) beside the store.

        Arrays that cannot be used in place, such as those of a GPU, go through one array in host memory for each key.
        The next value is copied there after the last sum was copied out.

        Args:
            key: The name of the array.
            value: An NDArray, or a list of NDArrays on any devices, which are added up first.
            out: Receives the sum: an NDArray, or a list of NDArrays of which each receives it. None: value receives it.
            priority: Higher values go first. Trainer gives the first layers the highest.

        Raises:
            TypeError: The key or an array has an unsupported type.
            ValueError: The arrays differ in shape or type, or from those that the key had before.
            MXNetError: The key, or the whole job, has failed before.
        """
        array = only_array(value, out)
        # A dictionary would take True for 1.
        if array is not None and (type(key) is int or type(key) is str):
            known = self._known.get(key)
            if known is not None and known.fits(array, priority):
                # Nearly every operation of a training comes here.
                self._sum_again(known, array, priority)
                return
        _check_key("pushpull", key)
        values = outs = Arrays.of(value, "value")
        if out is not None:
            outs = Arrays.of(out, "out")
            values.check_like(outs, "value", "out")
        if array is not None:
            self._sum_in_place(key, array, outs, priority)
        else:
            self._begin(key, Operation.SUM, values, outs, priority, contributes=True)

    def broadcast(self, key: str | int, value: Any, out: Any = None, priority: int = 0) -> None:
        """Gives all workers the array of rank 0, and waits for it.

        Args:
            key: The name of the array.
            value: An NDArray. Rank 0 sends its value; other ranks do not read theirs. But in an elastic job theirs
                must be valid too, such as a parameter's after its initialization. If rank 0 is lost before it has sent
                its value, all others receive that of one of them, or those of several in parts of the array.
            out: Receives rank 0's value: an NDArray, or a list of NDArrays of which each receives it. None: value
                receives it.
            priority: Higher values go first.

        Raises:
            TypeError: The key or an array has an unsupported type.
            ValueError: The arrays differ in shape or type, or from those that the key had before.
            MXNetError: The broadcast failed.
        """
        _check_key("broadcast", key)
        values = Arrays.of(value, "value")
        outs = values if out is None else Arrays.of(out, "out")
        values.check_like(outs, "value", "out")
        if len(values.items) > 1:
            raise ValueError(
                f"value has {len(values.items)} arrays; a broadcast sends one: pass that as value, and all as out"
            )
        push_pull = self._begin(key, Operation.BROADCAST, values, outs, priority, contributes=self.rank == 0)
        if self._waits:
            push_pull.wait()

    def init(self, key: str | int, value: Any) -> None:
        """Gives all workers the value of rank 0, in place. Module.fit calls it for each parameter."""
        _check_key("init", key)
        self.broadcast(key, value)

    def barrier(self) -> None:
        """Waits until all workers have called it. It does not wait for sums; reading their arrays does.

        Raises:
            MXNetError: A worker did not call it before the round timeout, or is gone.
        """
        try:
            self._store.barrier()
        except PsumError as error:
            raise MXNetError(str(error)) from error

    def _barrier(self) -> None:
        """Does the same as `barrier`. MXNet's own stores have it, and programs use it."""
        self.barrier()

    # For Trainer and Module:

    def labelled(self, labels: Labels) -> Self:
        """Returns this store with labels for its keys, for one of the Trainers that use it.

        Its broadcasts do not wait. In their first step Trainers broadcast all parameters: ranks that step several
        Trainers for the first time in different orders would otherwise deadlock.
        """
        labelled = copy.copy(self)
        labelled.labels, labelled._waits, labelled._updates = labels, False, 0
        labelled._known = {}
        return labelled

    def is_check_due(self) -> bool:
        """Counts an update of parameters. Returns whether to check them now (PSUM_CHECK_EVERY)."""
        self._updates += 1
        every = self._client.settings.check_every
        return every > 0 and self._updates % every == 0

    def comparison(self) -> Comparison:
        """Makes a comparison, over all ranks, of the parameters that are updated with this store's sums."""
        return Comparison(self._client, f"check_in_step of store {self._store.number}")

    def _sum_again(self, known: KnownSum, array: Any, priority: int) -> None:
        """Sums an array that is known, in place."""
        with self._in_order():
            try:
                ticket = self._client.reserve_again(known.key, priority, known.label)
            except PsumError as error:
                raise MXNetError(str(error)) from error
            in_place = known.in_place
            if in_place is not None and in_place.free and not self._lanes:
                in_place.begin(ticket, array, priority)
            else:
                self._queue_in_place(ticket, known, known.arrays(array), priority)

    def _sum_in_place(self, key: str | int, array: Any, arrays: Arrays, priority: int) -> None:
        """Sums an array in place, and remembers what it is like."""
        context = context_of(array)
        pipeline = None
        if not self._in_place(context):
            pipeline = self._pipeline_of(context)
        if ENGINE_IS_NAIVE or not arrays.nbytes or not (pipeline or self._in_place(context)):
            self._begin(key, Operation.SUM, arrays, arrays, priority, contributes=True)
            return
        priority = operator.index(priority)
        with self._in_order():
            ticket = self._reserve(key, arrays, Operation.SUM, priority)
            label = self._label(key, Operation.SUM)
            self._known[key] = known = KnownSum(
                ticket, key_name(key), label, array, arrays, pipeline, context.device_id
            )
            self._queue_in_place(ticket, known, arrays, priority)

    def _queue_in_place(self, ticket: Ticket, known: KnownSum, arrays: Arrays, priority: int) -> None:
        if known.pipeline is not None:
            lane = self._lanes.get(known.name)
            if lane is None:
                lane = self._lanes.setdefault(known.name, Lane())
            DeviceSum(
                ticket, arrays, known.device, lane, self._stages, self._lent_sums, known.pipeline, self._nominal
            ).begin(priority)
        elif known.name in self._lanes:
            # Earlier sums of the key may still be on their way through stages.
            self._push_pull(ticket, known.name, Operation.SUM, arrays, arrays).begin(priority)
        else:
            known.in_place = InPlaceSum(arrays.element_type, arrays.nbytes, self._shared, self._nominal)
            known.in_place.begin(ticket, arrays.items[0], priority)

    def _begin(
        self, key: str | int, operation: Operation, values: Arrays, outs: Arrays, priority: int, *, contributes: bool
    ) -> PushPull:
        priority = operator.index(priority)
        with self._in_order():
            ticket = self._reserve(key, outs, operation, priority)
            # If the root is lost, the ranks take the value of one of them.
            stands_in = not contributes and self._client.elastic
            push_pull = self._push_pull(
                ticket,
                key_name(key),
                operation,
                values if contributes or stands_in else None,
                outs,
                stands_in=stands_in,
            )
            push_pull.begin(priority)
        push_pull.complete()
        return push_pull

    @property
    def _nominal(self) -> int:
        """The number of ranks by which the program divides sums that are scaled when fewer contribute; else 0."""
        return self.num_workers if self._client.elastic else 0

    def _push_pull(
        self,
        ticket: Ticket,
        name: str,
        operation: Operation,
        values: Arrays | None,
        outs: Arrays,
        *,
        stands_in: bool = False,
    ) -> PushPull:
        sums = operation is Operation.SUM
        return PushPull(
            ticket,
            (self._store, name, operation),
            values,
            outs,
            self._stages,
            self._shared,
            self._in_place,
            self._lanes.get(name) if sums else None,
            awaited=self._waits and not sums,
            nominal=self._nominal if sums else 0,
            stands_in=stands_in,
        )

    def _in_order(self) -> AbstractContextManager[Any]:
        """The engine must get the operations on a key in the order of their rounds, whatever threads call.

        They may use the same array: round 0 would wait there for round 1, which waits for round 0.
        """
        return self._ordering if lifecycle.forks() == self._forks else contextlib.nullcontext()

    def _label(self, key: str | int, operation: Operation) -> str:
        return self.labels[operation].get(key, "") if self.labels else ""

    def _reserve(self, key: str | int, arrays: Arrays, operation: Operation, priority: int) -> Ticket:
        try:
            return self._store.reserve(
                key,
                shape=arrays.shape,
                element_type=arrays.element_type,
                operation=operation,
                priority=priority,
                label=self._label(key, operation),
            )
        except PsumError as error:
            raise MXNetError(str(error)) from error


def _check_key(what: str, key: Any) -> None:
    """Checks a key.

    It comes before the arrays: callers that pass a list of keys, as to MXNet's own stores, pass a list of arrays too.

    Raises:
        TypeError: It is not a key.
    """
    if isinstance(key, list | tuple):
        raise TypeError(
            f"{what} of the keys {key!r}: psum takes one key a call, and a list of arrays is its copies on several"
            f" devices. Call it for each: for key, value in zip(keys, values): kv.{what}(key, value)"
        )
    key_name(key)
