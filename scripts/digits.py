"""Trains a small network on the handwritten digits of scikit-learn, with any number of workers.

    psum launch --workers 2 -- python scripts/digits.py

Each worker takes its share of every batch, and psum sums the gradients. At the end, the test accuracy must be above
95 %, and the parameters must be the same on all workers, bit for bit. Otherwise the exit status is 1.
"""

import argparse
import hashlib
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from psum.mxnet import mx

autograd, gluon = mx.autograd, mx.gluon

BATCH_SIZE = 64
LEAST_ACCURACY = 0.95

Data = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Images of 8 × 8 pixels from 0 to 1, one per row, and the digits that they show."""


def main() -> int:
    """Trains, tests and compares. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    epochs: int = parser.parse_args().epochs
    started = time.perf_counter()

    store = mx.kv.create("byteps")
    # Every worker begins with different parameters. The store then gives all workers the parameters of rank 0.
    mx.random.seed(store.rank)
    network = gluon.nn.HybridSequential()
    network.add(gluon.nn.Dense(64, activation="relu"), gluon.nn.Dense(10))
    network.initialize(mx.init.Xavier())
    network.hybridize()
    trainer = gluon.Trainer(network.collect_params(), "adam", {"learning_rate": 0.003}, kvstore="byteps")

    train, test = load_data()
    train_network(network, trainer, train, epochs, store)
    accuracy = evaluate(network, test)
    differing = count_differing_workers(network, store)
    if store.rank == 0:
        print(f"test accuracy {accuracy:.1%} after {epochs} epochs in {time.perf_counter() - started:.1f} s")
        if differing:
            print(f"the parameters of {differing} of {store.num_workers} workers differ from those of rank 0")
        else:
            print(f"all {store.num_workers} workers hold the same parameters, bit for bit")
    return 0 if accuracy > LEAST_ACCURACY and not differing else 1


def load_data() -> tuple[Data, Data]:
    """Four fifths of the digits for training, and one fifth for testing."""
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    cut = len(order) * 4 // 5
    return (images[order[:cut]], digits[order[:cut]]), (images[order[cut:]], digits[order[cut:]])


def train_network(network: Any, trainer: Any, data: Data, epochs: int, store: Any) -> None:
    """Trains on this worker's share of each batch. All workers draw the same batches."""
    images, digits = data
    criterion = gluon.loss.SoftmaxCrossEntropyLoss()
    generator = np.random.default_rng(1)
    for epoch in range(1, epochs + 1):
        order = generator.permutation(len(images))
        losses = []
        for start in range(0, len(order), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            mine = batch[store.rank :: store.num_workers]
            with autograd.record():
                loss = criterion(network(mx.nd.array(images[mine])), mx.nd.array(digits[mine]))
            loss.backward()
            # psum sums the gradients of all workers, so this is the size of the whole batch. All workers draw the same
            # batches, so it is the same number on all of them, also for the smaller last batch.
            trainer.step(len(batch))
            losses.append(loss.mean())
        if store.rank == 0:
            loss = float(mx.nd.stack(*losses).mean().asscalar())
            print(f"epoch {epoch:2} of {epochs}: loss {loss:.4f}", flush=True)


def evaluate(network: Any, data: Data) -> float:
    """The share of images that the network recognises."""
    images, digits = data
    return float((network(mx.nd.array(images)).asnumpy().argmax(axis=1) == digits).mean())


def count_differing_workers(network: Any, store: Any) -> int:
    """How many workers hold other parameters than rank 0, bit for bit. All workers must call it."""
    digest = hashlib.sha256()
    for parameter in network.collect_params().values():
        digest.update(parameter.data().asnumpy().tobytes())
    mine = mx.nd.array(list(digest.digest()), dtype="int32")
    first = mx.nd.zeros_like(mine)
    store.broadcast("digest", mine, out=first)
    differs = mx.nd.array([int((mine != first).sum().asscalar() > 0)], dtype="int32")
    store.pushpull("differs", differs)
    return int(differs.asscalar())


if __name__ == "__main__":
    sys.exit(main())
