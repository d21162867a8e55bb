"""Real workers: processes with MXNet that sum through a real aggregator."""

import pathlib
import re
import signal
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest

from psum.aggregator import Settings
from tests.trace_events import checked

PAGE: Final = pathlib.Path(__file__).parents[2] / "docs" / "elastic-mxnet.md"


def parameters(folder: pathlib.Path, rank: int, num_workers: int, devices: int) -> list[np.ndarray[Any, Any]]:
    with np.load(folder / f"{rank}-of-{num_workers}-{devices}.npz") as saved:
        return [saved[name] for name in saved.files]


def test_training_equals_one_process(
    run_workers: Callable[..., list[Any]], run_alone: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    """Training with two workers, of one device or two, gives what one process gives with the whole batch.

    Their parameters are equal to its up to rounding, and the same bits on all ranks and devices.
    """
    for run in [*run_workers("train.py", str(tmp_path)), run_alone("train.py", str(tmp_path))]:
        run.check()
    alone = parameters(tmp_path, 0, 1, devices=1)
    for devices in (1, 2):
        first, second = (parameters(tmp_path, rank, 2, devices) for rank in range(2))
        assert [a.tobytes() for a in first] == [a.tobytes() for a in second]
        for number, expected in enumerate(alone):
            copies = first[number * devices : (number + 1) * devices]
            assert len({copy.tobytes() for copy in copies}) == 1
            np.testing.assert_allclose(copies[0], expected, rtol=1e-4, atol=1e-6)


def test_timeline(run_workers: Callable[..., list[Any]], tmp_path: pathlib.Path) -> None:
    """The timeline of a training has its gradients, with the time in which they were computed."""
    traces = tmp_path / "traces"
    environ = {"BYTEPS_TRACE_ON": "1", "BYTEPS_TRACE_DIR": str(traces), "BYTEPS_TRACE_START_STEP": "1"}
    for run in run_workers("train.py", str(tmp_path), **environ):
        run.check()
    for rank in range(2):
        document = checked(traces / f"rank-{rank}.json")
        slices = [event for event in document["traceEvents"] if event["ph"] == "X"]
        # Two trainings of four steps, each with a store of its own; the last of the one and the first of the other are
        # one step.
        assert {e["args"]["step"] for e in slices} == set(range(1, 7))
        for step, store in ((2, 1), (5, 2)):
            gradients = {f"{number} (store {store})" for number in range(6)}
            names = {e["name"] for e in slices if e["cat"] == "value" and e["args"]["step"] == step}
            # With the parameter's name behind.
            assert {name.rpartition(" (")[0] for name in names} == gradients
            assert all(name.endswith(("weight)", "bias)")) for name in names)
        assert {e["args"]["last_rank"] for e in slices if e["cat"] == "wait"} <= {0, 1}


def test_page(run_workers: Callable[..., list[Any]]) -> None:
    """The members of the documentation page work between two ranks."""
    assert [run.check().strip() for run in run_workers("page.py")] == ["done", "done"]


def test_averages_beside_a_training(run_workers: Callable[..., list[Any]]) -> None:
    """The KVStore's client sums other things too. A second client gets an error that says what to use instead."""
    for run in run_workers("beside.py"):
        *lines, error = run.check().splitlines()
        assert lines == ["accuracy [5.0, 9.0]"] * 2 + ["weight -4.0"]
        assert "this process is rank" in error
        assert "psum.client.shared_client() gives it, and the KVStore 'byteps' uses it as well" in error


def test_failures_of_keys(run_workers: Callable[..., list[Any]]) -> None:
    """A rank whose value fails or differs in shape fails that key, and no other, for all ranks."""
    innocent, guilty = (run.check().splitlines() for run in run_workers("failure.py"))
    # The guilty rank itself gets MXNet's own error first.
    assert "rank 1" not in guilty[0]
    assert all("rank 1" in error and "'failed'" in error for error in [*innocent[:2], guilty[1]])
    for error in [*innocent[2:4], *guilty[2:4]]:
        assert "'differs'" in error
        assert "(2, 3)" in error
        assert "(3, 2)" in error
    assert innocent[4:] == guilty[4:] == ["12.0"]


@pytest.mark.parametrize("aggregator_settings", [Settings(listen=("127.0.0.1:0",), worker_timeout=0.5)])
def test_lost_worker(run_workers: Callable[..., list[Any]]) -> None:
    """If a worker vanishes, the other gets an error that names its rank."""
    left, _ = run_workers("failure.py", "exit")
    errors = left.check().splitlines()
    assert len(errors) == 2
    assert all("rank 1" in error for error in errors)


def test_stages_are_the_memory_that_aggregators_read(run_workers: Callable[..., list[Any]]) -> None:
    """Stages are pushed without another copy."""
    assert [run.check().strip() for run in run_workers("stages.py")] == ["0", "0"]


@pytest.mark.parametrize("plane", ["inline", "direct", "shm"])
def test_sums_of_devices(run_workers: Callable[..., list[Any]], plane: str) -> None:
    """Arrays of a device get exact sums in each round. Where memory is shared, large sums are copied from there."""
    lent = 12 if plane == "shm" else 0
    assert [run.check().strip() for run in run_workers("device_sums.py", PSUM_PLANE=plane)] == [f"{lent} lent"] * 2


@pytest.mark.once
@pytest.mark.parametrize("plane", ["inline", "direct", "shm"])
def test_forms_and_types(run_workers: Callable[..., list[Any]], plane: str) -> None:
    """Arrays of all element types are summed exactly in all forms, in place and through stages, on every plane."""
    assert [run.check().splitlines() for run in run_workers("forms.py", PSUM_PLANE=plane)] == [["700 checked"]] * 2


@pytest.mark.parametrize("aggregator_settings", [Settings(listen=("127.0.0.1:0",), elastic_closed_timeout=0.2)])
def test_the_mean_stays_the_mean(run_workers: Callable[..., list[Any]]) -> None:
    """When a rank of an elastic job is killed, Trainer's gradients are the mean of the others', with equal bits.

    Integers are summed.
    """
    first, lost, last = run_workers("mean.py", num_workers=3, PSUM_ELASTIC="1")
    assert lost.status == -signal.SIGKILL
    assert first.check() == last.check() != ""


@pytest.mark.parametrize("aggregator_settings", [Settings(listen=("127.0.0.1:0",), elastic_closed_timeout=0.2)])
def test_a_replacement_has_the_same_bits(start_workers: Callable[..., list[Any]]) -> None:
    """A process that replaces a killed one gets parameters, optimizers and values, and has the others' bits then.

    The trainings are SGD with momentum, Adam with a schedule, and SGD in float16 with weights in float32, also with
    AMP's scaled losses. The replacement uses a device with another number.
    """
    environment = {"PSUM_ELASTIC": "1", "PSUM_JOB": "replaced"}
    runs = start_workers("joining.py", "3", "0", num_workers=3, **environment)
    assert runs[1].wait().status == -signal.SIGKILL, runs[1].errors
    runs[1] = start_workers("joining.py", "3", "1", num_workers=3, ranks=[1], **environment)[0]
    # The replacement first: if it fails, the others go on for ever, and its error is the one that tells why.
    runs[1].check()
    outputs = [run.check().splitlines() for run in runs]
    steps = [dict(line.split()[1:] for line in output if line.startswith("step")) for output in outputs]
    assert steps[0] == steps[2]
    assert int(outputs[0][-1].removeprefix("scales ")) > 2
    assert "members 0 1 2" in outputs[0]
    assert "joined" in outputs[1]
    assert len(steps[1]) >= 4
    assert steps[1].items() <= steps[0].items()


def test_a_worker_that_leaves_gives_its_part_of_the_step(start_workers: Callable[..., list[Any]]) -> None:
    """Also if MXNet is about to compute it: all steps of the others that it took part in have the sum of all."""
    stays, leaves = start_workers("leaving.py", num_workers=2, PSUM_ELASTIC="1", PSUM_JOB="leaving")
    leaves.check()
    steps, weight = stays.check().split()
    assert float(weight) == -4.0 * int(steps)
    assert "ERROR" not in leaves.errors


@pytest.mark.parametrize("aggregator_settings", [Settings(listen=("127.0.0.1:0",), elastic_closed_timeout=0.2)])
def test_the_program_of_the_page_goes_on_after_a_kill(
    aggregator: str, run_python: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    """The page's program runs unchanged, except for the crash of a rank. A replacement joins, and all end alike."""
    [program] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    crash = (
        "    if store.rank == 1 and state.step_number == 50 and not state.joined:\n"
        "        import os, signal\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        # The others wait for the replacement.
        "    if 60 < state.step_number < 65 and len(state.members) < 3:\n"
        "        state.step_number = 60\n"
    )
    loop = "while state.step_number < STEPS:\n"
    assert loop in program
    text = f"import os\nos.chdir({str(tmp_path)!r})\n" + program.replace(loop, loop + crash)
    text += "print('same', *(p.data().asnumpy().tobytes().hex() for p in trainer._params))\n"
    environment = {"PSUM_AGGREGATORS": aggregator, "PSUM_NUM_WORKERS": "3", "PSUM_ELASTIC": "2:3", "PSUM_JOB": "page"}
    runs = [run_python(text, PSUM_RANK=str(rank), **environment) for rank in range(3)]
    assert runs[1].wait().status == -signal.SIGKILL, runs[1].errors
    runs[1] = run_python(text, PSUM_RANK="1", **environment)
    # The replacement first: the others wait for it.
    runs[1].check()
    outputs = [run.check() for run in runs]
    assert len({re.findall("^same .*", output, re.MULTILINE)[0] for output in outputs}) == 1
    assert float(re.findall(r"^loss (\S+)", outputs[0], re.MULTILINE)[0]) < 1.0
    assert (tmp_path / "model.params").exists()
