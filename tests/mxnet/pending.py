"""Arrays that MXNet's engine has not computed yet, or cannot compute."""

import threading
from typing import Any

from psum.mxnet.compat import mx
from psum.mxnet.engine import operations
from tests.polling import PATIENCE_SECONDS


def failed_array() -> Any:
    """An array whose computation fails."""
    array = mx.nd.zeros((2,))
    operations.push(array, operations.Operation(lambda operation: operation.complete("division by zero"), lambda: None))
    return array


def pending_array(gate: threading.Event, size: int = 2) -> Any:
    """An array of ones that is pending until the gate opens."""
    array = mx.nd.ones((size,))
    hold(array, gate)
    return array


def hold(array: Any, gate: threading.Event) -> None:
    """Makes an array pending until the gate opens."""

    def complete(operation: operations.Operation) -> None:
        gate.wait(PATIENCE_SECONDS)
        operation.complete()

    def run(operation: operations.Operation) -> None:
        threading.Thread(target=complete, args=(operation,)).start()

    operations.push(array, operations.Operation(run, operations.ignore))
