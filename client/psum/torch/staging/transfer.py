"""Sums and broadcasts of tensors, wherever their memory is."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from psum.client import Client, Contribution, Loan, Operation, PsumError, Store, Ticket, WorkerLostError, scale
from psum.torch import marks
from psum.torch.staging.cuda import CudaDevice
from psum.torch.staging.device import Event
from psum.torch.staging.last_steps import after
from psum.torch.staging.pipeline import Pipeline
from psum.torch.staging.request import Request
from psum.torch.staging.shared_storages import SharedStorages
from psum.torch.tensors import as_bytes, byte_count, check_dense, element_type_of, is_plain, plain

#: Called exactly once, from any thread, with None or the error. It must return soon and not raise.
Done = Callable[[PsumError | None], None]

#: Called before `done` if fewer ranks than all have contributed, from any thread. It must return soon and not raise.
Counted = Callable[[Sequence[Contribution]], None]


def push_pull(
    store: Store,
    key: str,
    tensor: torch.Tensor,
    *,
    priority: int = 0,
    movable: bool = False,
    done: Done,
    lent: Callable[[Loan], None] | None = None,
    gradient: bool = False,
    counted: Counted | None = None,
) -> None:
    """Sums a tensor over all ranks, in place. Returns at once: the caller's thread does not wait for psum or a GPU.

    The call fixes the round of the key, in the program's order, in whatever order the values become ready. On a GPU,
    what is summed is the value at this point of the caller's current stream.

    Args:
        store: The namespace of the key.
        key: The tensor's name. A key keeps its number of elements and its type.
        tensor: A dense tensor on the CPU or on a GPU. Do not change it, nor use it, before `done` is called.
        priority: Higher values go first.
        movable: Whether the tensor's memory may be moved to where aggregators on this host read it, if the tensor is
            summed again and again. See SharedStorages.memory_of.
        done: Called exactly once, with None or the error. For a tensor on a GPU, the thread that calls it has a current
            stream on that GPU which comes after the result. So an event that `done` records there, or a
            torch.futures.Future with `devices_of` that it completes, makes other streams wait for the result. See
            `after_results` for other threads.
        lent: Called before `done` with the result, if that is lent and not written to the tensor. None: it is written.
            Only for plain tensors on the CPU.
        gradient: Whether the program divides by the number of ranks, and means the mean. In an elastic job, a sum to
            which fewer ranks contributed is then scaled: see psum.client.scale.
        counted: Called before `done` if fewer ranks than all contributed to some elements, with their counts.

    Raises:
        TypeError: psum cannot sum such a tensor.
        ValueError: The key had another size or element type before.
        PsumError: The key or the whole job has failed. After any exception, `done` is not called.
    """
    _check(tensor)
    ticket = store.reserve(key, shape=(tensor.numel(),), element_type=element_type_of(tensor.dtype), priority=priority)
    arrived = _arrival(store, gradient=gradient, counted=counted)
    request = Request(ticket, gives=True, takes=True, as_bytes=False, lent=lent, arrived=arrived)
    _begin(store, request, tensor, done, movable=movable)


def broadcast(
    store: Store,
    key: str,
    tensor: torch.Tensor,
    *,
    root: int,
    priority: int = 0,
    done: Done,
    stands_in: bool = False,
) -> None:
    """Gives every rank the tensor of one rank, in place, bit for bit. Returns at once, as `push_pull` does.

    From rank 0, psum moves the tensor once. From another rank it is a sum of bytes to which the others contribute
    zeros, which costs as much as `push_pull`. In an elastic job, it fails with a WorkerLostError if that rank was lost
    before it had contributed to all of it. See `stands_in` for rank 0.

    Args:
        store, key, tensor, priority, done: As for `push_pull`.
        root: The rank of the job whose value all ranks get.
        stands_in: Whether this rank's tensor has a value that the others may get if rank 0 is lost before it has sent
            its own, in an elastic job. Otherwise the broadcast then fails.

    Raises:
        TypeError, ValueError, PsumError: As for `push_pull`.
    """
    _check(tensor)
    element_type = element_type_of(tensor.dtype)
    is_root = store.client.rank == root
    if root and _is_elastic(store):
        _broadcast_marked(store, key, tensor, root, priority, done)
        return
    if root == 0:
        ticket = store.reserve(
            key,
            shape=(tensor.numel(),),
            element_type=element_type,
            operation=Operation.BROADCAST,
            priority=priority,
        )
    else:
        # Bytes are integers: adding zeros changes no bit, not even of a NaN or of -0.0.
        ticket = store.reserve(
            f"{key} from rank {root}",
            shape=(byte_count(tensor),),
            element_type=element_type_of(torch.uint8),
            priority=priority,
        )
    request = Request(
        ticket,
        gives=is_root,
        takes=not is_root,
        as_bytes=root != 0,
        stands_in=stands_in and not is_root and _is_elastic(store),
    )
    _begin(store, request, tensor, done)


def _broadcast_marked(store: Store, key: str, tensor: torch.Tensor, root: int, priority: int, done: Done) -> None:
    """Broadcasts from another rank than 0, as a sum that shows whether the root has contributed."""
    nbytes, is_root = byte_count(tensor), store.client.rank == root
    place = torch.zeros(marks.marked_size(nbytes), dtype=torch.uint8, device=tensor.device)
    if is_root:
        marks.write(place, as_bytes(plain(tensor)))
    counts: list[Contribution] = []

    def conclude() -> None:
        if is_root:
            return
        if counts and not marks.is_complete(place):
            raise WorkerLostError(
                f"rank {root} was lost before it had given its value to a broadcast ({key})", ranks=[root]
            )
        tensor.detach().copy_(marks.read(place, nbytes).view(tensor.dtype).view(tensor.shape))
        if tensor.device.type == "cuda":
            # The program may drop the tensor when it does not want the result, before this copy is done.
            device = CudaDevice.of(tensor.device)
            device.keep(tensor, device.current_stream())

    ended = after(conclude, done, lambda: f"a broadcast ({key})")
    push_pull(store, f"{key} from rank {root}, marked", place, priority=priority, done=ended, counted=counts.extend)


def _is_elastic(store: Store) -> bool:
    return bool(getattr(store.client, "elastic", False))


def _arrival(store: Store, *, gradient: bool, counted: Counted | None) -> Callable[[Ticket, Any], None] | None:
    """What is to be done with a sum before it goes to its tensor."""
    if not _is_elastic(store):
        return None
    if gradient:
        return functools.partial(_scale, store.client.num_workers)
    return None if counted is None else functools.partial(_tell, counted)


def _scale(nominal: int, ticket: Ticket, array: Any) -> None:
    scale(array, ticket.key.element_type, ticket.contributions, nominal)


def _tell(counted: Counted, ticket: Ticket, _: Any) -> None:
    if parts := ticket.contributions:
        counted(parts)


def devices_of(tensors: Iterable[torch.Tensor]) -> list[torch.device]:
    """Returns the GPUs that tensors are on: what a torch.futures.Future of them needs as `devices`."""
    return sorted({tensor.device for tensor in tensors if tensor.device.type == "cuda"}, key=str)


def mark(place: torch.device) -> Event:
    """Returns an event for the point of the calling thread's current stream on a GPU."""
    stream = torch.cuda.current_stream(place)
    event: Event = CudaDevice.of(place).record(stream)
    return event


def come_after(place: torch.device, event: Event) -> None:
    """Lets the calling thread's current stream on a GPU come after an event that was recorded on that GPU."""
    CudaDevice.of(place).wait(torch.cuda.current_stream(place), event)


@contextlib.contextmanager
def after_results(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """Within this context, the calling thread's current streams come after all results for which `done` was called.

    Use it to complete a torch.futures.Future in another thread than the one that calls `done`.

    Args:
        tensors: The tensors whose results are meant. For those on the CPU there is nothing to do.
    """
    with contextlib.ExitStack() as stack:
        for place in devices_of(tensors):
            device = CudaDevice.of(place)
            stack.enter_context(device.use(device.up))
        yield


def _check(tensor: torch.Tensor) -> None:
    """Raises for a tensor that psum cannot take. Before a round is fixed: other ranks would wait for this one."""
    check_dense(tensor, "tensor")
    if tensor.device.type not in ("cpu", "cuda"):
        raise TypeError(f"psum takes tensors on the CPU and on CUDA devices, and this one is on {tensor.device}")
    if tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise PsumError(
            "a CUDA graph is being captured, and psum's sums cannot be part of it: they are no work of the GPU. Capture"
            " the work before and after the collective in graphs of their own"
        )


def _begin(store: Store, request: Request, tensor: torch.Tensor, done: Done, *, movable: bool = False) -> None:
    """Starts a reserved operation: at once in host memory, by way of host memory on a GPU."""
    try:
        if tensor.device.type == "cuda" and tensor.numel():
            assert isinstance(store.client, Client)
            Pipeline.of(store.client, CudaDevice.of(tensor.device)).begin(request, tensor.detach(), done)
        elif movable and isinstance(store.client, Client) and tensor.numel() and is_plain(tensor):
            _begin_in_shared_memory(SharedStorages.of(store.client), request, tensor.detach(), done)
        else:
            _begin_in_place(request, tensor.detach(), done)
    except BaseException as error:
        # RuntimeError: the operation was started, and what came then failed.
        with contextlib.suppress(RuntimeError):
            request.ticket.abort(f"{type(error).__name__}: {error}")
        raise


def _begin_in_shared_memory(shared: SharedStorages, request: Request, tensor: torch.Tensor, done: Done) -> None:
    array, staged = shared.memory_of(tensor)

    def withdraw_if_failed(error: PsumError | None) -> None:
        try:
            if error is not None:
                shared.withdraw(tensor)
        finally:
            done(error)

    request.start_with(array, done if staged is None else withdraw_if_failed, staged)


def _begin_in_place(request: Request, tensor: torch.Tensor, done: Done) -> None:
    if not tensor.numel():
        request.start(torch.empty(0, dtype=tensor.dtype), done)
    elif is_plain(tensor):
        # Not copied to staging memory first: that would take longer than what psum itself does with other memory, which
        # is one copy to where an aggregator on this host reads it, while shards before it are summed.
        request.start(tensor, done)
    else:
        copy = plain(tensor)

        def copy_back() -> None:
            if request.takes:
                tensor.copy_(copy)

        request.start(copy, after(copy_back, done, lambda: request.ticket.key.title))
