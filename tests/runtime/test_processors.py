"""The number of processors follows from the affinity and the limits of control groups."""

import os
import pathlib
import subprocess
import sys

import pytest

from psum.runtime.processors import cpu_limits, processors, within_limits

#: Mounts of version 2, and of version 1 on systems that use both.
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
OTHERS = (
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
    "36 31 0:33 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory",
)


def system(root: pathlib.Path, cgroup: str, *mounts: str, **files: str) -> pathlib.Path:
    """Make the files of a system: those in /proc, and files by their paths under /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text("".join(f"{line}\n" for line in (*OTHERS, *mounts)))
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "limits"),
    [
        pytest.param("0::/a.slice/b", [V2], {"a.slice/b/cpu.max": "150000 100000"}, [1.5], id="version 2"),
        pytest.param("0::/a/b", [V2], {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, [3], id="nested"),
        pytest.param(
            "0::/a/b", [V2], {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, [4, 2], id="both"
        ),
        pytest.param("0::/", [V2], {"cpu.max": "50000 100000"}, [0.5], id="a container's own namespace"),
        pytest.param("0::/../../other", [V2], {"cpu.max": "max 100000"}, [], id="outside of the namespace"),
        pytest.param("0::/", [V2], {}, [], id="the root, which has no limit"),
        pytest.param(
            "4:memory:/d/x\n3:cpu,cpuacct:/d/x\n0::/d/x",
            [V1],
            {"cpu,cpuacct/d/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/d/x/cpu.cfs_period_us": "100000"},
            [2.5],
            id="version 1",
        ),
        pytest.param(
            "3:cpu,cpuacct:/d",
            [V1],
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "-1", "cpu,cpuacct/d/cpu.cfs_period_us": "100000"},
            [],
            id="version 1 without a limit",
        ),
        pytest.param(
            "3:cpu,cpuacct:/docker/x/y",
            [V1.replace("0:30 / ", "0:30 /docker/x ")],
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "600000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/y/cpu.cfs_quota_us": "100000",
                "cpu,cpuacct/y/cpu.cfs_period_us": "50000",
            },
            [2, 6],
            id="version 1 in a container, whose group is mounted",
        ),
        pytest.param(
            "3:cpu,cpuacct:/docker/x",
            [V1],
            {"cpu,cpuacct/cpu.cfs_quota_us": "600000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            [6],
            id="version 1 in a container that sees the host's path",
        ),
        pytest.param("0::/a", [V2], {"a/cpu.max": "many"}, [], id="not to be read"),
    ],
)
def test_limits_are_those_of_the_group_and_of_all_around_it(
    tmp_path: pathlib.Path, cgroup: str, mounts: list[str], files: dict[str, str], limits: list[float]
) -> None:
    """This holds for both versions of control groups, also within a container."""
    assert list(cpu_limits(system(tmp_path, f"{cgroup}\n", *mounts, **files))) == limits


def test_a_system_without_control_groups_has_no_limits(tmp_path: pathlib.Path) -> None:
    """The same holds if /proc is hidden."""
    assert list(cpu_limits(tmp_path)) == []


@pytest.mark.parametrize(
    ("affinity", "limits", "expected"),
    [(8, [], 8), (8, [3.9, 16.0], 3), (2, [4.0], 2), (4, [0.5], 1), (1, [], 1)],
)
def test_the_least_of_all_counts_in_whole_processors(affinity: int, limits: list[float], expected: int) -> None:
    """Limits are rounded down, but at least one processor remains."""
    assert within_limits(affinity, iter(limits)) == expected


def test_this_process_may_use_no_more_than_it_may_run_on() -> None:
    """A process that is pinned to one processor may use one."""
    assert 1 <= processors() <= len(os.sched_getaffinity(0))
    pinned = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    program = f"{pinned}\nfrom psum.aggregator import Settings\nprint(Settings().threads)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "1\n"
