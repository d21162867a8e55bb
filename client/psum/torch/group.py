"""The process group: torch.distributed's calls, as collectives of psum."""

import sys
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType
from typing import Any, Final, NoReturn

import torch
import torch.distributed as dist
from psum.client import Client, ConfigurationError
from psum.torch import borrowers, bucket_calls, job, rendezvous
from psum.torch.agreement import NewestGroups, check_members
from psum.torch.bucket_layouts import BucketLayouts
from psum.torch.channel import Channel
from psum.torch.collectives import movements, reductions
from psum.torch.compilation import not_compiled
from psum.torch.monitored_barrier import MonitoredBarrier
from psum.torch.work import PsumWork

_SUM: Final = dist.ReduceOp.SUM

#: Up to which size an all_reduce counts as small, and how many works of such a group keeps.
_SMALL_ELEMENTS: Final = 1
_KEPT_WORKS: Final = 256

#: In which function DistributedDataParallel compares the ranks' parameters.
_VERIFICATION: Final = "_verify_param_shape_across_processes"

Tensors = Sequence[torch.Tensor]


@not_compiled
class PsumProcessGroup(dist.ProcessGroup):  # type: ignore[misc]
    """One group of ranks, which is a job of psum.

    torch.distributed calls its methods. Their names and arguments are those of torch.distributed.ProcessGroup. Ranks
    are ranks in the group. Each collective returns a PsumWork at once. Its tensors must not be changed, and the result
    not be read, before the work is done. psum's modules `collectives.reductions` and `collectives.movements` say what
    each costs.

    Args:
        channel: The way to psum. The group closes it.
        name: The group's name.
        monitored: Its barrier that names missing ranks; None in an elastic job, in which ranks may miss.
        timeout: How long that barrier waits if its caller does not say.

    Attributes:
        layouts: The buckets of its models, in an elastic job.
    """

    #: What torch asks a backend. A psum group is its own backend, on all devices.
    supports_splitting = False
    supports_coalescing = False
    supports_time_estimate = False

    def __init__(self, channel: Channel, name: str, monitored: MonitoredBarrier | None, timeout: timedelta) -> None:
        super().__init__(channel.rank, channel.size)
        self._channel = channel
        self._name = name
        self._monitored = monitored
        self._timeout = timeout
        self._kept: deque[PsumWork] = deque(maxlen=_KEPT_WORKS)
        """The last works of small all_reduces. DistributedDataParallel.join hands the work of one to DDP's code in C++,
        and keeps no reference itself. C++ would then find a work without its part in Python, and wait forever."""
        self._description = ""
        self.layouts = BucketLayouts()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r}: rank {self._channel.rank} of {self._channel.size}>"

    @property
    def client(self) -> Client:
        """This process's membership in the group's job, with settings and statistics. The group closes it."""
        return self._channel.client

    def numbering(self) -> object:
        """How its collectives are numbered: see KeySequence.numbering."""
        return self._channel.numbering()

    def renumber(self, numbering: Any) -> None:
        """Numbers collectives from now on as the group of another process."""
        self._channel.renumber(numbering)

    def allreduce(self, tensors: Tensors, opts: Any = None) -> PsumWork:
        """See reductions.all_reduce. The reducer of DistributedDataParallel may borrow the result; see `borrowers`."""
        caller = sys._getframe().f_back
        of_backward = bucket_calls.is_of_backward(caller)
        borrows = of_backward and self._channel.lends and len(tensors) == 1 and borrowers.may_borrow(self, tensors[0])
        work = reductions.all_reduce(
            self._channel,
            tensors,
            _op(opts),
            movable=of_backward,
            borrows=borrows,
            gradients=self._channel.elastic and bucket_calls.is_of_gradients(caller),
        )
        if sum(tensor.numel() for tensor in tensors) <= _SMALL_ELEMENTS:
            self._kept.append(work)
        return work

    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None) -> PsumWork:
        """See reductions.all_reduce."""
        gradients = self._channel.elastic and bucket_calls.is_of_gradients(sys._getframe().f_back)
        return reductions.all_reduce(self._channel, tensors, _op(opts), gradients=gradients)

    def reduce(self, tensors: Tensors, opts: Any) -> PsumWork:
        """See reductions.reduce."""
        (tensor,) = tensors
        return reductions.reduce(self._channel, tensor, _op(opts), opts.rootRank)

    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any = None) -> PsumWork:
        """See reductions.reduce_scatter."""
        return reductions.reduce_scatter(self._channel, outputs, inputs, _op(opts))

    def reduce_scatter_single(self, output: torch.Tensor, whole: torch.Tensor, opts: Any = None) -> PsumWork:
        """See reductions.reduce_scatter."""
        return reductions.reduce_scatter_single(self._channel, [output], [whole], _op(opts))

    def reduce_scatter_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> PsumWork:
        """See reductions.reduce_scatter."""
        return reductions.reduce_scatter_single(self._channel, outputs, inputs, _op(opts))

    def broadcast(self, tensors: Tensors, opts: Any) -> PsumWork:
        """See movements.broadcast. Modules have values on each rank; the tensors of a program may have none."""
        caller = sys._getframe().f_back
        if self._channel.elastic and (model := self.layouts.model_of(caller)) is not None:
            (tensor,) = tensors
            given = self.layouts.given(tensor)
            work = movements.broadcast(self._channel, [] if given else tensors, opts.rootRank, stands_in=True)
            work.wait()
            self.layouts.note(model, tensor)
            return work
        return movements.broadcast(self._channel, tensors, opts.rootRank, stands_in=not _is_of_program(caller))

    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> PsumWork:
        """See movements.scatter."""
        (output,) = outputs
        return movements.scatter(self._channel, output, inputs[0] if inputs else (), opts.rootRank)

    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any) -> PsumWork:
        """See movements.gather."""
        (tensor,) = inputs
        return movements.gather(self._channel, outputs[0] if outputs else (), tensor, opts.rootRank)

    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> PsumWork:
        """See movements.all_gather."""
        # DistributedDataParallel compares all ranks' numbers of parameters with this rank's.
        compares = self._channel.elastic and _is_called_by(_VERIFICATION, sys._getframe().f_back)
        return movements.all_gather(self._channel, outputs, inputs, own_for_lost=compares)

    def allgather_coalesced(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> PsumWork:
        """See movements.all_gather. Here each rank has a list of outputs, one for each input."""
        lists = [[copies[number] for copies in outputs] for number in range(len(inputs))]
        return movements.all_gather(self._channel, lists, inputs)

    def all_gather_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> PsumWork:
        """See movements.all_gather."""
        return movements.all_gather_single(self._channel, [output], [tensor])

    def all_gather_single_coalesced(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> PsumWork:
        """See movements.all_gather."""
        return movements.all_gather_single(self._channel, outputs, inputs)

    def barrier(self, opts: Any = None) -> PsumWork:
        """See movements.barrier."""
        return movements.barrier(self._channel)

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """See MonitoredBarrier.wait. torch.distributed.monitored_barrier takes groups of Gloo only: call this method.

        Args:
            timeout: How long to wait; None: the group's timeout.
            wait_all_ranks: Whether rank 0 looks for all ranks that are missing, or for the first.
        """
        if self._monitored is None:
            raise NotImplementedError(
                "monitored_barrier: an elastic job (PSUM_ELASTIC) has no rank that is always there, and through which"
                " the others meet. Call torch.distributed.barrier(); `psum status` shows whom rounds wait for"
            )
        self._monitored.wait(self._timeout if timeout is None else timeout, all_ranks=wait_all_ranks)

    def send(self, *_: Any, **__: Any) -> NoReturn:
        """Not implemented."""
        raise _lacks("send")

    def recv(self, *_: Any, **__: Any) -> NoReturn:
        """Not implemented."""
        raise _lacks("recv")

    def recv_anysource(self, *_: Any, **__: Any) -> NoReturn:
        """Not implemented."""
        raise _lacks("recv from any source")

    def alltoall(self, *_: Any, **__: Any) -> NoReturn:
        """Not implemented."""
        raise _lacks("all_to_all")

    def all_to_all_single(self, *_: Any, **__: Any) -> NoReturn:
        """Not implemented."""
        raise _lacks("all_to_all_single")

    # The names that some versions of torch use.
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single

    def shutdown(self) -> None:
        """Waits a few seconds for collectives under way, and leaves the job. Those that do not end by then fail."""
        self._channel.close()

    def abort(self) -> None:
        """Leaves the job at once. Collectives under way fail."""
        self._channel.abort()

    # What torch asks a group for:

    def getBackendName(self) -> str:
        """'psum'."""
        return "psum"

    def name(self) -> str:
        """'psum'."""
        return "psum"

    def getGroupName(self) -> str:
        """The group's name."""
        return self._name

    def setGroupName(self, name: str) -> None:
        """Names the group."""
        self._name = name

    def getGroupDesc(self) -> str:
        """The group's description."""
        return self._description

    def setGroupDesc(self, description: str) -> None:
        """Describes the group."""
        self._description = description

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device(kind) for kind in ("cpu", "cuda") if kind == "cpu" or torch.cuda.is_available()]

    def _get_backend(self, device: torch.device) -> "PsumProcessGroup":
        return self


def create(options: Any, _: object = None) -> PsumProcessGroup:
    """Makes a group. torch.distributed calls it, for the default group and in new_group.

    Args:
        options: torch's DistributedBackendOptions.

    Raises:
        ConfigurationError: The settings cannot be used, or the process has joined the default group's job already.
        ConnectError: An aggregator was not reached in time.
        DisagreementError: The ranks do not agree on the group.
        WorkerLostError: A rank of the group has left the job of the default group.
    """
    store, rank, size, timeout = options.store, options.group_rank, options.group_size, options.timeout
    ranks = list(options.global_ranks_in_group)
    name = str(options.group_id)
    # The list is empty for the default group, which is the job itself.
    if ranks:
        world = job.groups_client()
        if world is not None and world.elastic:
            raise ConfigurationError(
                [
                    f"new_group with the ranks {ranks}: an elastic job (PSUM_ELASTIC) has the default group only."
                    " Another group would fail with the first of its ranks. Use the default group"
                ]
            )
        newest = None if world is None else NewestGroups(dist.distributed_c10d._get_default_store(), world)
        check_members(store, name, ranks[rank], ranks, timeout, newest)
    elif job.is_initialized():
        raise ConfigurationError(
            [
                'psum.torch.init() was called before init_process_group("psum"). Call it after that: it then uses the'
                " membership of the process group"
            ]
        )
    borrowers.install()
    client = rendezvous.connect(store, rank, size, timeout=timeout, group_name=name if ranks else "")
    return PsumProcessGroup(
        Channel(client, f"psum group {name}", _patience(timeout)),
        name,
        None if client.elastic else MonitoredBarrier(store, client.settings.job, rank, size),
        timeout,
    )


def _patience(timeout: timedelta) -> float:
    """How long a collective waits, in seconds: a little longer than psum, whose errors say more."""
    seconds = timeout.total_seconds()
    return seconds + min(10.0, seconds / 10)


def _is_called_by(function: str, caller: FrameType | None) -> bool:
    return caller is not None and caller.f_code.co_name == function


def _is_of_program(caller: FrameType | None) -> bool:
    """Whether a broadcast was called by torch.distributed.broadcast, and not by DistributedDataParallel and the like.

    Those send parameters and buffers, by way of C++.
    """
    if caller is None:
        return True
    return caller.f_code.co_name == "broadcast" and caller.f_globals.get("__name__") == dist.distributed_c10d.__name__


def _op(options: Any) -> Any:
    return _SUM if options is None else options.reduceOp


def _lacks(what: str) -> NotImplementedError:
    return NotImplementedError(
        f"the backend psum does not have {what}, because it sums and does not connect pairs of ranks. Use a group of a"
        " backend that has it beside this one: torch.distributed.new_group(backend='gloo'), or 'nccl' for CUDA tensors"
    )
