"""The loop that times every system."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from psum.cli.bench import measure
from psum.cli.bench.measure import Measurement, Plan, System


class Recorder(System):
    """A system that records its calls. Its server is this process."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.servers = [os.getpid()]

    def fill(self, turn: int) -> None:
        self.calls.append(f"fill {turn}")

    def push_pull(self, number: int) -> None:
        self.calls.append(f"push {number}")

    def wait(self, number: int) -> None:
        self.calls.append(f"wait {number}")

    def wait_for_all(self) -> None:
        self.calls.append("wait")

    def meet(self) -> None:
        pass

    def check(self, turn: int) -> None:
        self.calls.append(f"check {turn}")


def plan(**changes: object) -> Plan:
    """Return a plan with three tensors, one warm-up step and two timed steps."""
    values = dict(
        system="numpy",
        sizes=[10, 20, 30],
        element_type="float16",
        item_bytes=2,
        warmup=1,
        steps=2,
        latency_steps=0,
        idle_seconds=0.0,
        measurement="",
        progress=False,
    )
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


def test_steps_before_and_steps_that_are_timed() -> None:
    """Tensors get new values before the timed steps, so that the check detects sums left over from warm-up."""
    system = Recorder()
    measured = measure.measure(system, plan())
    step = ["push 0", "push 1", "push 2", "wait"]
    assert system.calls == ["fill 0", *step, "fill 1", *step, *step, "check 1"]
    assert measured.payload_bytes == 2 * 60 * 2
    assert measured.seconds > 0
    assert (measured.latency_ms, measured.idle_share) == ([], None)


def test_latency_is_taken_as_a_backward_pass_pushes_and_a_forward_pass_reads() -> None:
    """The most urgent tensor, number 0, is pushed last and read first."""
    system = Recorder()
    measured = measure.measure(system, plan(warmup=0, steps=1, latency_steps=1))
    pushed = ["push 2", "push 1", "push 0", "wait 0", "wait 1", "wait 2", "wait"]
    assert system.calls[-len(pushed) :] == pushed
    assert 0 < measured.latency_ms[0] < measured.latency_ms[2] <= measured.latency_step_ms


def test_idle_share_is_of_one_second() -> None:
    """Servers that use 50 ms between two looks, with 200 ms of idling, have a share of 0.25."""

    class Busy(Recorder):
        used = 0.0

        def server_cpu_seconds(self) -> float:
            self.used += 0.05
            return self.used

    measured = measure.measure(Busy(), plan(idle_seconds=0.2))
    assert measured.idle_share == pytest.approx(0.25)
    assert measured.server_cpu_seconds == pytest.approx(0.05)
    assert Measurement.load(measured.dump()) == measured


def test_a_rival_leaves_its_job_when_its_measurement_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """A process of Gloo that only exits may abort, because its threads still run then."""
    written = tmp_path / "measurement"
    system = Recorder()
    monkeypatch.setitem(measure.RIVALS, "recorder", lambda plan: system)
    monkeypatch.setattr(system, "end", lambda: system.calls.append(f"end, written: {written.exists()}"))
    measure.main(plan(system="recorder", measurement=str(written)).dump())
    assert system.calls[-1] == "end, written: True"


def test_what_a_rival_needs_is_the_standard_library() -> None:
    """A rival's interpreter may lack psum, so the file imports only the standard library before the rival."""
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); print([n for n in ('psum', 'numpy') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(measure.__file__)], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_memory_and_processor_time_are_the_systems_own_figures(tmp_path: pathlib.Path) -> None:
    """Figures of this process agree with other sources. A process that has ended counts as 0."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = measure._memory("VmRSS", [os.getpid()])
    assert 1 < own <= measure._memory("VmHWM", [os.getpid()])
    assert measure._memory("VmRSS", [ended.pid]) == 0
    assert measure._cpu_seconds(ended.pid) == 0
    assert measure._cpu_seconds(os.getpid()) == pytest.approx(sum(os.times()[:2]), abs=0.1)


def test_a_plan_crosses_to_another_process() -> None:
    """A plan survives conversion to JSON and back."""
    sent = plan(servers=[1, 2])
    assert Plan.load(sent.dump()) == sent
    assert json.loads(sent.dump())["sizes"] == [10, 20, 30]
