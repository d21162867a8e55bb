"""Short fuzzing runs on all targets, and tests of the fuzzer itself."""

import subprocess
import sys
from collections import Counter
from random import Random

import pytest

from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, encode, to_columns
from tests.fuzz.conversations import Conversation, mutate_steps
from tests.fuzz.harness import Case
from tests.fuzz.mutation import Mutator, split_fields
from tests.fuzz.run import run_in_new_loop

INPUTS = {
    "framing": 2000,
    "data_connection": 1000,
    "session": 600,
    "aggregator": 300,
    "client": 30,
    "server": 20,
    "relay": 20,
}


@pytest.mark.parametrize("target", INPUTS)
def test_invalid_input_violates_no_rule(target: str) -> None:
    """A fixed set of inputs violates no rule. scripts/fuzz runs more inputs."""
    outcomes = run_in_new_loop(INPUTS[target], 1, [target])
    # Some inputs must be accepted and some refused: if all were refused early, the test would show little.
    assert len(outcomes) >= 2


def test_a_case_is_reproducible() -> None:
    """The text form of a case reproduces its input."""

    def make() -> list[bytes | None]:
        random = Case.parse("aggregator:7:1234").random()
        conversation = Conversation.make(random, "job")
        steps = conversation.steps(random, conversation.firsts)
        mutate_steps(random, steps, ())
        return [step.encoded() for step in steps]

    assert make() == make()


def test_a_case_is_reproducible_in_another_process() -> None:
    """No input depends on string hashes, which differ between processes."""
    program = (
        "from tests.fuzz.harness import Case\n"
        "from tests.fuzz.mutation import Mutator\n"
        "from psum.v1 import aggregator_pb2 as pb\n"
        "mutator = Mutator(Case('framing', 3, 4).random(), ())\n"
        "message = mutator.random_message(pb.ExchangeRequest.DESCRIPTOR)\n"
        "print(mutator.mutate(message, b'payload').hex())\n"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout
        for _ in range(2)
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("kind", [pb.ExchangeRequest, pb.ExchangeResponse])
def test_every_kind_of_message_is_generated(kind: type[pb.ExchangeRequest | pb.ExchangeResponse]) -> None:
    """The fuzzer generates every kind of message, including kinds added to the protocol later."""
    mutator = Mutator(Random(1), ())
    made = Counter(mutator.random_message(kind.DESCRIPTOR).WhichOneof("kind") for _ in range(3000))
    assert set(made) >= {field.name for field in kind.DESCRIPTOR.oneofs_by_name["kind"].fields}


def test_mutations_are_varied() -> None:
    """Some mutations of a message are still valid messages, some are not, and few equal the original."""
    entries = [ShardRound(id=7, shard=i, round=3, length=4) for i in range(2)]
    message = pb.ExchangeRequest(push=pb.Push(shards=to_columns(entries)))
    original = encode(message, b"abcdefgh")
    mutator = Mutator(Random(1), [message])
    mutants = [mutator.mutate(message, b"abcdefgh") for _ in range(2000)]
    assert len(set(mutants)) > 1000
    readable = 0
    for mutant in mutants:
        try:
            readable += pb.ExchangeRequest.FromString(mutant) is not None
        except Exception:
            continue
    assert 500 < readable < 1900
    assert mutants.count(original) < 100


def test_an_encoded_message_is_split_and_joined() -> None:
    """Splitting an encoded message into fields and joining them gives the same bytes."""
    data = encode(pb.ExchangeRequest(hello=pb.Hello(job="x", rank=300, incarnation=5, age_seconds=1.5)), b"abc")
    assert b"".join(field.encode() for field in split_fields(data)) == data
