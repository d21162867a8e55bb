"""A training with NumPy that goes on when workers are lost, and takes others in. docs/elastic-guide.md explains it.

psum launch --workers 4 --elastic 2:8 -- python examples/elastic_numpy.py --steps 2000
"""

import argparse
from collections.abc import Callable

import numpy as np

import psum.client

#: What the model must find.
TRUTH = np.linspace(-1.0, 1.0, 1000)


def train(client: psum.client.Client, steps: int, after_step: Callable[[psum.client.ElasticState], None]) -> None:
    """Finds TRUTH from noisy samples: SGD with momentum.

    Args:
        client: The worker's membership in its job.
        steps: How many steps the training has.
        after_step: Called after each step.
    """
    store = client.store()
    model = {"weights": np.zeros(TRUTH.size), "momentum": np.zeros(TRUTH.size)}
    # All workers begin with the same weights. Here they are zero anyway.
    store.broadcast("weights", model["weights"])
    # A process that joins a running job waits here, until it has everything from a member.
    state = psum.client.ElasticState(client, {"model": model}, batch=0)
    while state.batch < steps:
        # Each member has samples of its own in each step.
        chance = np.random.default_rng((state.batch, client.rank))
        samples = chance.standard_normal((32, TRUTH.size))
        errors = samples @ (model["weights"] - TRUTH) + 0.1 * chance.standard_normal(32)
        gradient = samples.T @ errors / len(samples)
        # The sum of the ranks that are there. Where some are missing, it is scaled as if all had contributed.
        future = store.push_pull_async("gradient", gradient)
        future.result()
        for part in future.contributors:
            gradient[part.start : part.stop] *= client.num_workers / part.count
        model["momentum"] *= 0.9
        model["momentum"] += gradient / client.num_workers
        model["weights"] -= 0.003 * model["momentum"]
        state.batch += 1
        # The boundary between two steps: here others join and leave.
        state.step()
        after_step(state)


def report(state: psum.client.ElasticState) -> None:
    """Prints a line now and then."""
    if state.batch % 100 == 0:
        print(f"step {state.batch}: {len(state.members)} members", flush=True)


def main() -> None:
    """Trains as the environment says, see docs/settings.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    with psum.client.connect() as client:
        train(client, options.steps, report)


if __name__ == "__main__":
    main()
