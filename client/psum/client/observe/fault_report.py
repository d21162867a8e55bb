"""The first failure that an aggregator tells a worker of, kept in a file for whoever started the worker."""

import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Self

from psum.wire.errors import FaultError


@dataclasses.dataclass(frozen=True)
class FaultReport:
    """What an aggregator told.

    Attributes:
        kind: What kind of failure it is, in a word such as worker_lost.
        text: What happened, for people.
        ranks: The ranks that it is about.
    """

    kind: str
    text: str
    ranks: tuple[int, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self | None:
        """What a worker has kept in a file; None where it was told of nothing."""
        try:
            values = json.loads(pathlib.Path(path).read_text())
            return cls(values["kind"], values["text"], tuple(values["ranks"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def write_report(fault: FaultError, path: str) -> None:
    """Writes a failure to a file, unless one was written there before."""
    # Whether it can be written makes no difference to the worker.
    with contextlib.suppress(OSError), open(path, "x", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(FaultReport(fault.kind, str(fault), fault.ranks)), file)
