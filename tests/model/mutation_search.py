"""Searches for a history that fails because of a bug that was injected into the product: see mutations.py."""

import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from simulation import Failure, History, run

#: Maximum number of histories to find a mutation. Most are found within twenty.
MUTATION_HISTORIES = 600

#: What a mutation raises that does not fit the product any more: it lacks an argument, or names what is no more there.
_MISFITS = (TypeError, AttributeError, NameError, ImportError)


class MisfitError(Exception):
    """A mutation ended with an error of its own. That shows nothing about the product, nor about the histories."""


def found_by(draw: Callable[[int], History], first: int | None = None) -> Failure | None:
    """Search for a history that fails.

    Args:
        draw: Makes a history from a seed.
        first: The seed to try before all others; None: there is none.

    Returns:
        The failure; None if there is no such history.

    Raises:
        MisfitError: A history failed because of the mutation's own code.
    """
    for seed in _seeds(first):
        try:
            run(draw(seed))
        except Failure as failure:
            _require_fit(failure)
            if first is None or seed != first:
                print(f"found by seed {seed}; worth noting in SEEDS if this took more than a second")
            return failure
    return None


def _seeds(first: int | None) -> Iterable[int]:
    return range(MUTATION_HISTORIES) if first is None else (first, *range(MUTATION_HISTORIES))


def _require_fit(failure: Failure) -> None:
    error = failure.__cause__
    assert error is not None
    where = traceback.extract_tb(error.__traceback__)[-1]
    own = Path(where.filename).parent == Path(__file__).parent
    if own or isinstance(error, _MISFITS):
        raise MisfitError(
            f"history {failure.history.seed} failed with {type(error).__name__} at {Path(where.filename).name}:"
            f"{where.lineno}: {error}; adapt the mutation to the product, so that histories fail by what it does wrong"
        ) from failure
