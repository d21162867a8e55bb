"""The training that the tests' worker pods run instead of the image's, because MXNet takes seconds to start.

It handles neither signals nor psum's errors, like a program whose author has not thought of them.
"""

import time

import numpy as np

from psum import client as psum

#: Enough keys that every aggregator owns some.
KEYS = [f"w{number}" for number in range(8)]

#: How long a step's computation takes.
COMPUTE_SECONDS = 0.2


def main() -> None:
    """Trains until it is ended, and prints a line for each step."""
    with psum.connect() as client:
        store = client.store()
        step = 0
        while True:
            values = {key: np.full(10_000, client.rank + 1.0, np.float32) for key in KEYS}
            for future in [store.push_pull_async(key, value) for key, value in values.items()]:
                future.result()
            expected = client.num_workers * (client.num_workers + 1) / 2
            assert all((value == expected).all() for value in values.values()), "a sum is wrong"
            step += 1
            print(f"step {step}", flush=True)
            time.sleep(COMPUTE_SECONDS)


if __name__ == "__main__":
    main()
