"""Averages gradients over all ranks, each as soon as the backward pass has computed it."""

import functools
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from psum.client import Store
from psum.torch import priority, staging
from psum.torch.byteps.compression import Compressor
from psum.torch.outcome import Outcome, wait_for_all
from psum.torch.tensors import check_dense


class _Parameter:
    """One parameter, and what becomes of its gradient."""

    def __init__(self, tensor: Any, name: str, position: int) -> None:
        self.tensor = tensor
        self.name = name
        self.priority = priority.of_forward(position)
        self.watch: Any = None
        """The hook's handle. None while the parameter needs no gradient."""
        self.passes = 0
        """Backward passes since the last average."""
        self.gradient: Any = None
        """The gradient that is being averaged. None between steps."""
        self.sent: Any = None
        """What is summed for it: the gradient itself, or a compressed copy."""
        self.context: Any = None
        """What the compressor needs to restore it."""
        self.outcome: Outcome | None = None


class GradientAverages:
    """Averages the gradients of some parameters over all ranks, in place.

    A hook of each parameter starts its average when the backward pass has computed the gradient. `finish` starts what
    is left and waits. So each parameter is averaged exactly once between two calls of finish, on every rank, whatever
    part of the network a rank has used: a rank without a gradient contributes zeros.

    The hooks do not keep this object alive. A parameter belongs to the last object that was made for it.

    Args:
        store: Where the keys live. Nothing else may use it.
        compression: What is sent.
        passes: How many backward passes add up in a gradient before it is averaged.
        divides: Whether gradients are averaged. Otherwise they are only summed.
    """

    def __init__(self, store: Store, compression: Compressor, passes: int, *, divides: bool = True) -> None:
        self._store = store
        self._divisor = store.client.num_workers if divides else 1
        self._compression = compression
        self._parameters: dict[int, _Parameter] = {}
        """By the tensor's id. Tensors cannot be keys of dictionaries that compare them."""
        self._taken: list[str] = []
        """Parameters that belong to another object now."""
        self._finished = False
        """Whether all gradients are averaged, and no backward pass has begun since."""
        self.set_passes(passes)

    def set_passes(self, passes: int) -> None:
        """Changes how many backward passes add up before an average.

        Raises:
            ValueError: It is not a positive integer.
        """
        if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
            raise ValueError(f"backward_passes_per_step is {passes!r}; expected a whole number from 1")
        self.passes = passes

    def watch(self, named: Iterable[tuple[str, Any]]) -> None:
        """Takes over parameters, in the order of the forward pass, that it does not have yet.

        It looks again at those that it has: one that needs a gradient by now gets its hook.
        """
        for name, tensor in named:
            parameter = self._parameters.get(id(tensor))
            if parameter is None:
                parameter = _Parameter(tensor, name, len(self._parameters))
                self._parameters[id(tensor)] = parameter
                _take_over(tensor, self)
            if parameter.watch is None and tensor.requires_grad:
                start = functools.partial(_on_gradient, weakref.ref(self), parameter)
                parameter.watch = tensor.register_post_accumulate_grad_hook(start)
                weakref.finalize(self, parameter.watch.remove).atexit = False

    @property
    def pending(self) -> list[str]:
        """The names of parameters whose gradients are being averaged."""
        return [parameter.name for parameter in self._parameters.values() if parameter.outcome is not None]

    def finish(self) -> None:
        """Waits until all gradients are averaged. Starts those for which no backward pass has.

        A second call does nothing, unless a backward pass or `reopen` comes in between.

        Raises:
            RuntimeError: Another object has taken over a parameter.
            TypeError: psum cannot sum a gradient.
            PsumError: An average failed. All of them have ended then.
        """
        if self._taken:
            raise RuntimeError(
                f"a later DistributedOptimizer has taken over {_some(self._taken)} from this one; make one optimizer"
                " for each parameter, and use the last one that was made"
            )
        if self._finished:
            return
        active = list(self._active())
        try:
            for parameter in active:
                if parameter.outcome is None:
                    self._start(parameter)
        finally:
            try:
                wait_for_all(parameter.outcome for parameter in active if parameter.outcome is not None)
                for parameter in active:
                    if parameter.outcome is not None:
                        self._restore(parameter)
            finally:
                for parameter in active:
                    parameter.gradient = parameter.sent = parameter.context = parameter.outcome = None
                    parameter.passes = 0
        self._finished = True

    def reopen(self) -> None:
        """Lets the next `finish` average again, even if no backward pass comes before it."""
        self._finished = False

    def lose(self, tensor: Any) -> None:
        """Gives a parameter up: another object takes it over."""
        parameter = self._parameters[id(tensor)]
        self._taken.append(parameter.name)
        if parameter.watch is not None:
            parameter.watch.remove()

    def on_gradient(self, parameter: _Parameter) -> None:
        """A backward pass has added to a gradient.

        Raises:
            RuntimeError: There were more backward passes than may add up before a step.
            TypeError: psum cannot sum the gradient.
            PsumError: The job has failed.
        """
        self._finished = False
        parameter.passes += 1
        if parameter.passes > self.passes:
            raise RuntimeError(
                f"backward pass {parameter.passes} since the last step has computed a gradient of {parameter.name!r},"
                f" and psum averages gradients after pass {self.passes}. Call step() or synchronize() after each"
                " backward_passes_per_step passes; to add up the gradients of more passes, raise"
                " backward_passes_per_step of DistributedOptimizer"
            )
        if parameter.passes == self.passes:
            self._start(parameter)

    def _active(self) -> Iterator[_Parameter]:
        for parameter in self._parameters.values():
            if parameter.tensor.requires_grad or parameter.outcome is not None:
                yield parameter

    def _start(self, parameter: _Parameter) -> None:
        if parameter.tensor.grad is None:
            parameter.tensor.grad = torch.zeros_like(parameter.tensor)
        gradient = parameter.tensor.grad.detach()
        check_dense(gradient, f"the gradient of {parameter.name!r}")
        if self._divisor > 1:
            # Before the sum, as DistributedDataParallel does: a sum of 16-bit gradients could overflow.
            gradient.div_(self._divisor)
        sent, context = self._compression.compress(gradient)
        outcome = Outcome(self._store, sent)
        key = f"gradient {parameter.name}"
        staging.push_pull(self._store, key, sent, priority=parameter.priority, done=outcome, gradient=True)
        parameter.gradient, parameter.sent, parameter.context, parameter.outcome = gradient, sent, context, outcome

    def _restore(self, parameter: _Parameter) -> None:
        """Puts the average where optimizers look for it."""
        average = self._compression.decompress(parameter.sent, parameter.context)
        if average is not parameter.gradient:
            parameter.gradient.copy_(average)
        if parameter.tensor.grad is None:
            # The program has called model.zero_grad() in between.
            parameter.tensor.grad = parameter.gradient


_owners: "dict[int, weakref.ref[GradientAverages]]" = {}
"""Who averages the gradient of each parameter, by the tensor's id. The owner keeps the tensor, so its id is its own."""


def _take_over(tensor: Any, owner: GradientAverages) -> None:
    before = _owners.get(id(tensor))
    previous = None if before is None else before()
    if previous is not None:
        previous.lose(tensor)
    reference = _owners[id(tensor)] = weakref.ref(owner)
    weakref.finalize(owner, _forget, id(tensor), reference).atexit = False


def _forget(tensor_id: int, reference: "weakref.ref[GradientAverages]") -> None:
    if _owners.get(tensor_id) is reference:
        del _owners[tensor_id]


def _on_gradient(owner: "weakref.ref[GradientAverages]", parameter: _Parameter, tensor: Any) -> None:
    if (averages := owner()) is not None:
        averages.on_gradient(parameter)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
