"""Trains a small network on handwritten digits with PyTorch's DistributedDataParallel, and continues after a stop.

    torchrun --nproc-per-node 2 examples/torch_digits.py
    psum launch --workers 2 -- python examples/torch_digits.py --checkpoint digits.pt

The digits are those of scikit-learn. After each epoch, rank 0 writes the checkpoint. If the file exists at the start,
the training continues after its epoch. At the end, the test accuracy must be above 95 %, and the parameters must be the
same on all ranks, bit for bit. Otherwise the exit status is 1.
"""

import argparse
import hashlib
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import psum.torch

BATCH_SIZE = 32
LEAST_ACCURACY = 0.95


def main() -> int:
    """Trains, tests and compares. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--checkpoint", type=pathlib.Path)
    parser.add_argument("--backend", default="psum", help="for example gloo, to compare")
    options = parser.parse_args()
    started = time.perf_counter()

    dist.init_process_group(options.backend)
    torch.set_num_threads(1)
    # Every rank begins with different parameters. DistributedDataParallel gives all ranks those of rank 0.
    torch.manual_seed(dist.get_rank())
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    model = DistributedDataParallel(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.003)

    train, test = load_data()
    done = load_checkpoint(options.checkpoint, network, optimizer)
    train_network(model, optimizer, train, range(done + 1, options.epochs + 1), options)
    accuracy = evaluate(network, test)
    digests = all_digests(network)
    if dist.get_rank() == 0:
        print(f"test accuracy {accuracy:.1%} after {options.epochs} epochs in {time.perf_counter() - started:.1f} s")
        same = len(set(digests)) == 1
        print(f"all {len(digests)} ranks hold {'the same' if same else 'different'} parameters: {digests[0][:16]}")
    dist.destroy_process_group()
    return 0 if accuracy > LEAST_ACCURACY and len(set(digests)) == 1 else 1


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Four fifths of the digits for training, and one fifth for testing."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    inputs = torch.tensor(images[order] / 16, dtype=torch.float32)
    labels = torch.tensor(digits[order])
    cut = len(order) * 4 // 5
    return TensorDataset(inputs[:cut], labels[:cut]), TensorDataset(inputs[cut:], labels[cut:])


def train_network(
    model: DistributedDataParallel, optimizer: Any, data: TensorDataset, epochs: range, options: Any
) -> None:
    """Trains on this rank's share of the data."""
    sampler: Any = DistributedSampler(data)
    loader: Any = DataLoader(data, BATCH_SIZE, sampler=sampler)
    for epoch in epochs:
        # Another order in each epoch, the same after a restart.
        sampler.set_epoch(epoch)
        losses = []
        for images, digits in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), digits)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        save_checkpoint(options.checkpoint, epoch, model.module, optimizer)
        if dist.get_rank() == 0:
            print(f"epoch {epoch:2} of {options.epochs}: loss {sum(losses) / len(losses):.4f}", flush=True)


def save_checkpoint(path: pathlib.Path | None, epoch: int, network: Any, optimizer: Any) -> None:
    """Writes the state of rank 0, which all ranks have, so that the file is always whole."""
    if path is not None and dist.get_rank() == 0:
        part = path.with_name(f"{path.name}.part")
        torch.save({"epoch": epoch, "network": network.state_dict(), "optimizer": optimizer.state_dict()}, part)
        os.replace(part, path)


def load_checkpoint(path: pathlib.Path | None, network: Any, optimizer: Any) -> int:
    """Gives all ranks the state that rank 0 has saved. Returns its epoch; 0 if there is none."""
    states: list[Any] = [None]
    if path is not None and dist.get_rank() == 0 and path.exists():
        states = [torch.load(path, weights_only=True)]
        print(f"continuing after epoch {states[0]['epoch']}", flush=True)
    dist.broadcast_object_list(states)
    if states[0] is None:
        return 0
    network.load_state_dict(states[0]["network"])
    optimizer.load_state_dict(states[0]["optimizer"])
    return int(states[0]["epoch"])


def evaluate(network: Any, data: TensorDataset) -> float:
    """The share of images that the network recognises."""
    images, digits = data.tensors
    with torch.no_grad():
        return float((network(images).argmax(dim=1) == digits).float().mean())


def all_digests(network: Any) -> list[str]:
    """A digest of each rank's parameters. All ranks must call it."""
    digest = hashlib.sha256()
    for parameter in network.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    digests = [""] * dist.get_world_size()
    dist.all_gather_object(digests, digest.hexdigest())
    return digests


if __name__ == "__main__":
    # psum.torch registers the backend when it is imported.
    assert psum.torch
    sys.exit(main())
