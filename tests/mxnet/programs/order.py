"""A worker with two networks of the same shape, a and b, and a Trainer for each, given its store by name.

usage: order.py CASE…, each MADE/STEPPED/EXTRA[/PREFIXES]
    MADE, STEPPED   the order in which the Trainers are made and stepped, such as ab; ab,ba where rank 1 has another
    EXTRA           how many networks are made before, such as 0; 0,1 where rank 1 makes more
    PREFIXES        the networks get names of their own

For each case it prints both weights after one step, whose gradient is 1 for a and 100 for b on each rank, or the error.
"""

import contextlib
import sys
from typing import Any

from psum.client import Settings
from psum.mxnet.compat import MAJOR_VERSION, MXNetError, mx

array = mx.np.array if MAJOR_VERSION >= 2 else mx.nd.array
rank = Settings.from_environment().rank


def own(choices: str) -> str:
    """What this rank is to do."""
    return choices.split(",")[rank if "," in choices else 0]


def network(**named: str) -> Any:
    """A network of one weight."""
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
    try:
        for name in own(stepped):
            with mx.autograd.record():
                loss = nets[name](array([[1.0 if name == "a" else 100.0]]))
            loss.backward()
            trainers[name].step(1)
        print(*(float(nets[name].weight.data().asnumpy()[0, 0]) for name in "ab"))
    except MXNetError as error:
        print(error)


for case in sys.argv[1:]:
    # In each the names begin anew, as in a process of its own.
    with mx.name.NameManager() if MAJOR_VERSION < 2 else contextlib.nullcontext():
        run(*case.split("/"))
