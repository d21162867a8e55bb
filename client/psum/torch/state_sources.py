"""Where the parts of a PyTorch program's state come from, and where they go in a process that joins an elastic job.

Tensors travel as bytes, so every dtype keeps its bits. In a process that joins they are filled in place where there are
some, and made on the device of what they belong to otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import torch
from psum.client import InvalidError, StateSource
from psum.torch import ddp_hook
from psum.torch.group import PsumProcessGroup
from psum.torch.tensors import as_bytes, check_dense, described, plain
from torch.nn.parallel import DistributedDataParallel


class SavedTensor:
    """A tensor in a form that travels without a copy of its memory.

    Args:
        tensor: A dense tensor.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        data: Its bytes.
        on_host: Whether it was on the CPU.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        check_dense(tensor, "a tensor of an elastic state")
        self.dtype = tensor.dtype
        self.shape = tuple(tensor.shape)
        self.on_host = tensor.device.type == "cpu"
        self.data: npt.NDArray[np.uint8] = as_bytes(plain(tensor.detach().cpu())).numpy()

    def restored(self) -> torch.Tensor:
        """The tensor, on the CPU. It has memory of its own."""
        return torch.from_numpy(self.data.copy()).view(self.dtype).view(self.shape)

    def fill(self, tensor: torch.Tensor, what: str) -> None:
        """Writes it to another tensor.

        Raises:
            InvalidError: That has another shape or type.
        """
        if tuple(tensor.shape) != self.shape or tensor.dtype is not self.dtype:
            there = f"{str(self.dtype).removeprefix('torch.')} {self.shape}"
            raise InvalidError(
                f"{what} is {described(tensor)} in this process, and {there} in the job that it joins; a process that"
                " joins must have the same model and settings as the others"
            )
        with torch.no_grad():
            tensor.copy_(self.restored())


def packed(value: Any) -> Any:
    """A value with saved tensors instead of tensors."""
    if isinstance(value, torch.Tensor):
        return SavedTensor(value)
    return _mapped(value, packed)


def unpacked(value: Any, like: torch.Tensor | None = None) -> Any:
    """The inverse of `packed`.

    Args:
        value: What that gave.
        like: Tensors that were not on the CPU come to the device of this one.
    """
    if isinstance(value, SavedTensor):
        tensor = value.restored()
        return tensor if like is None or value.on_host else tensor.to(like.device)
    return _mapped(value, lambda item: unpacked(item, like))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        mapped = {key: change(item) for key, item in value.items()}
        return mapped if type(value) is dict else _like(value, mapped)
    if type(value) in (list, tuple):
        return type(value)(change(item) for item in value)
    return value


def _like(value: dict[Any, Any], mapped: dict[Any, Any]) -> Any:
    """A dictionary of a derived class, such as OrderedDict, with other values."""
    copy = value.copy()
    copy.update(mapped)
    return copy


class TensorSource:
    """A tensor of the program."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self._name = name
        self._tensor = tensor

    def save(self) -> object:
        """See StateSource."""
        return SavedTensor(self._tensor)

    def load(self, saved: SavedTensor) -> None:
        """See StateSource."""
        saved.fill(self._tensor, self._name)


class GeneratorSource:
    """A generator of random numbers, such as torch.default_generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def save(self) -> object:
        """See StateSource."""
        return SavedTensor(self._generator.get_state())

    def load(self, saved: SavedTensor) -> None:
        """See StateSource."""
        self._generator.set_state(saved.restored())


class StateDictSource:
    """Something with state_dict and load_state_dict, such as a learning rate scheduler or a GradScaler."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def save(self) -> object:
        """See StateSource."""
        return packed(self._owner.state_dict())

    def load(self, saved: Any) -> None:
        """See StateSource."""
        self._owner.load_state_dict(unpacked(saved))


class ModuleSource:
    """A module's parameters and buffers, those that are not in its state_dict too, and its extra state.

    Of a DistributedDataParallel also its buckets.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        group = module.process_group if isinstance(module, DistributedDataParallel) else None
        self._group = group if isinstance(group, PsumProcessGroup) else None
        """What sums its buckets."""

    @property
    def obstacle(self) -> str:
        """Why no process can join with such a module; '' if one can."""
        if not getattr(self._module, "static_graph", False):
            return ""
        return (
            "DistributedDataParallel with static_graph=True sums in another order in its first step, so a process"
            " cannot join; leave static_graph out"
        )

    def remake_buckets(self) -> None:
        """Lets a DistributedDataParallel make its buckets now that it makes anew once, so that they can be saved."""
        if self._group is not None:
            self._group.layouts.remake(self._module)

    def save(self) -> object:
        """See StateSource.

        Raises:
            InvalidError: The module's first step differs from later ones.
        """
        if self.obstacle:
            raise InvalidError(self.obstacle)
        layout = [] if self._group is None else [SavedTensor(each) for each in self._group.layouts.of(self._module)]
        return {name: SavedTensor(tensor) for name, tensor in self._tensors().items()}, self._extra(), layout

    def load(self, saved: Any) -> None:
        """See StateSource."""
        tensors, extra, layout = saved
        own = self._tensors()
        if own.keys() != tensors.keys():
            names = ", ".join(sorted(own.keys() ^ tensors.keys())[:5])
            raise InvalidError(
                f"only one of this process's model and that of the job that it joins has {names}; run the same program"
                " with the same model in both"
            )
        for name, tensor in own.items():
            tensors[name].fill(tensor, name)
        for name, state in extra.items():
            self._module.get_submodule(name).set_extra_state(unpacked(state))
        if layout and self._group is not None:
            self._group.layouts.remake(self._module, [each.restored() for each in layout])

    def _tensors(self) -> dict[str, torch.Tensor]:
        named = dict(self._module.named_parameters(remove_duplicate=False))
        return named | dict(self._module.named_buffers(remove_duplicate=False))

    def _extra(self) -> dict[str, Any]:
        plain_method = torch.nn.Module.get_extra_state
        return {
            name: packed(module.get_extra_state())
            for name, module in self._module.named_modules()
            if type(module).get_extra_state is not plain_method
        }


class OptimizerSource:
    """An optimizer's state and options.

    Not by its load_state_dict, which casts state to the type of the parameter.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def save(self) -> object:
        """See StateSource."""
        optimizer = self._optimizer
        places = {id(p): place for place, p in enumerate(_parameters(optimizer))}
        # The state of something else than a parameter has its own key.
        states = [(places.get(id(key), key), packed(state)) for key, state in optimizer.state.items()]
        groups = [{k: packed(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return type(optimizer).__name__, [len(group["params"]) for group in optimizer.param_groups], groups, states

    def load(self, saved: Any) -> None:
        """See StateSource.

        Raises:
            InvalidError: The optimizer is not like that of the other process.
        """
        optimizer = self._optimizer
        kind, sizes, groups, states = saved
        own = type(optimizer).__name__, [len(group["params"]) for group in optimizer.param_groups]
        if own != (kind, sizes):
            raise InvalidError(
                f"the optimizer is {own[0]} with {own[1]} parameters in its groups here, and {kind} with {sizes} in the"
                " job that this process joins"
            )
        parameters = _parameters(optimizer)
        optimizer.state.clear()
        for key, state in states:
            parameter = parameters[key] if isinstance(key, int) else None
            optimizer.state[key if parameter is None else parameter] = unpacked(state, parameter)
        for group, options in zip(optimizer.param_groups, groups, strict=True):
            for name, value in options.items():
                if isinstance(value, SavedTensor) and isinstance(group.get(name), torch.Tensor):
                    value.fill(group[name], f"option {name} of the optimizer")
                else:
                    group[name] = unpacked(value, group["params"][0])


class CommunicationSource:
    """How collectives and hooks are numbered, so that their keys are those of the other ranks.

    Args:
        client: The membership in the job.
        group: The process group; None without one.
    """

    def __init__(self, client: Any, group: PsumProcessGroup | None) -> None:
        self._client = client
        self._group = group

    def save(self) -> object:
        """See StateSource."""
        return None if self._group is None else self._group.numbering(), ddp_hook.forms(self._client)

    def load(self, saved: Any) -> None:
        """See StateSource."""
        numbering, forms = saved
        if self._group is not None:
            self._group.renumber(numbering)
        ddp_hook.take_forms(self._client, forms)


def source_of(name: str, value: Any) -> StateSource | None:
    """The source for a value of the program that is filled in place; None for one that is replaced."""
    if isinstance(value, torch.nn.Module):
        return ModuleSource(value)
    if isinstance(value, torch.optim.Optimizer):
        return OptimizerSource(value)
    if isinstance(value, torch.Generator):
        return GeneratorSource(value)
    if isinstance(value, torch.Tensor):
        return TensorSource(name, value)
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        return StateDictSource(value)
    return value if isinstance(value, StateSource) and not isinstance(value, Mapping) else None


def _parameters(optimizer: torch.optim.Optimizer) -> Sequence[Any]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
