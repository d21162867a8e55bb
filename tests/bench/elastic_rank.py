"""One worker of tests.bench.elastic: a step is a pause, an all-reduce and an update.

    python elastic_rank.py WAY DIRECTORY RANK

It writes its process id to DIRECTORY/RANK.pid, and appends a line "step time" to DIRECTORY/RANK.steps after each step.
"""

import os
import pathlib
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import numpy as np

#: The number of ranks.
RANKS: Final = 4

#: The elements of the gradient, of 4 bytes each.
ELEMENTS: Final = 1 << 20

#: The time that computing stands for.
PAUSE_SECONDS: Final = 0.05

#: How often the ways that restart write a checkpoint.
CHECKPOINT_STEPS: Final = 100


class Rank:
    """What all ways have in common.

    Args:
        directory: Where it reports.
        rank: The rank.
    """

    def __init__(self, directory: pathlib.Path, rank: int) -> None:
        self.rank = rank
        self.weights = np.zeros(ELEMENTS, np.float32)
        self._checkpoint = directory / "checkpoint.npz"
        self._steps = (directory / f"{rank}.steps").open("a", buffering=1)
        new = directory / f"{rank}.new"
        new.write_text(str(os.getpid()))
        new.replace(directory / f"{rank}.pid")

    def report(self, step: int) -> None:
        """Reports a step, from 1."""
        self._steps.write(f"{step} {time.monotonic()}\n")

    def compute(self) -> Any:
        """Return a gradient."""
        time.sleep(PAUSE_SECONDS)
        return np.full(ELEMENTS, self.rank + 1, np.float32)

    def resume(self) -> int:
        """Take the weights of the last checkpoint, and return its step."""
        try:
            with np.load(self._checkpoint) as saved:
                self.weights[:] = saved["weights"]
                return int(saved["step"])
        except FileNotFoundError:
            return 0

    def save(self, step: int) -> None:
        """Write a checkpoint if one is due."""
        if self.rank == 0 and step % CHECKPOINT_STEPS == 0:
            new = self._checkpoint.with_suffix(".new.npz")
            np.savez(new, weights=self.weights, step=step)
            new.replace(self._checkpoint)


def elastic(own: Rank) -> None:
    """An elastic job of psum: the others go on, and a new process joins them."""
    from psum import client as psum

    client = psum.connect()
    store = client.store()
    state = psum.ElasticState(client, {"weights": own.weights}, done=0)
    while True:
        gradient = own.compute()
        future = store.push_pull_async("gradient", gradient)
        future.result()
        for part in future.contributors:
            gradient[part.start : part.stop] *= RANKS / part.count
        own.weights -= np.float32(0.01) * gradient
        state.done += 1
        own.report(state.done)
        state.step()


def restarted(own: Rank) -> None:
    """A job of psum that ends when a worker is lost, and is started again from its checkpoint."""
    from psum import client as psum

    store = psum.connect().store()
    _from_checkpoint(own, lambda gradient: store.push_pull("gradient", gradient))


def gloo(own: Rank) -> None:
    """The same with Gloo and torchrun."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    _from_checkpoint(own, lambda gradient: dist.all_reduce(torch.from_numpy(gradient)))


def _from_checkpoint(own: Rank, all_reduce: Callable[[Any], Any]) -> None:
    step = own.resume()
    while True:
        gradient = own.compute()
        all_reduce(gradient)
        own.weights -= np.float32(0.01) * gradient
        step += 1
        own.report(step)
        own.save(step)


def torchft(own: Rank) -> None:
    """torchft: a step that a worker is lost in is given up, and the next one is made without it."""
    import torch
    from torchft import Manager, ProcessGroupGloo

    weights = torch.from_numpy(own.weights)
    # As torchrun's agent has it, one for each replica.
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = torch.distributed.TCPStore(host, port, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=5)),
        min_replica_size=2,
        load_state_dict=lambda saved: weights.copy_(saved["weights"]),
        state_dict=lambda: {"weights": weights},
        replica_id=f"rank_{own.rank}_",
        timeout=timedelta(seconds=10),
    )
    while store is not None:
        manager.start_quorum()
        gradient = torch.from_numpy(own.compute())
        manager.allreduce(gradient).wait()
        if manager.should_commit():
            weights -= 0.01 * gradient
            own.report(manager.current_step())


WAYS: Final = {"psum": elastic, "restart": restarted, "torchrun": gloo, "torchft": torchft}


if __name__ == "__main__":
    way, directory, rank = sys.argv[1], pathlib.Path(sys.argv[2]), int(os.environ.get("RANK", sys.argv[3]))
    if way == "torchft":
        # Each replica is a job of its own, of one process.
        rank = int(sys.argv[3])
    WAYS[way](Rank(directory, rank))
