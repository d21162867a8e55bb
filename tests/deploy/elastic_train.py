"""The training that the tests' pods of an elastic Job run.

It handles neither signals nor psum's errors, like a program whose author has not thought of them.
"""

import time
import zlib

import numpy as np

from psum import client as psum

#: Enough keys that every aggregator owns some.
KEYS = [f"w{number}" for number in range(8)]

#: How long a step's computation takes.
COMPUTE_SECONDS = 0.2


def main() -> None:
    """Trains until it is ended. After each step, it prints the step's number, the time and a checksum of the model."""
    with psum.connect() as client:
        store = client.store()
        weights = {key: np.zeros(10_000, np.float32) for key in KEYS}
        state = psum.ElasticState(client, {"weights": weights}, batch=0)
        while True:
            gradients = {key: np.full(10_000, client.rank + 1.0, np.float32) for key in KEYS}
            futures = {key: store.push_pull_async(key, value) for key, value in gradients.items()}
            for key, future in futures.items():
                future.result()
                for part in future.contributors:
                    gradients[key][part.start : part.stop] *= client.num_workers / part.count
                weights[key] += gradients[key]
            state.batch += 1
            checksum = zlib.crc32(b"".join(map(bytes, weights.values())))
            print(f"step {state.batch} {time.monotonic():.3f} {checksum:08x}", flush=True)
            time.sleep(COMPUTE_SECONDS)
            state.step()


if __name__ == "__main__":
    main()
