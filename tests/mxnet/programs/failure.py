"""Two workers, one of which does something wrong; each prints the errors that it gets, a line each.

usage: failure.py [exit]    it ends without a word, or its value fails and then its shape differs
"""

import os
import sys
from typing import Any

from psum.mxnet.compat import MXNetError, mx

store = mx.kv.create("byteps")
guilty = store.rank == 1


def push_twice(key: str, array: Any) -> None:
    for _ in range(2):
        try:
            store.pushpull(key, array)
            array.wait_to_read()
        except MXNetError as error:
            print(str(error).replace("\n", " "))


good = mx.nd.ones((2, 3))
# Both have joined.
store.pushpull("first", good)
good.wait_to_read()
if "exit" in sys.argv:
    if guilty:
        os._exit(0)
    push_twice("w", good)
else:
    # Standard deviations are positive; MXNet finds out when the operation runs.
    push_twice("failed", mx.nd.random.normal(0, -1, (2, 3)) if guilty else good)
    push_twice("differs", mx.nd.ones((3, 2)) if guilty else good)
    # Other keys are not touched.
    good[:] = 1
    store.pushpull("first", good)
    print(good.asnumpy().sum())
