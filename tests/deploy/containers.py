"""Containers as processes: a pod's namespaces, user, volumes and limits, on this machine.

A container's command runs as process 1 of its own namespace of processes, as its manifest's user, without capabilities,
with its volumes at their places and all else read-only. What differs from a container: its network is this machine's,
of which it has a loopback address of its own, and its programs are those of this machine, with /mnt for the image's
working directory.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import IO

from tests.deploy.manifests import ROOT, Pod, Resource

#: What a container has for /dev/shm where no volume is there.
_SHM_BYTES = 64 << 20

#: The variable by which tests find what they have started; see tests/processes.py.
_MARK = "STARTED_BY_TESTS"


@dataclasses.dataclass
class Mounts:
    """What a container sees in its file system.

    Attributes:
        etc: A folder whose files are in /etc, in front of this machine's.
        hosts: The file that is /etc/hosts. It may be written again while the container runs.
        work: The folder that it works in.
        empty: Folders that are empty and can be written to, with their sizes in bytes; 0: unlimited.
        shared: Folders of this machine that can be written to.
    """

    etc: pathlib.Path
    hosts: pathlib.Path
    work: pathlib.Path
    empty: dict[str, int] = dataclasses.field(default_factory=lambda: {"/dev/shm": _SHM_BYTES})
    shared: list[str] = dataclasses.field(default_factory=list)

    def script(self) -> str:
        """What mounts it all, in a namespace of mounts of its own, as a script that fails where anything does."""
        lines = [
            "set -e",
            *_opened(),
            f"mount -t overlay -o lowerdir={shlex.quote(str(self.etc))}:/etc overlay /etc",
            f"mount --bind {shlex.quote(str(self.hosts))} /etc/hosts",
            f"mount --bind {shlex.quote(str(self.work))} /mnt",
            "mount -o remount,bind,ro /",
        ]
        for folder, size in self.empty.items():
            if _needed(pathlib.Path(folder)):
                # An empty one would hide the program: it can be written to, at least.
                lines.append(f"mount --rbind {folder} {folder} && mount -o remount,bind,rw {folder}")
            else:
                lines.append(f"mount -t tmpfs -o mode=1777,size={size} tmpfs {folder}")
        lines += [f"mount --bind {folder} {folder} && mount -o remount,bind,rw {folder}" for folder in self.shared]
        return "\n".join([*lines, "cd /mnt"])


def mounts(pod: Pod, secrets: Mapping[str, Mapping[str, bytes]], directory: pathlib.Path) -> Mounts:
    """Writes what is in a pod's secrets into a folder; returns what its container sees.

    Args:
        pod: The pod.
        secrets: Keys and values of the secrets, by their names.
        directory: A new folder for it.
    """
    etc, work = directory / "etc", directory / "work"
    etc.mkdir(parents=True)
    work.mkdir()
    made = Mounts(etc, directory.parent / "hosts", work)
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", ())}
    group = pod.spec["securityContext"].get("fsGroup", 0)
    for mount in pod.container.get("volumeMounts", ()):
        volume, path = volumes[mount["name"]], mount["mountPath"]
        if "secret" in volume:
            _write(etc / pathlib.PurePath(path).relative_to("/etc"), volume["secret"], secrets, group)
        elif "hostPath" in volume:
            assert volume["hostPath"]["path"] == path, "a volume of the host at another place"
            made.empty.pop(path, None)
            made.shared.append(path)
        else:
            made.empty[path] = _bytes(volume["emptyDir"].get("sizeLimit", "0"))
    return made


def _write(folder: pathlib.Path, secret: Resource, secrets: Mapping[str, Mapping[str, bytes]], group: int) -> None:
    """A secret's files, for the pod's group to read as its mode says."""
    values = secrets[secret["secretName"]]
    folder.mkdir(parents=True)
    for item in secret.get("items", [{"key": key, "path": key} for key in values]):
        file = folder / item["path"]
        file.write_bytes(values[item["key"]])
        file.chmod(secret["defaultMode"])
        if has_users():
            os.chown(file, 0, group)


def _bytes(amount: str) -> int:
    units = {"Mi": 1 << 20, "Gi": 1 << 30}
    return int(amount[:-2]) * units[amount[-2:]] if amount != "0" else 0


def _needed(folder: pathlib.Path) -> list[pathlib.Path]:
    """What of that which runs is in a folder of this machine."""
    paths = (ROOT, pathlib.Path(sys.prefix), pathlib.Path(sys.base_prefix))
    return [path for path in paths if path.is_relative_to(folder)]


def _opened() -> Iterator[str]:
    """Has every user reach the program where it is in somebody's own folder, such as a Python in /root."""
    reached = {parent for path in _needed(pathlib.Path("/")) for parent in path.parents}
    closed = [folder for folder in sorted(reached) if not folder.stat().st_mode & stat.S_IXOTH]
    for folder in closed:
        if not any(folder.is_relative_to(other) for other in closed if other != folder):
            yield f"mount --bind {folder} /mnt && mount -t tmpfs -o mode=755 tmpfs {folder}"
            for path in _needed(folder):
                yield f"mkdir -p {path} && mount --bind /mnt/{path.relative_to(folder)} {path}"
            yield "umount /mnt"


def has_users() -> bool:
    """Whether containers have the users that their manifests say, for which it takes root; else they have this one."""
    return os.geteuid() == 0


def _namespaces() -> list[str]:
    command = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child"]
    return command if has_users() else [*command, "--user", "--map-root-user"]


def _identity(pod: Pod) -> list[str]:
    """What starts a program as the pod's user, without any capability; it dies with what has started it."""
    if not has_users():
        return []
    context = pod.spec["securityContext"]
    groups = f"--groups={context['fsGroup']}" if "fsGroup" in context else "--clear-groups"
    user = [f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}", groups]
    return ["setpriv", *user, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=keep"]


@functools.cache
def lack() -> str:
    """Why this machine cannot run containers so; '' where it can."""
    mounted = ("-t overlay -o lowerdir=/mnt:/etc overlay /etc", "-o remount,bind,ro /", "-t tmpfs tmpfs /mnt")
    trial = " && ".join(f"mount {arguments}" for arguments in mounted)
    try:
        done = subprocess.run([*_namespaces(), "sh", "-c", trial], capture_output=True, text=True, timeout=20)
    except OSError as error:
        return f"unshare cannot be run: {error}"
    return "" if done.returncode == 0 else f"namespaces of its own are not permitted here: {done.stderr.strip()}"


class Container:
    """A container that runs.

    Args:
        pod: The pod that it is of.
        mounted: What it sees.
        command: What it runs.
        environ: All of its environment but for PATH.
        log: What it writes is appended to this.
    """

    def __init__(self, pod: Pod, mounted: Mounts, command: list[str], environ: Mapping[str, str], log: IO[str]) -> None:
        paths = os.pathsep.join([f"{sys.prefix}/bin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"])
        program = shutil.which(command[0], path=paths)
        assert program is not None, f"this machine has no {command[0]}"
        inner = shlex.join([*_identity(pod), program, *command[1:]])
        script = f"{mounted.script()}\nhostname {shlex.quote(pod.name)}\nexec {inner}"
        given = {"PATH": paths, "HOME": "/", **environ, _MARK: os.environ.get(_MARK, "")}
        if "PYTHONPATH" in os.environ:
            given["PYTHONPATH"] = os.environ["PYTHONPATH"]
        # A group of its own: what interrupts the tests does not reach it.
        self._killed = False
        self._outer = subprocess.Popen(
            [*_namespaces(), "sh", "-c", script], env=given, stdout=log, stderr=log, process_group=0
        )

    @property
    def status(self) -> int | None:
        """The status that it ended with, as Kubernetes reports it: 128 and the signal's number where one killed it."""
        status = self._outer.poll()
        if status is not None and self._killed:
            # unshare of util-linux 2.38 ends with 1 then.
            return 128 + signal.SIGKILL
        return 128 - status if status is not None and status < 0 else status

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to process 1; to one that has ended nothing is sent.

        The kernel keeps a process 1 from signals for which it has no handler, but for SIGKILL and SIGSTOP from outside.
        """
        with contextlib.suppress(ProcessLookupError):
            for pid in _children(self._outer.pid):
                os.kill(pid, number)
                self._killed |= number == signal.SIGKILL

    def wait(self, seconds: float) -> int:
        """Waits for its end; returns its status.

        Raises:
            subprocess.TimeoutExpired: It still runs.
        """
        self._outer.wait(seconds)
        status = self.status
        assert status is not None
        return status

    def close(self) -> None:
        """Kills it where it runs: process 1 takes all others of its namespace with it."""
        if self._outer.poll() is None:
            self.signal(signal.SIGKILL)
            self._outer.kill()
            self._outer.wait()


def _children(parent: int) -> Iterator[int]:
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                # The command in parentheses may contain anything; field 4 is the parent.
                if int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1]) == parent:
                    yield int(entry.name)
