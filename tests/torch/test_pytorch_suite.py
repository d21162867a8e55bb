"""Some of PyTorch's own tests of torch.distributed. `python -m tests.torch.pytorch_suite` runs all."""

from typing import Final

from tests.torch.pytorch_suite.report import table
from tests.torch.pytorch_suite.runs import Outcome, run

_NAMES: Final = (
    "test_DistributedDataParallelCPU_grad_is_view",
    "test_DistributedDataParallel_requires_grad",
    "test_accumulate_gradients_no_sync_allreduce_with_then_hook",
    "test_all_gather_complex",
    "test_all_gather_object_subgroup",
    "test_all_reduce_coalesced_sum",
    "test_all_reduce_sum_async",
    "test_ddp_control_flow_different_across_ranks",
    "test_ddp_ignore_params_arg",
    "test_gather",
    "test_get_future",
    "test_monitored_barrier_gloo",
    "test_reduce_max",
    "test_scatter_object_list",
)


def test_pytorchs_own_tests_pass_with_psum() -> None:
    """Tests of collectives, of groups and of DistributedDataParallel, on three processes each."""
    outcomes = run("psum", [3], _NAMES)
    assert [outcome["test"] for outcome in outcomes] == list(_NAMES)
    assert [f"{outcome['test']}: {outcome['details']}" for outcome in outcomes if outcome["outcome"] != "passed"] == []


def _outcome(test: str, reason: str = "") -> Outcome:
    outcome = "failed" if reason else "passed"
    return Outcome(group="DistributedTests", test=test, outcome=outcome, reason=reason, details="", ranks=4)


def test_the_table_compares_with_gloo() -> None:
    """It counts what Gloo passes, what psum passes of that, and the rest by reason, known or not."""
    gloo = [
        _outcome("test_barrier"),
        _outcome("test_send"),
        _outcome("test_odd"),
        _outcome("test_ddp_gpu", "RuntimeError: No CUDA GPUs"),
        _outcome("test_ddp_more", "AssertionError"),
    ]
    psum = [
        _outcome("test_barrier"),
        _outcome("test_send", "NotImplementedError: the backend psum does not have send"),
        _outcome("test_odd", "ValueError: odd"),
        _outcome("test_ddp_gpu", "RuntimeError: No CUDA GPUs"),
        _outcome("test_ddp_more"),
    ]
    lines = table(psum, gloo).splitlines()
    assert lines[2:5] == [
        "| collectives and groups | 3 | 3 | 1 |",
        "| DistributedDataParallel | 2 | 0 | 0 |",
        "| all | 5 | 3 | 1 |",
    ]
    assert "| ValueError: odd | 1 | odd |" in lines
    assert "| need send and recv, which psum lacks | 1 | send |" in lines
    assert "1 pass with psum only: ddp_more." in lines
    assert lines[-1] == "| use what only a GPU has | 1 |"
