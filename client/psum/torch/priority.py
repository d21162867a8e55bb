"""Which tensors go first: those that the next forward pass needs first. A higher priority goes first.

The backward pass computes gradients in the reverse order of the forward pass. So the gradient that is ready last
belongs to the layer that the next forward pass begins with. All ranks must give a tensor the same priority. These
functions therefore depend on the order in the program only, and not on time.
"""


def of_ready(position: int) -> int:
    """The priority of what became ready at this position, counted from 0: later is more urgent.

    For the buckets of DistributedDataParallel, the position is the bucket's index. Where the index is not known, such
    as in a process group, it is the number of collectives that the group began before. That number may count on over
    all steps: DistributedDataParallel ends a step's collectives before it begins those of the next.
    """
    return position


def of_forward(position: int) -> int:
    """The priority of the gradient of the parameter at this position of the forward pass, counted from 0."""
    return -position
