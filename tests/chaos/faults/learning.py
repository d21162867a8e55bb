"""A training with a loss: a small network learns what another one computes. Workers may be lost and join meanwhile.

The gradients of a step depend only on the step, the rank and the parameters. So members hold the same bits, and a
training without faults can be made in one process.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from psum import client as psum

Values = npt.NDArray[np.float32]

_INPUTS: Final = 64
_HIDDEN: Final = 384
_OUTPUTS: Final = 8
_BATCH: Final = 32
_RATE: Final = np.float32(0.02)
_MOMENTUM: Final = np.float32(0.9)

_PATIENCE_SECONDS: Final = 120.0


class Learner:
    """The network, its optimizer, and the samples.

    Args:
        seed: Seed for the samples. The task is always the same.

    Attributes:
        arrays: Parameters and momenta by name. They are changed in place.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        chance = np.random.default_rng(0)
        self._teacher = chance.standard_normal((_INPUTS, _OUTPUTS)).astype(np.float32) / np.float32(_INPUTS**0.5)
        weights = {
            "inner": chance.standard_normal((_INPUTS, _HIDDEN)).astype(np.float32) / np.float32(_INPUTS**0.5),
            "bias": np.zeros(_HIDDEN, np.float32),
            "outer": chance.standard_normal((_HIDDEN, _OUTPUTS)).astype(np.float32) / np.float32(_HIDDEN**0.5),
        }
        self.names = list(weights)
        self.arrays = weights | {f"momentum {name}": np.zeros_like(values) for name, values in weights.items()}
        self._tests = self._samples(chance, 256)

    def gradients(self, rank: int, step: int) -> dict[str, Values]:
        """Return the gradients of a rank's samples of a step."""
        inputs, wanted = self._samples(np.random.default_rng([self._seed, rank, step]), _BATCH)
        hidden, errors = self._errors(inputs, wanted)
        slopes = errors / np.float32(_BATCH)
        behind = (slopes @ self.arrays["outer"].T) * (1 - hidden * hidden)
        return {"inner": inputs.T @ behind, "bias": behind.sum(0), "outer": hidden.T @ slopes}

    def update(self, means: dict[str, Values]) -> None:
        """Take a step along the mean gradients of all ranks."""
        for name in self.names:
            momentum = self.arrays[f"momentum {name}"]
            momentum *= _MOMENTUM
            momentum += means[name]
            self.arrays[name] -= _RATE * momentum

    def loss(self) -> float:
        """Return the mean square of the errors on samples that are not learned from."""
        return float((self._errors(*self._tests)[1] ** 2).mean())

    def digest(self) -> str:
        """Return a hash of all parameters and momenta."""
        return hashlib.blake2b(
            b"".join(values.tobytes() for values in self.arrays.values()), digest_size=16
        ).hexdigest()

    def _samples(self, chance: np.random.Generator, count: int) -> tuple[Values, Values]:
        inputs = chance.standard_normal((count, _INPUTS), np.float32)
        noise = np.float32(0.1) * chance.standard_normal((count, _OUTPUTS), np.float32)
        return inputs, np.sin(inputs @ self._teacher) + noise

    def _errors(self, inputs: Values, wanted: Values) -> tuple[Values, Values]:
        hidden = np.tanh(inputs @ self.arrays["inner"] + self.arrays["bias"])
        return hidden, hidden @ self.arrays["outer"] - wanted


def learn(
    client: psum.Client, seed: int, pause: float, stop: threading.Event, tell: Callable[..., None]
) -> dict[str, Any]:
    """Train as a member of an elastic job, until some member is told to stop.

    Args:
        client: The client, whose process may be one that joins.
        seed: Seed for the samples.
        pause: Seconds to wait after each step.
        stop: When it is set on some rank, all members end after the same step.
        tell: Called as tell("step", ...) after each step, with "step", "digest", "loss", "members" at the step's begin,
            "counts" (how many ranks the parts of the gradients count: the fewest, the most) and the time "at".

    Returns:
        The number of "steps", and the final "digest".
    """
    store, learner, rank = client.store(), Learner(seed), client.rank
    for name in learner.names:
        store.broadcast(f"first {name}", learner.arrays[name])
    state = psum.ElasticState(client, {"learner": learner.arrays}, step_number=0, stopped=False)
    # Every other rank pushes from memory that aggregators read, where they share memory.
    make = np.empty_like if rank % 2 else store.empty_like
    means: dict[str, Values] = {name: make(learner.arrays[name]) for name in learner.names}
    while not state.stopped:
        for name, gradient in learner.gradients(rank, state.step_number).items():
            means[name][...] = gradient
        votes = np.array([stop.is_set()], np.int32)
        futures = {name: store.push_pull_async(name, means[name], priority=-i) for i, name in enumerate(learner.names)}
        futures["stop"] = store.push_pull_async("stop", votes)
        counts: set[int] = set()
        for name, future in futures.items():
            future.result(_PATIENCE_SECONDS)
            if name not in means:
                continue
            counted = 0
            for part in future.contributors:
                means[name].reshape(-1)[part.start : part.stop] *= np.float32(client.num_workers / part.count)
                counts.add(part.count)
                counted += part.stop - part.start
            if counted < means[name].size:
                counts.add(client.num_workers)
        for values in means.values():
            values /= np.float32(client.num_workers)
        learner.update(means)
        state.step_number += 1
        state.stopped = bool(votes[0])
        tell(
            "step",
            step=state.step_number,
            digest=learner.digest(),
            loss=learner.loss(),
            members=list(state.members),
            counts=[min(counts), max(counts)],
            at=time.monotonic(),
        )
        state.step()
        time.sleep(pause)
    return {"steps": state.step_number, "digest": learner.digest()}


def rehearse(seed: int, members: Sequence[Sequence[int]]) -> Sequence[float]:
    """Return the loss after each step of a training with these ranks in each step, made in this process."""
    learner = Learner(seed)
    losses = []
    for step, ranks in enumerate(members):
        each = [learner.gradients(rank, step) for rank in ranks]
        learner.update({name: np.mean([g[name] for g in each], axis=0) for name in learner.names})
        losses.append(learner.loss())
    return losses
