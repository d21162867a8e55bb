"""A few thousand wrong inputs, and proof that what they are made by is any good."""

import subprocess
import sys
from collections import Counter
from random import Random

import pytest

from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, encode, to_columns
from tests.fuzz.cases import Case
from tests.fuzz.conversations import Conversation, disturb
from tests.fuzz.mutation import Mutator, split_fields
from tests.fuzz.run import run_here

INPUTS = {"framing": 2000, "pipe": 1000, "session": 600, "aggregator": 300, "link": 12, "server": 10}


@pytest.mark.parametrize("target", INPUTS)
def test_wrong_input_does_no_harm(target: str) -> None:
    """The same some hundreds of inputs as ever; scripts/fuzz feeds as many others as it is told to."""
    outcomes = run_here(INPUTS[target], 1, [target])
    # Some are refused and some are taken: inputs that are all refused at the door would show little.
    assert len(outcomes) >= 2


def test_a_case_is_the_same_whenever_it_is_made() -> None:
    """What a report names can be fed again."""

    def make() -> list[bytes | None]:
        random = Case.parse("aggregator:7:1234").random()
        conversation = Conversation.make(random, "job")
        steps = conversation.steps(random, range(conversation.num_workers))
        disturb(random, steps, ())
        return [step.encoded() for step in steps]

    assert make() == make()


def test_a_case_is_the_same_in_another_process() -> None:
    """Nothing depends on the hashes of strings, which differ from process to process."""
    program = (
        "from tests.fuzz.cases import Case\n"
        "from tests.fuzz.mutation import Mutator\n"
        "from psum.v1 import aggregator_pb2 as pb\n"
        "mutator = Mutator(Case('framing', 3, 4).random(), ())\n"
        "message = mutator.random_message(pb.ExchangeRequest.DESCRIPTOR)\n"
        "print(mutator.mutate(message, b'payload').hex())\n"
    )
    said = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout
        for _ in range(2)
    }
    assert len(said) == 1


@pytest.mark.parametrize("kind", [pb.ExchangeRequest, pb.ExchangeResponse])
def test_every_kind_of_message_is_made(kind: type[pb.ExchangeRequest | pb.ExchangeResponse]) -> None:
    """A kind that is added to the protocol is fuzzed without another word."""
    mutator = Mutator(Random(1), ())
    made = Counter(mutator.random_message(kind.DESCRIPTOR).WhichOneof("kind") for _ in range(3000))
    assert set(made) >= {field.name for field in kind.DESCRIPTOR.oneofs_by_name["kind"].fields}


def test_mutations_are_of_all_sorts() -> None:
    """Of a message some are still messages and some are not, and few are the original."""
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


def test_an_encoded_message_is_taken_apart_and_put_together() -> None:
    """Fields are told apart as they were written."""
    data = encode(pb.ExchangeRequest(hello=pb.Hello(job="x", rank=300, incarnation=5, age_seconds=1.5)), b"abc")
    assert b"".join(field.encode() for field in split_fields(data)) == data
