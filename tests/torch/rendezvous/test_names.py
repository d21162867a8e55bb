"""Ranks and sizes in torch's names and in psum's."""

import pytest

from psum.client import ConfigurationError
from psum.torch.rendezvous.names import contradictions, local_place, missing_from_torch

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


def test_psums_names_give_torchs() -> None:
    """What psum launch or a manifest with psum's names sets is enough for init_process_group."""
    names = {"PSUM_RANK": "5", "PSUM_NUM_WORKERS": "8", "PSUM_LOCAL_RANK": "1", "PSUM_LOCAL_SIZE": "4"}
    assert missing_from_torch(names, {}) == TORCHRUN
    assert missing_from_torch({"JOB_COMPLETION_INDEX": "2", "WORLD_SIZE": "3"}, {}) == {"RANK": "2"}


def test_torchs_names_need_none_of_psums() -> None:
    """With torchrun nothing is missing, whatever Kubernetes counts. What the program gives counts too."""
    assert missing_from_torch({**TORCHRUN, "JOB_COMPLETION_INDEX": "1"}, {}) == {}
    assert missing_from_torch({}, {"rank": "0", "world_size": "2"}) == {}
    # Neither is known: torch says what it expects.
    assert missing_from_torch({}, {}) == {}


@pytest.mark.parametrize("environ", [{"WORLD_SIZE": "4"}, {"PSUM_NUM_WORKERS": "4"}, {"RANK": "1"}, {"PSUM_RANK": "1"}])
def test_a_rank_without_a_size_is_one_error_that_names_both_sides(environ: dict[str, str]) -> None:
    """And so is a size without a rank."""
    with pytest.raises(ConfigurationError) as caught:
        missing_from_torch(environ, {})
    (text,) = caught.value.mistakes
    missing = (
        ("RANK", "PSUM_RANK") if any("SIZE" in n or "NUM" in n for n in environ) else ("WORLD_SIZE", "PSUM_NUM_WORKERS")
    )
    assert f"neither {missing[0]} nor {missing[1]} is set" in text
    assert "torchrun or `psum launch`" in text


def test_names_that_contradict_each_other_are_named() -> None:
    """Each with its value, beside what torch says."""
    environ = {**TORCHRUN, "PSUM_RANK": "4", "PSUM_NUM_WORKERS": "9", "PSUM_LOCAL_SIZE": "2", "PSUM_LOCAL_RANK": "1"}
    assert [text.partition(" mean")[0] for text in contradictions(environ, 5, 8)] == [
        "PSUM_RANK=4 and RANK=5",
        "PSUM_NUM_WORKERS=9 and WORLD_SIZE=8",
        "PSUM_LOCAL_SIZE=2 and LOCAL_WORLD_SIZE=4",
    ]
    (text,) = contradictions({"PSUM_RANK": "0"}, 1, 2)
    assert text.startswith("PSUM_RANK=0 and init_process_group's rank=1 mean")
    assert list(contradictions({**TORCHRUN, "JOB_COMPLETION_INDEX": "1"}, 5, 8)) == []


def test_ranks_on_a_host_are_counted_where_no_name_tells() -> None:
    """psum's names come first, then torch's, then the number of ranks that report the same host."""
    hosts = (0, 1, 0, 1, 1)
    assert [local_place({}, hosts, rank) for rank in range(5)] == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert local_place(TORCHRUN, hosts, 0) == (1, 4)
    assert local_place({**TORCHRUN, "PSUM_LOCAL_SIZE": "2"}, hosts, 0) == (1, 2)
