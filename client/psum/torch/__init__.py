"""PyTorch on psum: a backend of torch.distributed.

    import psum.torch

    torch.distributed.init_process_group("psum")
    model = torch.nn.parallel.DistributedDataParallel(model)

The rest of the program stays as it is. Start it with `torchrun` or `psum launch`. Importing this module registers the
backend for tensors on the CPU and on CUDA devices.

Programs for BytePS and Horovod find what they use here too: `import psum.torch as bps`. Those that keep another backend
let psum average their gradients by `model.register_comm_hook(None, psum.torch.hook())`.

It may import client. Begin with group.py.
"""

try:
    import torch.distributed as dist
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "psum.torch needs PyTorch, which is not installed here: pip install 'psum[torch]', or install PyTorch as"
        " https://pytorch.org says",
        name="torch",
    ) from None
from psum.torch import in_callback, lost_objects, rendezvous
from psum.torch.byteps.allreduce import Average, Sum, allreduce, allreduce_, allreduce_async, allreduce_async_
from psum.torch.byteps.broadcasts import broadcast_object, broadcast_optimizer_state, broadcast_parameters
from psum.torch.byteps.compression import Compression
from psum.torch.byteps.operations import (
    poll,
    push_pull,
    push_pull_async,
    push_pull_async_inplace,
    push_pull_inplace,
    synchronize,
)
from psum.torch.byteps.optimizer import DistributedOptimizer
from psum.torch.ddp_hook import hook
from psum.torch.elastic_state import ElasticState
from psum.torch.group import PsumProcessGroup, create
from psum.torch.job import init, is_initialized, local_rank, local_size, rank, shutdown, size
from psum.torch.work import PsumWork

__all__ = [
    "Average",
    "Compression",
    "DistributedOptimizer",
    "ElasticState",
    "PsumProcessGroup",
    "PsumWork",
    "Sum",
    "allreduce",
    "allreduce_",
    "allreduce_async",
    "allreduce_async_",
    "broadcast_object",
    "broadcast_optimizer_state",
    "broadcast_parameters",
    "hook",
    "init",
    "is_initialized",
    "local_rank",
    "local_size",
    "poll",
    "push_pull",
    "push_pull_async",
    "push_pull_async_inplace",
    "push_pull_inplace",
    "rank",
    "shutdown",
    "size",
    "synchronize",
]

dist.Backend.register_backend("psum", create, extended_api=True, devices=["cpu", "cuda"])
rendezvous.install()
in_callback.install()
lost_objects.install()
