"""docs/protocol.md is enough to write a client: its figures are right, and the client written from it works."""

import json
import math
import pathlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minimal_client
from psum import client as psum
from psum.client.core.placement import Placement, key_id

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "protocol.md"
PARTITION = 1 << 14
SIZES = (0, 1, 7, 9000, 30_001)


def vectors(name: str) -> list[dict[str, Any]]:
    """Returns the page's examples under a heading; each is a line of JSON."""
    block = re.search(rf"<!-- {name} -->\n```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None, name
    return [json.loads(line) for line in block[1].splitlines()]


def test_the_ids_on_the_page_are_those_that_are_made() -> None:
    """psum's client and the minimal one make the ids on the page."""
    for vector in vectors("ids"):
        expected = int(vector["id"], 16)
        assert key_id(vector["store"], vector["key"], vector["operation"]) == expected
        assert minimal_client.key_id(vector["store"], vector["operation"], vector["key"]) == expected
    assert len(vectors("ids")) >= 4


def test_the_turns_on_the_page_are_those_that_are_taken() -> None:
    """Both clients take the turns on the page, for various weights."""
    for vector in vectors("turns"):
        weights = vector["weights"]
        assert minimal_client.turns(weights) == vector["turns"]
        owners = [Placement(1, weights).first(turn) for turn in range(len(vector["turns"]))]
        assert owners == vector["turns"]
    assert len(vectors("turns")) >= 4


def test_the_shards_on_the_page_are_those_that_are_cut() -> None:
    """The shards on the page have the right elements and owners."""
    for vector in vectors("shards"):
        item, name, key = vector["bytes_per_element"], vector["key"], int(vector["id"], 16)
        placement = Placement(vector["partition_bytes"], vector["weights"])
        turn = placement.turn(0, name, key)
        shards = placement.shards(turn, vector["elements"], item)
        assert [[shard.size // item, shard.aggregator] for shard in shards] == vector["shards"], vector
        assert placement.first(turn) == vector["first_owner"]
    assert len(vectors("shards")) >= 3


@given(
    st.integers(0, 2**64 - 1),
    st.one_of(st.text(max_size=3), st.integers(0, 300).map(str)),
    st.integers(0, 800_000),
    st.integers(1 << 10, 1 << 18),
    st.lists(st.integers(1, 6), min_size=1, max_size=9),
)
def test_the_minimal_client_cuts_as_psum_s(key: int, name: str, elements: int, most: int, weights: list[int]) -> None:
    """Any key on any fleet, whatever the weights."""
    divisor = math.gcd(*weights)
    placement = Placement(most, weights)
    turn = placement.turn(0, name, key)
    expected = [(shard.size // 4, shard.aggregator) for shard in placement.shards(turn, elements, 4)]
    weights = [weight // divisor for weight in weights]
    assert minimal_client.place(key, name, elements, most, weights) == expected
    assert minimal_client.first_owner(key, name, weights) == placement.first(turn)


def values(rank: int, size: int, round: int) -> Any:
    """Returns the values of a rank."""
    return np.random.default_rng([rank, size, round]).standard_normal(size).astype(np.float32)


def use_own(client: psum.Client) -> list[bytes]:
    """Runs some operations with psum's client."""
    store, results = client.store(), []
    for round in range(3):
        for size in SIZES:
            array = values(client.rank, size, round)
            store.push_pull(f"w{size}", array)
            results.append(array.tobytes())
    for size in SIZES:
        array = values(client.rank, size, 9)
        store.broadcast(f"b{size}", array)
        results.append(array.tobytes())
    return results


def use_minimal(addresses: tuple[str, ...], rank: int, num_workers: int) -> list[bytes]:
    """Runs the same operations with the minimal client."""
    worker = minimal_client.Worker(addresses, rank, num_workers, partition=PARTITION)
    results = [worker.push_pull(f"w{size}", values(rank, size, round).tolist()) for round in range(3) for size in SIZES]
    results += [worker.broadcast(f"b{size}", values(rank, size, 9).tolist()) for size in SIZES]
    worker.close()
    return [np.array(result, np.float32).tobytes() for result in results]


@pytest.mark.parametrize("aggregators", [1, 3])
@pytest.mark.parametrize("foreign", [{0}, {1}, {0, 2}, {0, 1, 2}], ids=str)
def test_a_minimal_client_sums_side_by_side_with_psum_s(
    make_fleet: Callable[..., Any], aggregators: int, foreign: set[int]
) -> None:
    """Clients of both kinds get the same bits in one job, and leave it in order."""
    fleet = make_fleet(aggregators)

    def run(rank: int) -> list[bytes]:
        if rank in foreign:
            return use_minimal(fleet.addresses, rank, 3)
        with fleet.worker(rank, 3, partition_bytes=PARTITION) as client:
            return use_own(client)

    with ThreadPoolExecutor(3) as pool:
        zero, one, two = pool.map(run, range(3), timeout=50)
    assert zero == one == two
    expected = values(0, 7, 0) + values(1, 7, 0) + values(2, 7, 0)
    assert zero[2] == expected.tobytes()
    assert [ended.failure for a in fleet.addresses for ended in psum.fetch_status(a).ended] == [""] * aggregators


def test_it_hears_why_it_is_refused(make_fleet: Callable[..., Any]) -> None:
    """A refused minimal client gets the same text as every rank."""
    fleet = make_fleet()
    with fleet.worker(0, 2), pytest.raises(RuntimeError, match="disagree on the number of workers"):
        minimal_client.Worker(fleet.addresses, 1, 3)
