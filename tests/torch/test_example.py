"""The example with PyTorch: it learns, and continues after it was killed as if nothing had happened."""

import functools
import os
import pathlib
import runpy
import sys
from collections.abc import Sequence
from typing import Any, Final

import pytest

from tests.torch.ranks import Ranks

EXAMPLE: Final = pathlib.Path(__file__).parents[2] / "examples" / "torch_digits.py"


def train(method: str, rank: int, size: int, checkpoints: Sequence[str], dies_in: int) -> Any:
    """Run the example as a rank, once for each checkpoint. Return the exit status and what the checkpoint has."""
    import torch
    import torch.distributed as dist
    from torch.utils.data import DistributedSampler

    initialize, set_epoch = dist.init_process_group, DistributedSampler.set_epoch

    def begin(self: Any, epoch: int) -> None:
        if epoch == dies_in:
            os._exit(9)
        set_epoch(self, epoch)

    DistributedSampler.set_epoch = begin
    found = []
    for number, checkpoint in enumerate(checkpoints):
        dist.init_process_group = functools.partial(
            initialize, init_method=f"{method}{number}", rank=rank, world_size=size
        )
        sys.argv = [str(EXAMPLE), "--epochs", "8", "--checkpoint", checkpoint]
        with pytest.raises(SystemExit) as ending:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        saved = torch.load(checkpoint, weights_only=True)
        found.append((ending.value.code, saved["epoch"], [t.numpy().tobytes() for t in saved["network"].values()]))
    return found


def test_a_training_continues_from_its_checkpoint(ranks: Ranks, tmp_path: pathlib.Path) -> None:
    """It ends with the same bits as one that nobody has killed."""
    pytest.importorskip("sklearn")
    killed, whole = str(tmp_path / "killed"), str(tmp_path / "whole")
    # A rank that died has no result.
    assert ranks.run(2, train, [killed], 4, initialize=False, failing=True) == [None, None]
    (continued, undisturbed), _ = ranks.run(2, train, [killed, whole], 0, initialize=False)
    assert continued[:2] == (0, 8)
    assert continued == undisturbed
