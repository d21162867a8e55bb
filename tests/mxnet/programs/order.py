"""A worker with two networks of the same shape, a and b, and a Trainer for each, given its store by name.

usage: order.py CASE…, each MADE/STEPPED/EXTRA[/PREFIXES]
    MADE, STEPPED   the order in which the Trainers are made and stepped, such as ab; ab,ba if rank 1 has another
    EXTRA           how many networks are made before, such as 0; 0,1 if rank 1 makes more
    PREFIXES        the networks get names of their own

Each case steps both Trainers once. The gradient is 1 for a and 100 for b on each rank. The program prints a line for a
and one for b: the weight after the step, or the error.
"""

import contextlib
import sys
from typing import Any

from psum.client import Settings
from psum.mxnet.compat import MAJOR_VERSION, MXNetError, mx

array = mx.np.array if MAJOR_VERSION >= 2 else mx.nd.array
rank = Settings.from_environment().rank


def own(choices: str) -> str:
    """Returns this rank's part of an argument."""
    return choices.split(",")[rank if "," in choices else 0]


def network(**named: str) -> Any:
    """Returns a network of one weight."""
    net = mx.gluon.nn.Dense(1, in_units=1, use_bias=False, **named)
    net.initialize(mx.init.Zero())
    return net


def run(made: str, stepped: str, extra: str, *prefixes: str) -> None:
    """Runs a case."""
    for _ in range(int(own(extra))):
        network()
    nets = {name: network(**({"prefix": f"{name}_"} if prefixes else {})) for name in "ab"}
    trainers = {
        name: mx.gluon.Trainer(nets[name].collect_params(), "sgd", {"learning_rate": 1.0}, kvstore="byteps")
        for name in own(made)
    }
    shown: dict[str, object] = {}
    for name in own(stepped):
        with mx.autograd.record():
            loss = nets[name](array([[1.0 if name == "a" else 100.0]]))
        loss.backward()
        # A step raises the error if it has come by then. The other Trainer is stepped anyway: the other rank does so.
        try:
            trainers[name].step(1)
        except MXNetError as error:
            shown[name] = error
    for name in "ab":
        try:
            read: object = float(nets[name].weight.data().asnumpy()[0, 0])
        except MXNetError as error:
            read = error
        print(shown.get(name, read))
    # The next case begins without what MXNet still keeps of this one.
    with contextlib.suppress(MXNetError):
        mx.nd.waitall()


for case in sys.argv[1:]:
    # In each the names begin anew, as in a process of its own.
    with mx.name.NameManager() if MAJOR_VERSION < 2 else contextlib.nullcontext():
        run(*case.split("/"))
