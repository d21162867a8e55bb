"""The table that says which of PyTorch's tests pass, and why the others do not."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from tests.torch.pytorch_suite.one_run import SECONDS_EACH
from tests.torch.pytorch_suite.runs import Outcome

#: What test names of DistributedDataParallel, its hooks, and the averaging of models contain.
_DDP: Final = re.compile(
    "ddp|DistributedDataParallel|graph|no_sync|unused|sync_?b|model_across|bucket|localSGD|average", re.IGNORECASE
)
#: Patterns in the reasons that tests give, and what they mean.
_REASONS: Final = {
    "does not have (send|recv)": "need send and recv, which psum lacks",
    "does not have all_to_all": "need all_to_all, which psum lacks",
    "[Ss]parse": "reduce sparse tensors, which psum does not",
    "MPI supports": "run with MPI only: PyTorch tests all_to_all on the CPU with no other backend",
    "(?i)nccl": "need NCCL",
    "(?i)cuda|accelerator|gpu|cpu backend": "use what only a GPU has",
    "None is not|'' != '": "check on which GPU something is",
    "github.com/pytorch|flak|failing": "are switched off in PyTorch, on every backend",
    "torchvision": "need torchvision",
    "timed out": f"take longer than {SECONDS_EACH} s on the CPU of this machine",
}


def table(psum: Sequence[Outcome], gloo: Sequence[Outcome]) -> str:
    """Tables in Markdown, of the outcomes of the same tests with both backends."""
    passed_with_gloo = {_key(outcome) for outcome in gloo if outcome["outcome"] == "passed"}
    rows: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in psum:
        rows[_row(outcome)].append(outcome)
    lines = ["| tests of | number | pass with Gloo | of these, pass with psum |", "|---|---|---|---|"]
    for row, outcomes in [*rows.items(), ("all", psum)]:
        can_pass = [outcome for outcome in outcomes if _key(outcome) in passed_with_gloo]
        passed = sum(outcome["outcome"] == "passed" for outcome in can_pass)
        lines.append(f"| {row} | {len(outcomes)} | {len(can_pass)} | {passed} |")
    missing = [outcome for outcome in psum if outcome["outcome"] != "passed" and _key(outcome) in passed_with_gloo]
    lines += _by_reason("pass with Gloo, and do not pass with psum", missing)
    more = [outcome for outcome in psum if outcome["outcome"] == "passed" and _key(outcome) not in passed_with_gloo]
    if more:
        lines += ["", f"{len(more)} pass with psum only: " + ", ".join(_names(more)) + "."]
    neither = [outcome for outcome in psum if outcome["outcome"] != "passed" and _key(outcome) not in passed_with_gloo]
    lines += _by_reason("pass with neither", neither, with_names=False)
    return "\n".join(lines)


def meaning(reason: str) -> str:
    """What the reason that a test gave means; the reason itself if that is not known."""
    return next((text for pattern, text in _REASONS.items() if re.search(pattern, reason)), reason)


def _by_reason(title: str, outcomes: Sequence[Outcome], *, with_names: bool = True) -> list[str]:
    if not outcomes:
        return []
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[meaning(outcome["reason"])].append(outcome)
    lines = ["", f"| {title}: they … | number |" + " tests |" * with_names, "|---|---|" + "---|" * with_names]
    for text, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"| {text} | {len(group)} |" + f" {', '.join(_names(group))} |" * with_names)
    return lines


def _names(outcomes: Sequence[Outcome]) -> list[str]:
    return sorted(outcome["test"].removeprefix("test_") for outcome in outcomes)


def _row(outcome: Outcome) -> str:
    if outcome["group"] != "DistributedTests":
        return outcome["group"]
    return "DistributedDataParallel" if _DDP.search(outcome["test"]) else "collectives and groups"


def _key(outcome: Outcome) -> tuple[str, str]:
    return outcome["group"], outcome["test"]
