"""The way of tensors to psum and back: `push_pull` and `broadcast`, in place and without waiting.

It may import client and torch. Begin with transfer.py.
"""

from psum.torch.staging.transfer import (
    Counted,
    Done,
    after_results,
    broadcast,
    come_after,
    devices_of,
    mark,
    push_pull,
)

__all__ = ["Counted", "Done", "after_results", "broadcast", "come_after", "devices_of", "mark", "push_pull"]
