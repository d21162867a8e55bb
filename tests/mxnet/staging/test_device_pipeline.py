"""The thread that moves arrays between devices and host memory, with devices and a thread that tests move by hand."""

from collections.abc import Callable

from psum.mxnet.staging.device_pipeline import DevicePipeline

MIB = 1 << 20


class Device:
    """Notes what it is asked to do.

    Attributes:
        log: What was done with it, in order.
        failure: If set, waiting raises it.
    """

    def __init__(self, number: int, log: list[str]) -> None:
        self.number = number
        self.log = log
        self.failure: Exception | None = None

    def begin(self) -> None:
        self.log.append(f"use {self.number}")

    def to_host(self, target: int, source: int, size: int, *, pinned: bool) -> None:
        raise NotImplementedError

    def to_device(self, target: int, source: int, size: int, *, pinned: bool) -> None:
        raise NotImplementedError

    def wait(self) -> None:
        self.log.append("wait")
        if self.failure is not None:
            raise self.failure


class Array:
    """An array on its way.

    Attributes:
        waits: How often the copy to the host has to wait for something else.
        copied: Whether there is a sum to copy to the device.
        failure: If set, queueing a copy raises it.
    """

    def __init__(self, name: str, log: list[str], *, priority: int = 0, nbytes: int = 4, device: int = 0) -> None:
        self.name, self.log = name, log
        self.device, self.nbytes, self.priority = device, nbytes, priority
        self.waits = 0
        self.copied = True
        self.failure: Exception | None = None

    def queue_down(self, copies: object) -> bool:
        if self.failure is not None:
            raise self.failure
        if self.waits:
            self.waits -= 1
            return False
        self.log.append(f"{self.name} down")
        return True

    def is_down(self) -> None:
        self.log.append(f"{self.name} is down")

    def queue_up(self, copies: object) -> bool:
        if self.failure is not None:
            raise self.failure
        if self.copied:
            self.log.append(f"{self.name} up")
        return self.copied

    def end(self) -> None:
        self.log.append(f"{self.name} ends")

    def fail(self, error: Exception) -> None:
        self.log.append(f"{self.name} fails: {error}")


class Hand:
    """A thread that the test moves."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def do(self, work: Callable[[], None]) -> None:
        self.work.append(work)

    def move(self) -> None:
        while self.work:
            self.work.pop(0)()


class Scene:
    """A pipeline with two devices."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.hand = Hand()
        self.devices = [Device(number, self.log) for number in range(2)]
        self.pipeline = DevicePipeline(self.devices.__getitem__, self.hand.do)

    def array(self, name: str, **its: int) -> Array:
        return Array(name, self.log, **its)

    def logged(self) -> list[str]:
        self.hand.move()
        log = self.log.copy()
        self.log.clear()
        return log


def test_one_wait_for_all_that_is_there() -> None:
    """Values and sums that are there are copied with one wait, and a busy thread is called once."""
    scene = Scene()
    a, b, c = map(scene.array, "abc")
    for each in (a, b):
        scene.pipeline.bring_down(each)
    scene.pipeline.bring_up(c)
    assert len(scene.hand.work) == 1
    assert scene.logged() == ["use 0", "c up", "a down", "b down", "wait", "a is down", "b is down", "c ends"]
    scene.pipeline.bring_up(a)
    assert scene.logged() == ["use 0", "a up", "wait", "a ends"]


def test_the_most_urgent_values_go_first_and_in_batches() -> None:
    """Values of high priority are copied first, others in order, and sums begin before all values are copied."""
    scene = Scene()
    for name, priority in (("a", 0), ("b", 2), ("c", 2), ("d", 1)):
        scene.pipeline.bring_down(scene.array(name, priority=priority, nbytes=5 * MIB))
    assert scene.logged() == [
        *["use 0", "b down", "c down", "wait", "b is down", "c is down"],
        *["use 0", "d down", "a down", "wait", "d is down", "a is down"],
    ]


def test_what_comes_while_the_thread_works() -> None:
    """A transfer that comes during a copy is not forgotten, nor one that had to wait."""
    scene = Scene()
    a, late = scene.array("a"), scene.array("late")
    a.is_down = lambda: scene.pipeline.bring_down(late)  # type: ignore[method-assign]
    a.waits = 1
    scene.pipeline.bring_down(a)
    assert scene.logged() == ["use 0"]
    scene.pipeline.bring_down(a)
    assert scene.logged() == ["use 0", "a down", "wait", "use 0", "late down", "wait", "late is down"]


def test_each_device_copies_its_own() -> None:
    """Arrays of two devices are copied by their devices."""
    scene = Scene()
    for device in (1, 0):
        scene.pipeline.bring_down(scene.array(f"of {device}", device=device))
    log = scene.logged()
    for device in (0, 1):
        begin = log.index(f"use {device}")
        assert log[begin : begin + 4] == [f"use {device}", f"of {device} down", "wait", f"of {device} is down"]


def test_a_sum_that_failed_needs_no_copy() -> None:
    """What has no sum to copy ends at once."""
    scene = Scene()
    array = scene.array("a")
    array.copied = False
    scene.pipeline.bring_up(array)
    assert scene.logged() == ["use 0", "a ends"]


def test_a_copy_that_is_refused_fails_alone() -> None:
    """An array whose copy cannot be queued fails, and the others of the batch do not."""
    scene = Scene()
    good, bad = scene.array("good"), scene.array("bad")
    bad.failure = RuntimeError("no")
    for bring in (scene.pipeline.bring_down, scene.pipeline.bring_up):
        bring(bad)
        bring(good)
        log = scene.logged()
        assert "bad fails: no" in log
        assert log[-1] in ("good is down", "good ends")


def test_all_copies_of_a_wait_that_fails_fail() -> None:
    """If the device fails, everything that is on its way there fails, and the thread goes on."""
    scene = Scene()
    scene.devices[0].failure = RuntimeError("gone")
    scene.pipeline.bring_down(scene.array("a"))
    scene.pipeline.bring_up(scene.array("b"))
    assert scene.logged() == ["use 0", "b up", "a down", "wait", "b fails: gone", "a fails: gone"]
    scene.devices[0].failure = None
    scene.pipeline.bring_down(scene.array("c"))
    assert scene.logged()[-1] == "c is down"


def test_a_device_that_cannot_be_used() -> None:
    """If there are no copies of a device at all, its arrays fail."""
    log: list[str] = []
    hand = Hand()

    def none_of(device: int) -> Device:
        raise RuntimeError(f"no device {device}")

    pipeline = DevicePipeline(none_of, hand.do)
    pipeline.bring_down(Array("a", log))
    pipeline.bring_up(Array("b", log))
    hand.move()
    assert log == ["b fails: no device 0", "a fails: no device 0"]
