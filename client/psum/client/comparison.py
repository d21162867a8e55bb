"""Checks that all ranks hold the same tensors, bit for bit, and names those that differ.

Ranks exchange digests only: a few numbers each while all agree. Every rank receives the same numbers, so all come to
the same verdict. If they disagree, all ranks get the names and digests of one rank, and each tells how it differs.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from psum.client.client import Client
from psum.client.core.store_numbers import INTERNAL
from psum.client.store import Store
from psum.wire import ElementType
from psum.wire.errors import OutOfStepError

#: How many tensors each rank names, and how many ranks an error names.
_MAX_NAMED: Final = 3
_MAX_RANKS: Final = 8

#: The bytes in which each rank tells how it differs.
_WORDS_BYTES: Final = 512

#: The numbers that each rank sends first: how many tensors it has, digests of their names and of their values, the size
#: of its list, and how many of its tensors have copies that differ.
_COLUMNS: Final = 5

#: The same in an elastic job, and three times 1, which lost ranks lack. A shard begins at a multiple of 16 numbers, so
#: a row lies within one.
_ELASTIC_COLUMNS: Final = 8


class ComparedTensor(NamedTuple):
    """A tensor to compare.

    Attributes:
        name: Its name.
        form: What else must be the same, in words, such as its type and shape.
        digest: The digest of its value.
        flaw: What is wrong with it on this rank alone; empty if nothing is.
    """

    name: str
    form: str
    digest: bytes
    flaw: str = ""


class Comparison:
    """Compares tensors over all ranks. All ranks must make the same comparisons, the same number of times.

    Args:
        client: This worker's client.
        name: The name of these comparisons on all ranks.
    """

    def __init__(self, client: Client, name: str) -> None:
        self._store = Store(client, INTERNAL)
        elastic = client.settings.elastic
        self._rank = client.rank
        self._ranks = client.num_workers if elastic is None else elastic.maximum
        self._columns = _COLUMNS if elastic is None else _ELASTIC_COLUMNS
        self._name = name

    def abort(self, reason: str) -> None:
        """Tells the other ranks that this one cannot compare its tensors, and why."""
        self._store.reserve(self._name, shape=(self._ranks, self._columns), element_type=ElementType.INT64).abort(
            reason
        )

    def compare(self, tensors: Sequence[ComparedTensor]) -> None:
        """Compares this rank's tensors with those of all other ranks, and waits for them.

        Raises:
            OutOfStepError: They are not the same. All ranks get this error.
            PsumError: The exchange with the other ranks failed.
        """
        listed = _listed(tensors)
        summary = np.ones(self._columns, np.int64)
        summary[:_COLUMNS] = self._summary(tensors, listed)
        gathered = self._gather(self._name, self._columns, np.dtype(np.int64), summary)
        # Lost ranks of an elastic job have zeros only.
        present = range(self._ranks) if self._columns == _COLUMNS else gathered[:, -1].nonzero()[0].tolist()
        summaries = {rank: tuple(gathered[rank, :4].tolist()) for rank in present}
        flawed = gathered[:, 4].nonzero()[0].tolist()
        # The model is the first rank of the largest group that agrees.
        most = Counter(summaries.values()).most_common(1)[0][0]
        model = next(rank for rank in present if summaries[rank] == most)
        apart = [rank for rank in present if summaries[rank] != most]
        if not apart and not flawed:
            return
        # One rank sends its list, the others zeros. A sum, because a broadcast can only come from rank 0.
        size = int(gathered[model, 3])
        theirs = np.zeros(size, np.uint8)
        if self._rank == model:
            theirs[:] = np.frombuffer(listed, np.uint8)
        self._store.push_pull(f"{self._name}: list of {size} bytes", theirs)
        words = _difference(tensors, json.loads(theirs.tobytes()), model).encode()[:_WORDS_BYTES]
        differences = self._gather(
            f"{self._name}: differences",
            _WORDS_BYTES,
            np.dtype(np.uint8),
            np.frombuffer(words.ljust(_WORDS_BYTES, b"\0"), np.uint8),
        )
        ranks = sorted({*apart, *flawed})
        named = "; ".join(f"rank {rank} {_text(differences[rank])}" for rank in ranks[:_MAX_RANKS])
        more = f"; {len(ranks) - _MAX_RANKS} more ranks differ" if len(ranks) > _MAX_RANKS else ""
        raise OutOfStepError(
            f"the ranks are out of step, compared with rank {model}: {named}{more}."
            " docs/drift.md lists the ways to this",
            ranks=ranks,
        )

    def _gather(self, key: str, width: int, dtype: "np.dtype[Any]", row: Any) -> "np.ndarray[Any, Any]":
        """Returns a row from every rank: each adds its own row to zeros."""
        rows = np.zeros((self._ranks, width), dtype)
        rows[self._rank] = row
        self._store.push_pull(key, rows)
        return rows

    @staticmethod
    def _summary(tensors: Sequence[ComparedTensor], listed: bytes) -> "list[int]":
        forms, values = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
        for tensor in tensors:
            forms.update(f"{tensor.name}\0{tensor.form}\0".encode())
            values.update(tensor.digest)
        numbers = [int.from_bytes(each.digest(), "little", signed=True) for each in (forms, values)]
        return [len(tensors), *numbers, len(listed), sum(bool(tensor.flaw) for tensor in tensors)]


def digest_of(*values: Any) -> bytes:
    """Returns a digest of 8 bytes of what C-contiguous buffers hold."""
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        digest.update(value)
    return digest.digest()


def _listed(tensors: Sequence[ComparedTensor]) -> bytes:
    return json.dumps([(tensor.name, tensor.form, tensor.digest.hex()) for tensor in tensors]).encode()


def _difference(tensors: Sequence[ComparedTensor], theirs: Sequence[Sequence[str]], model: int) -> str:
    """Tells how this rank's tensors differ from those of the model rank. The text follows 'rank N ' in an error."""
    flaws = [f"has different copies of {tensor.name}: {tensor.flaw}" for tensor in tensors if tensor.flaw]
    if len(flaws) > _MAX_NAMED:
        flaws[_MAX_NAMED:] = [f"and of {len(flaws) - _MAX_NAMED} more"]
    for number, (mine, (name, form, _)) in enumerate(zip(tensors, theirs, strict=False)):
        if (mine.name, mine.form) != (name, form):
            there = f"{name}, {form}, on rank {model}"
            return ", ".join([f"has {mine.name}, {mine.form}, as number {number}, which is {there}", *flaws])
    if len(tensors) != len(theirs):
        return ", ".join([f"has {len(tensors)} parameters, of which rank {model} has {len(theirs)}", *flaws])
    differing = [mine.name for mine, (_, _, digest) in zip(tensors, theirs, strict=True) if mine.digest.hex() != digest]
    if differing:
        more = f" and {len(differing) - _MAX_NAMED} more" if len(differing) > _MAX_NAMED else ""
        flaws.insert(0, f"differs in {', '.join(differing[:_MAX_NAMED])}{more} of {len(tensors)} parameters")
    return ", ".join(flaws)


def _text(row: "np.ndarray[Any, Any]") -> str:
    return row.tobytes().rstrip(b"\0").decode(errors="replace")
