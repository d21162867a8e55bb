"""A worker of an elastic training, the example, which reports a hash of its state after each step."""

import hashlib
import json
import os
import sys
import time
from typing import Any

import numpy as np

import elastic_numpy
from psum import client as psum


class Slow:
    """A part of the state that takes a while: many bytes, and a file that appears when a process gives or takes it.

    Args:
        size: How many bytes.
        mark: The path of the file, without its end.
        bad: Whether it cannot be pickled.
    """

    def __init__(self, size: int, mark: str, bad: bool) -> None:
        self._bytes = np.zeros(size, np.uint8)
        self._mark = mark
        self._bad = bad

    def save(self) -> Any:
        """See StateSource."""
        open(f"{self._mark}.gives", "w").close()
        return (lambda: None) if self._bad else self._bytes

    def load(self, saved: Any) -> None:
        """See StateSource."""
        open(f"{self._mark}.takes", "w").close()
        assert saved.size == self._bytes.size


def report(**event: Any) -> None:
    """Writes an event."""
    print(json.dumps(event), flush=True)


def main() -> None:
    """Trains as the arguments say: a JSON object with settings, steps, pause, size, mark and bad."""
    given = json.loads(sys.argv[1])
    settings = given["settings"]
    elastic = psum.Elastic(*settings.pop("elastic"))
    pause, size = given["pause"], given["size"]
    if size:
        make = psum.ElasticState

        def with_more(client: psum.Client, sources: dict[str, Any], **values: Any) -> psum.ElasticState:
            mark = f"{given['mark']}/{os.getpid()}"
            return make(client, {**sources, "more": Slow(size, mark, given["bad"])}, **values)

        psum.ElasticState = with_more  # type: ignore[assignment, misc]

    def after_step(state: psum.ElasticState) -> None:
        model: Any = state._sources["model"].save()
        digest = hashlib.sha256(b"".join(array.tobytes() for array in model.values())).hexdigest()
        report(batch=state.batch, digest=digest, members=state.members, joined=state.joined)
        time.sleep(pause)

    with psum.connect(psum.Settings(elastic=elastic, **settings)) as client:
        try:
            elastic_numpy.train(client, given["steps"], after_step)
        except SystemExit:
            report(left=True)
            raise
        except psum.PsumError as error:
            report(error=type(error).__name__, text=str(error))
            raise
    report(done=True)


if __name__ == "__main__":
    main()
