"""Labels for the keys of a Trainer. Its keys are numbers; psum shows and compares the names of its parameters."""

from collections.abc import Mapping
from typing import Any

from psum.client import Operation, StoreNumber

Labels = Mapping[Operation, Mapping[str | int, str]]


class NumberedName(str):
    """The name of a store that a Trainer makes in its first step, with the number that was reserved for the store.

    Otherwise stores would be numbered in the order of first steps, which may differ between ranks.

    Attributes:
        number: The number of the store.
        labels: What the keys of the store stand for.
    """

    __slots__ = ("labels", "number")

    number: StoreNumber
    labels: Labels

    @classmethod
    def of(cls, name: str, number: StoreNumber, labels: Labels) -> "NumberedName":
        """Makes a name with a number and labels."""
        numbered = cls(name)
        numbered.number, numbered.labels = number, labels
        return numbered


def names_of(parameters: Any) -> dict[int, str]:
    """Returns the program's names of parameters, by the parameters' id.

    MXNet 1.9 makes names that are unique within a process. In MXNet 2 the keys of the dictionary from collect_params,
    which are places in the network, tell more than the names.

    Args:
        parameters: A dictionary or list of Parameters.
    """
    if hasattr(parameters, "items"):
        return {id(parameter): str(name) for name, parameter in parameters.items()}
    return {id(parameter): parameter.name for parameter in parameters}


def labels_of(trainer: Any, parameters: Any) -> Labels:
    """Returns what the keys that a Trainer uses stand for.

    Args:
        trainer: The Trainer.
        parameters: The parameters that it was made with.
    """
    names = names_of(parameters)
    own = [names[id(parameter)] for parameter in trainer._params]
    # MXNet 1.9 finds a parameter's key by its name, MXNet 2 by a random number.
    keys = [trainer._param2idx[getattr(parameter, "_uuid", parameter.name)] for parameter in trainer._params]
    return {Operation.SUM: dict(enumerate(own)), Operation.BROADCAST: dict(zip(keys, own, strict=True))}
