"""Faults survive the wire."""

import re

import pytest

from psum.v1 import aggregator_pb2 as pb
from psum.wire import errors


@pytest.mark.parametrize("code", [c for c in pb.FaultCode.values() if c != pb.FAULT_CODE_UNSPECIFIED])
def test_every_code_has_an_exception_that_survives_the_wire(code: pb.FaultCode.ValueType) -> None:
    """Each code has its class. Text, key, round and ranks are preserved."""
    sent = errors.FaultError.from_message(pb.Fault(code=code, text="what happened", id=0, round=0, ranks=[2, 5]))
    assert type(sent) is not errors.FaultError
    received = errors.FaultError.from_message(sent.to_message())
    assert type(received) is type(sent)
    assert (str(received), received.key, received.round, received.ranks) == ("what happened", 0, 0, (2, 5))


def test_a_fault_without_key_means_the_job() -> None:
    """A key or round that was not given stays None and does not become 0."""
    fault = errors.FaultError.from_message(errors.WorkerLostError("gone", ranks=[1]).to_message())
    assert (fault.key, fault.round) == (None, None)


def test_an_unknown_code_is_still_a_fault() -> None:
    """A code of a later version is reported with its text."""
    fault = errors.FaultError.from_message(pb.Fault(code=pb.FaultCode.ValueType(99), text="new"))
    assert isinstance(fault, errors.FaultError)
    assert str(fault) == "new"


def test_the_overview_has_every_exception_below_its_base() -> None:
    """The tree at the beginning of the file is what a reader sees first."""
    above: list[str] = []
    drawn: dict[str, str | None] = {}
    for branch, name in re.findall(r"^([│├└─ ]*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE):
        above[len(branch) // 4 :] = [name]
        drawn[name] = above[-2] if len(above) > 1 else None
    classes = {name: each for name, each in vars(errors).items() if isinstance(each, type)}
    real = {name: each.__bases__[0].__name__ for name, each in classes.items() if issubclass(each, errors.PsumError)}
    assert drawn == {**real, "PsumError": None}
