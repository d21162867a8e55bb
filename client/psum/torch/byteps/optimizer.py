"""An optimizer that updates parameters with the average of all ranks' gradients."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from psum.torch import job
from psum.torch.byteps.allreduce import Average, ReduceOp, is_average
from psum.torch.byteps.compression import Compression, Compressor
from psum.torch.byteps.gradient_averages import GradientAverages


def DistributedOptimizer(
    optimizer: Any,
    named_parameters: Iterable[tuple[str, Any]] | None = None,
    compression: Compressor = Compression.none,
    backward_passes_per_step: int = 1,
    op: ReduceOp = Average,
    gradient_predivide_factor: float = 1.0,
) -> Any:
    """Makes an optimizer whose step waits for the averages of the gradients over all ranks.

    Averaging begins during `backward()`: each gradient is sent as soon as it is computed. Those of the first
    parameters, which the next forward pass needs first, go before the others.

        optimizer = psum.torch.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

    All ranks must make their optimizers in the same order, with the same parameters. In each step all ranks average all
    parameters that need a gradient. A parameter that a rank's backward pass did not reach counts as zeros there.

    To change gradients before the step, such as to clip them, average them first:

        loss.backward()
        optimizer.synchronize()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    Args:
        optimizer: Any torch.optim.Optimizer. Use only the returned one from then on. Both share their state.
        named_parameters: The names, in the order of the forward pass, as model.named_parameters() gives them. None: the
            parameters are numbered.
        compression: What is sent: Compression.none, or Compression.fp16.
        backward_passes_per_step: How many backward passes add up in the gradients before they are averaged. The
            averages are divided by the number of ranks only.
        op: Average, or Sum to leave the division out.
        gradient_predivide_factor: Without effect; Horovod has it. psum always divides before the sum.

    Returns:
        An optimizer of a class that is derived from the given one's, with the methods synchronize, skip_synchronize and
        set_backward_passes_per_step.

    Raises:
        TypeError: What was given is no optimizer, or no named parameters.
        ValueError: Names are missing or not unique, or backward_passes_per_step or op is wrong.
        RuntimeError: The process has not called `init`.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}; expected a torch.optim.Optimizer")
    if isinstance(optimizer, _Distributed):
        raise TypeError("this optimizer is a DistributedOptimizer already; make it of the original one")
    names = _names(optimizer, named_parameters)
    job.store()
    divides = is_average(op)
    averages = GradientAverages(job.new_store(), compression, backward_passes_per_step, divides=divides)
    kind = type(optimizer)
    wrapped: Any = object.__new__(type(kind.__name__, (_Distributed, kind), {"__doc__": kind.__doc__}))
    # Shares its state, which may have been loaded already. A learning rate scheduler that was made for the original one
    # has replaced `step` in the object, by one that would not wait.
    vars(wrapped).update({name: value for name, value in vars(optimizer).items() if name != "step"})
    wrapped._averages, wrapped._names, wrapped._waits = averages, names, True
    wrapped._watch()
    return wrapped


class _Distributed(torch.optim.Optimizer):  # type: ignore[misc]
    """What comes before an optimizer's own class."""

    _averages: GradientAverages
    _names: dict[int, str]
    """By the parameter's id, in the order of the forward pass."""
    _waits: bool
    """Whether step waits for the averages."""

    def synchronize(self) -> None:
        """Waits until all gradients are averaged. `step` does so itself, unless this was called before it.

        Raises:
            TypeError: A gradient is sparse, or of a type that psum cannot sum.
            PsumError: An average failed.
        """
        self._watch()
        self._averages.finish()

    @contextlib.contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """`step` does not wait for averages in this block. Call `synchronize` before."""
        self._waits = False
        try:
            yield
        finally:
            self._waits = True

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Changes how many backward passes add up before the gradients are averaged. All ranks must change it alike."""
        self._averages.set_passes(passes)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Waits for the averages, and updates the parameters.

        Args:
            closure: Computes the loss and its gradients, which are averaged each time.

        Returns:
            What the closure returned last, None without one.

        Raises:
            TypeError: A gradient is sparse, or of a type that psum cannot sum.
            PsumError: An average failed. The parameters are unchanged.
        """
        if closure is None:
            if self._waits:
                self.synchronize()
            result = super().step()
        else:

            def averaged() -> Any:
                loss = closure()
                if self._waits:
                    self.synchronize()
                return loss

            result = super().step(averaged)
        self._averages.reopen()
        return result

    # torch wraps the step of each class, to call hooks and to profile. The original class's is wrapped already.
    step.hooked = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients. Not while they are being averaged.

        Raises:
            RuntimeError: Averages are under way: backward() was called, and neither step() nor synchronize() after it.
        """
        if pending := self._averages.pending:
            raise RuntimeError(
                f"zero_grad() was called while psum averages {len(pending)} gradients, such as that of {pending[0]!r};"
                " call step() or synchronize() between backward() and zero_grad()"
            )
        super().zero_grad(set_to_none)

    def _watch(self) -> None:
        """Looks for parameters that were added, or that need gradients by now."""
        self._averages.watch(_ordered(self, self._names))


def _names(optimizer: Any, named_parameters: Iterable[tuple[str, Any]] | None) -> dict[int, str]:
    """Returns the names of parameters by id. Empty if there are none."""
    if named_parameters is None:
        return {}
    named = list(named_parameters)
    if not all(isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) for item in named):
        raise TypeError("named_parameters must be pairs of a name and a parameter, as of model.named_parameters()")
    seen: set[str] = set()
    twice = {name for name, _ in named if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
    if twice:
        raise ValueError(f"the names in named_parameters must be unique; there are several {', '.join(sorted(twice))}")
    names: dict[int, str] = {}
    for name, parameter in named:
        # A parameter that is shared has the first of its names.
        names.setdefault(id(parameter), name)
    lacking = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in names]
    if lacking:
        shapes = ", ".join(str(tuple(p.shape)) for p in lacking[:3])
        raise ValueError(
            f"named_parameters lacks {len(lacking)} of the optimizer's parameters, of the shapes {shapes}"
            f"{', …' if len(lacking) > 3 else ''}; give all of them, or leave named_parameters out"
        )
    return names


def _ordered(optimizer: Any, names: dict[int, str]) -> list[tuple[str, Any]]:
    """Returns the optimizer's parameters with names, in the order of the names. Those without a name come last."""
    numbered = {
        id(p): (f"{i}.{k}", p) for i, group in enumerate(optimizer.param_groups) for k, p in enumerate(group["params"])
    }
    ordered = [(name, numbered.pop(key)[1]) for key, name in names.items() if key in numbered]
    return ordered + list(numbered.values())
