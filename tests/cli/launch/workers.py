"""Workers that tests launch."""

import subprocess
from collections.abc import Callable

Launch = Callable[..., "subprocess.CompletedProcess[str]"]


#: A worker that waits for ever, once it has said so, and so does a child of its own.
WAIT = "sleep 600 & echo ready; wait"


#: The same, deaf to SIGTERM.
WAIT_DEAF = "trap '' TERM; sleep 600 & echo ready; while :; do wait; done"


#: A worker that takes part in one sum.
SUM = """
import numpy as np, psum.client
with psum.client.connect() as client:
    value = np.full(3, client.rank + 1.0)
    client.store().push_pull('x', value)
    print(*value)
"""


def wait_until_ready(process: "subprocess.Popen[str]", workers: int) -> None:
    """Read a launcher's output until all workers have said that they are ready."""
    assert process.stdout is not None
    lines = {process.stdout.readline() for _ in range(workers)}
    assert lines == {f"[{rank}] ready\n" for rank in range(workers)}
