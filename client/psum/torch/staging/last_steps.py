"""What is still to be done with a result before those who wait for it hear of it."""

from collections.abc import Callable

from psum.client import PsumError


def after(
    step: Callable[[], None], done: Callable[[PsumError | None], None], title: Callable[[], str]
) -> Callable[[PsumError | None], None]:
    """Makes a `done` that takes a last step first, if the operation succeeded.

    If the step raises, the operation has failed: those who wait get the error at once, rather than a time-out.

    Args:
        step: The step.
        done: Called exactly once after it, with None or the error.
        title: Returns what the operation is, for people.
    """

    def ended(error: PsumError | None) -> None:
        if error is None:
            try:
                step()
            except PsumError as failure:
                error = failure
            except Exception as failure:
                reason = f"{type(failure).__name__}: {failure}"
                error = PsumError(f"the result of {title()} arrived, and could not be handed over: {reason}")
                error.__cause__ = failure
        done(error)

    return ended
