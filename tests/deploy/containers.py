"""Containers as processes: a pod's namespaces, user, volumes and limits, on this machine.

A container's command runs as process 1 of its own PID namespace, as its manifest's user, without capabilities. Its
volumes are mounted at their paths, and everything else is read-only. Two things differ from a real container. It uses
this machine's network, with a loopback address of its own. It uses this machine's programs, with /mnt as the image's
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
from tests.process_stat import stat_fields

#: The size of a container's /dev/shm if no volume is mounted there.
_SHM_BYTES = 64 << 20

#: The variable by which tests find the processes that they started; see tests/processes.py.
_MARK = "STARTED_BY_TESTS"


@dataclasses.dataclass
class Mounts:
    """What a container sees in its file system.

    Attributes:
        etc: A folder whose files appear in /etc, in front of this machine's files.
        hosts: The file that appears as /etc/hosts. It may be rewritten while the container runs.
        work: The working directory.
        empty: Empty, writable folders, with their sizes in bytes; 0 means unlimited.
        shared: Writable folders of this machine.
        bound: Writable folders of this machine, by the paths at which they appear.
    """

    etc: pathlib.Path
    hosts: pathlib.Path
    work: pathlib.Path
    empty: dict[str, int] = dataclasses.field(default_factory=lambda: {"/dev/shm": _SHM_BYTES})
    shared: list[str] = dataclasses.field(default_factory=list)
    bound: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)

    def script(self) -> str:
        """Returns a shell script that makes all mounts in a mount namespace of its own. It stops at the first error."""
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
                # An empty folder would hide the program, so this folder is only made writable.
                lines.append(f"mount --rbind {folder} {folder} && mount -o remount,bind,rw {folder}")
            else:
                lines.append(f"mount -t tmpfs -o mode=1777,size={size} tmpfs {folder}")
        for path, source in ({path: pathlib.Path(path) for path in self.shared} | self.bound).items():
            lines.append(f"mount --bind {source} {path} && mount -o remount,bind,rw {path}")
        return "\n".join([*lines, "cd /mnt"])


def mounts(
    pod: Pod,
    secrets: Mapping[str, Mapping[str, bytes]],
    directory: pathlib.Path,
    memory: pathlib.Path | None = None,
) -> Mounts:
    """Writes a pod's secrets into a folder; returns the mounts of its container.

    Args:
        pod: The pod.
        secrets: The keys and values of each secret, by the secret's name.
        directory: A new folder for the files.
        memory: The folder in memory that the containers of the pod share, if it has several.
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
        elif memory is not None and volume["emptyDir"].get("medium") == "Memory":
            made.empty.pop(path, None)
            made.bound[path] = memory
        else:
            made.empty[path] = _bytes(volume["emptyDir"].get("sizeLimit", "0"))
    return made


def _write(folder: pathlib.Path, secret: Resource, secrets: Mapping[str, Mapping[str, bytes]], group: int) -> None:
    """Writes a secret's files, with the secret's mode, for the pod's group."""
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
    """Returns the paths of psum and of its Python that are in a folder of this machine."""
    paths = (ROOT, pathlib.Path(sys.prefix), pathlib.Path(sys.base_prefix))
    return [path for path in paths if path.is_relative_to(folder)]


def _opened() -> Iterator[str]:
    """Yields commands that let every user reach the program if it is in a private folder, such as a Python in /root."""
    reached = {parent for path in _needed(pathlib.Path("/")) for parent in path.parents}
    closed = [folder for folder in sorted(reached) if not folder.stat().st_mode & stat.S_IXOTH]
    for folder in closed:
        if not any(folder.is_relative_to(other) for other in closed if other != folder):
            yield f"mount --bind {folder} /mnt && mount -t tmpfs -o mode=755 tmpfs {folder}"
            for path in _needed(folder):
                yield f"mkdir -p {path} && mount --bind /mnt/{path.relative_to(folder)} {path}"
            yield "umount /mnt"


def has_users() -> bool:
    """Whether containers run as the users of their manifests, which needs root. Otherwise they run as this user."""
    return os.geteuid() == 0


def _namespaces() -> list[str]:
    command = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child"]
    return command if has_users() else [*command, "--user", "--map-root-user"]


def _identity(pod: Pod) -> list[str]:
    """Returns a command that runs a program as the pod's user without capabilities. It dies with its parent."""
    if not has_users():
        return []
    context = pod.spec["securityContext"]
    groups = f"--groups={context['fsGroup']}" if "fsGroup" in context else "--clear-groups"
    user = [f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}", groups]
    return ["setpriv", *user, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=keep"]


@functools.cache
def lack() -> str:
    """Why this machine cannot run containers in this way; '' if it can."""
    mounted = ("-t overlay -o lowerdir=/mnt:/etc overlay /etc", "-o remount,bind,ro /", "-t tmpfs tmpfs /mnt")
    trial = " && ".join(f"mount {arguments}" for arguments in mounted)
    try:
        done = subprocess.run([*_namespaces(), "sh", "-c", trial], capture_output=True, text=True, timeout=20)
    except OSError as error:
        return f"unshare cannot be run: {error}"
    return "" if done.returncode == 0 else f"namespaces of its own are not permitted here: {done.stderr.strip()}"


class Container:
    """A running container.

    Args:
        pod: Its pod.
        mounted: Its mounts.
        command: Its command line.
        environ: Its whole environment except PATH.
        log: The file that its output is appended to.
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
        # In its own process group, a signal that interrupts the tests does not reach it.
        self._killed = False
        self._outer = subprocess.Popen(
            [*_namespaces(), "sh", "-c", script], env=given, stdout=log, stderr=log, process_group=0
        )

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs; as in Kubernetes, 128 plus the number of a signal that killed it."""
        status = self._outer.poll()
        if status is not None and self._killed:
            # In this case, unshare of util-linux 2.38 ends with status 1.
            return 128 + signal.SIGKILL
        return 128 - status if status is not None and status < 0 else status

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to process 1, if that still runs.

        The kernel ignores signals for which process 1 has no handler, except SIGKILL and SIGSTOP from outside.
        """
        with contextlib.suppress(ProcessLookupError):
            for pid in _children(self._outer.pid):
                os.kill(pid, number)
                self._killed |= number == signal.SIGKILL

    def wait(self, seconds: float) -> int:
        """Waits for the container's end; returns its status.

        Raises:
            subprocess.TimeoutExpired: The container still runs.
        """
        self._outer.wait(seconds)
        status = self.status
        assert status is not None
        return status

    def close(self) -> None:
        """Kills the container if it runs. The end of process 1 ends all other processes of its namespace."""
        if self._outer.poll() is None:
            self.signal(signal.SIGKILL)
            self._outer.kill()
            self._outer.wait()


def _children(parent: int) -> Iterator[int]:
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if int(stat_fields(pid := int(entry.name))[1]) == parent:
                    yield pid
