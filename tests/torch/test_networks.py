"""Networks of the kinds that people train: convolutions with BatchNorm and residual blocks, and a transformer."""

import itertools
from typing import Any, Final

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.torch.ranks import Ranks

#: Small enough that each network has several buckets.
BUCKET_MEGABYTES: Final = 0.02

STEPS: Final = 3

#: How much parameters of about 1 may differ from those of a training on Gloo, as a multiple of the type's epsilon. Both
#: add up the same gradients in the same type. With two ranks the sums are the same bits. With more, only the order of
#: the summands differs: that costs each gradient about an epsilon in each step, and the learning rate makes it smaller.
#: Four ranks were seen to differ by half an epsilon. Without one rank's gradients in one step, it is more than 100,000
#: of float32.
EPSILONS: Final = {2: 0, 4: 16}


class Block(torch.nn.Module):  # type: ignore[misc]
    """A residual block as in ResNet-18."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.main = torch.nn.Sequential(
            torch.nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            torch.nn.BatchNorm2d(outer),
            torch.nn.ReLU(),
            torch.nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
            torch.nn.BatchNorm2d(outer),
        )
        self.shortcut = torch.nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut = torch.nn.Sequential(
                torch.nn.Conv2d(inner, outer, 1, stride, bias=False), torch.nn.BatchNorm2d(outer)
            )

    def forward(self, images: torch.Tensor) -> Any:
        return torch.relu(self.main(images) + self.shortcut(images))


def residual() -> torch.nn.Module:
    """ResNet-18 with fewer channels: a stem, four stages of two blocks, and a classifier."""
    channels = [8, 8, 12, 16, 20]
    blocks = [
        Block(inner if number == 0 else outer, outer, 2 if number == 0 and stage else 1)
        for stage, (inner, outer) in enumerate(itertools.pairwise(channels))
        for number in range(2)
    ]
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, channels[0], 3, 1, 1, bias=False),
        torch.nn.BatchNorm2d(channels[0]),
        torch.nn.ReLU(),
        *blocks,
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(channels[-1], 10),
    )


class Transformer(torch.nn.Module):  # type: ignore[misc]
    """Words, their places, three encoder layers, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(50, 32)
        self.places = torch.nn.Parameter(0.1 * torch.randn(12, 32))
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.classes = torch.nn.Linear(32, 10)

    def forward(self, text: torch.Tensor) -> Any:
        return self.classes(self.encoder(self.words(text) + self.places).mean(1))


def trained(group: Any, name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Train a network with a group, and return its parameters and buffers."""
    rank = dist.get_rank()
    # Ranks begin with different parameters: DDP gives all of them those of rank 0.
    torch.manual_seed(rank)
    net = (residual() if name == "residual" else Transformer()).to(dtype)
    model = DistributedDataParallel(net, process_group=group, bucket_cap_mb=BUCKET_MEGABYTES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    data = torch.Generator().manual_seed(100 + rank)
    for _ in range(STEPS):
        inputs = (
            torch.randn(4, 3, 8, 8, generator=data, dtype=dtype)
            if name == "residual"
            else torch.randint(50, (4, 12), generator=data)
        )
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), torch.randint(10, (4,), generator=data))
        loss.backward()
        optimizer.step()
    return [value.detach().clone() for value in (*net.parameters(), *net.buffers())]


def compared(name: str) -> tuple[bytes, list[float]]:
    """Train with psum and with Gloo. Returns the bits of psum's parameters, and the differences in epsilons."""
    gloo = dist.new_group(backend="gloo")
    bits, differences = b"", []
    for dtype in (torch.float32, torch.float64):
        ours, theirs = trained(dist.group.WORLD, name, dtype), trained(gloo, name, dtype)
        parameters = len(list((residual() if name == "residual" else Transformer()).parameters()))
        bits += b"".join(value.numpy().tobytes() for value in ours[:parameters])
        largest = max(
            float(((our - their).abs() / their.abs().clamp(min=1.0)).max())
            for our, their in zip(ours, theirs, strict=True)
        )
        differences.append(largest / torch.finfo(dtype).eps)
    return bits, differences


@pytest.mark.parametrize(("name", "size"), [("residual", 2), ("transformer", 4)])
def test_trainings_equal_those_on_gloo(ranks: Ranks, name: str, size: int) -> None:
    """All ranks end with the same bits, and with what Gloo gives to rounding."""
    results = ranks.run(size, compared, name)
    assert len({bits for bits, _ in results}) == 1
    for _, differences in results:
        assert max(differences) <= EPSILONS[size]
