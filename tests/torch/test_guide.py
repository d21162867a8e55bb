"""The programs and the errors of the pages about PyTorch."""

import ast
import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any, Final

import pytest
import torch
import torch.distributed as dist

import psum.torch
from tests.torch.ranks import Ranks

ROOT: Final = pathlib.Path(__file__).parents[2]
GUIDE: Final = ROOT / "docs" / "torch-guide.md"
REFERENCE: Final = ROOT / "docs" / "torch.md"

#: Where the texts of errors come from.
SOURCES: Final = (
    *(ROOT / "client" / "psum").rglob("*.py"),
    *(ROOT / "aggregator" / "psum").rglob("*.py"),
    *(ROOT / "proto" / "psum").rglob("*.py"),
    *(pathlib.Path(dist.__file__).parent / name for name in ("distributed_c10d.py", "rendezvous.py")),
)


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_program_of_the_guide_continues_after_a_crash(tmp_path: pathlib.Path) -> None:
    """It runs unchanged with the guide's command, except for the crash. torchrun starts it again, with another job and
    another aggregator, and it goes on from its checkpoint."""
    program, _ = blocks(GUIDE, "python")
    crash = '    if (epoch, rank, os.environ["TORCHELASTIC_RESTART_COUNT"]) == (2, 1, "0"):\n        os._exit(9)\n'
    loop = "for epoch in range(start, EPOCHS):\n"
    assert loop in program
    (tmp_path / "train.py").write_text(program.replace(loop, loop + crash))
    [command] = [line for block in blocks(GUIDE, "sh") for line in block.splitlines() if "--max-restarts" in line]
    name, *arguments = command.split()
    assert name == "torchrun"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PSUM_")}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    epochs = [int(number) for number in re.findall(r"^epoch (\d+): loss", done.stdout, re.MULTILINE)]
    # When rank 1 crashes, rank 0 may have finished the epoch before or not.
    assert epochs in ([0, 1, 2, 3, 4], [0, 1, 1, 2, 3, 4]), done.stdout
    losses = re.findall(r"loss (\S+)", done.stdout)
    assert float(losses[-1]) < float(losses[0]) / 4


def test_the_elastic_program_of_the_guide_goes_on_after_a_kill(elastic_ranks: Ranks, tmp_path: pathlib.Path) -> None:
    """It runs unchanged, except for the crash of a rank. A replacement joins, and all end with the same parameters.

    The ranks meet nowhere: they have no MASTER_ADDR.
    """
    _, program = blocks(GUIDE, "python")
    crash = (
        "    if rank == 1 and state.batch == 30 and not state.joined:\n"
        "        import os, signal\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        # The others wait for the replacement.
        "    if 50 < state.batch < 55 and len(state.members) < 3:\n"
        "        state.batch = 50\n"
    )
    loop, end = "while state.batch < STEPS:\n", "dist.destroy_process_group()\n"
    assert loop in program
    assert program.endswith(end)
    digest = "print('same', sum(float(p.double().sum()) for p in net.parameters()).hex())\n"
    (tmp_path / "elastic.py").write_text(program.replace(loop, loop + crash).replace(end, digest + end))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PSUM_")}
    environ |= {"PSUM_AGGREGATORS": elastic_ranks.aggregators, "PSUM_ELASTIC": "2:3", "PSUM_JOB": "guide"}

    def start(rank: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "elastic.py"],
            cwd=tmp_path,
            env=environ | {"PSUM_RANK": str(rank), "PSUM_NUM_WORKERS": "3", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    running = [start(rank) for rank in range(3)]
    try:
        _, errors = running[1].communicate(timeout=120)
        assert running[1].returncode == -signal.SIGKILL, errors
        running[1] = start(1)
        outputs = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    assert len({re.findall("^same .*", output, re.MULTILINE)[0] for output, _ in outputs}) == 1
    assert float(re.findall(r"^loss (\S+)", outputs[0][0], re.MULTILINE)[0]) < 1.0
    assert (tmp_path / "model.pt").exists()


def run_reference(method: str, rank: int, size: int) -> list[float]:
    """Run the programs of the reference that train, on one rank. Return a parameter after each."""
    os.environ.update(PSUM_RANK=str(rank), PSUM_NUM_WORKERS=str(size))
    found = []
    for program in blocks(REFERENCE, "python")[1:]:
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 1)
        names: dict[str, Any] = {
            "net": net,
            "model": net,
            "loss_of": torch.nn.functional.mse_loss,
            "my_part_of_the_data": [(torch.full((2, 3), 1.0 + rank), torch.zeros(2, 1))] * 2,
        }
        begun = f'("gloo", init_method={method!r}, rank={rank}, world_size={size})'
        exec(program.replace('("nccl")', begun), names)
        if dist.is_initialized():
            names["model"](torch.full((2, 3), 1.0 + rank)).sum().backward()
            found.append(float(net.weight.grad[0, 0]))
        else:
            found.append(float(net.weight[0, 0]))
        psum.torch.shutdown()
        if dist.is_initialized():
            dist.destroy_process_group()
    return found


def test_the_programs_of_the_reference_train(ranks: Ranks) -> None:
    """They run unchanged, except for their data and NCCL: both ranks have the same average and the same parameters."""
    one, other = ranks.run(2, run_reference, initialize=False)
    assert len(one) == 2
    assert one == other
    # The gradients are twice the inputs, which are 1 and 2.
    assert one[0] == pytest.approx(3.0)


def test_the_errors_of_the_guide_are_those_that_programs_see() -> None:
    """Each text is one of psum's or of PyTorch's."""
    texts = "\n".join(
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    table = GUIDE.read_text().partition("## If something is wrong")[2]
    listed = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(listed) > 15
    assert [text for text in listed if not all(part in texts for part in text.split(" … "))] == []
