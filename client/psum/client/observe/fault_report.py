"""The fault file: the first failure that an aggregator reports to a worker, for the process that started the worker."""

import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Self

from psum.wire.errors import FaultError


@dataclasses.dataclass(frozen=True)
class FaultReport:
    """A failure that an aggregator reported.

    Attributes:
        kind: The kind of failure in a word, such as worker_lost.
        text: What happened, for people.
        ranks: The ranks that it is about.
    """

    kind: str
    text: str
    ranks: tuple[int, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self | None:
        """Reads a worker's fault file; None if there is no failure in it."""
        try:
            values = json.loads(pathlib.Path(path).read_text())
            return cls(values["kind"], values["text"], tuple(values["ranks"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def write_report(fault: FaultError, path: str) -> None:
    """Writes a failure to a new file; does nothing if the file exists."""
    # The worker does not depend on the file.
    with contextlib.suppress(OSError), open(path, "x", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(FaultReport(fault.kind, str(fault), fault.ranks)), file)
