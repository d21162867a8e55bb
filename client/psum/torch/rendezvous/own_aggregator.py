"""An aggregator that this process starts for a job that names none. It ends with the job, or with this process."""

import contextlib
import importlib.util
import logging
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Final

from psum.client import Client, ConfigurationError, PsumError, fetch_status

_log = logging.getLogger(__name__)

#: What an aggregator needs beside the client; see the extra of this name in pyproject.toml.
NEEDED: Final = ("aiohttp", "grpc_health", "grpc_reflection", "numkong", "prometheus_client")

#: How long an aggregator may take to start.
START_SECONDS: Final = 60.0

#: How often to look whether it is ready, and whether it is still needed.
_READY_SECONDS: Final = 0.02
_WATCH_SECONDS: Final = 0.25

#: How long an aggregator may take to say which jobs it has.
_STATUS_SECONDS: Final = 2.0

#: How long this process waits at its end for ranks that have not left the job yet.
_OTHERS_SECONDS: Final = 30.0

#: How long an aggregator may take to end before it is killed.
_END_SECONDS: Final = 3.0

#: How often an aggregator is started again that has ended by itself, and the pause before that.
_RESTARTS: Final = 5
_PAUSE_SECONDS: Final = 0.2

#: Variables of workers that mean something else to an aggregator.
_WORKERS_VARIABLES: Final = ("PSUM_TLS_CA", "PSUM_TLS_CERT", "PSUM_TLS_KEY", "PSUM_TOKEN_FILE", "PSUM_INSECURE")


class OwnAggregator:
    """An aggregator on this host, started and watched by a thread.

    It is started again at its address if it ends by itself, for example because somebody killed it. Workers then go on
    where they were. The kernel ends it when this process ends, however that happens.

    Args:
        listen: Where it listens, as host:port.
        processes: How many processes it has, if the environment does not say so.
        environ: Its environment variables, beside this process's.

    Attributes:
        address: Where it listens, once it does.
    """

    def __init__(self, listen: str, processes: int, environ: Mapping[str, str]) -> None:
        self.address = listen
        inherited = {name: value for name, value in os.environ.items() if name not in _WORKERS_VARIABLES}
        # The interpreter finds the modules where this one does.
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry and pathlib.Path(entry).is_dir())
        self._environ = {
            "PSUM_LOG_LEVEL": "warning",
            "PSUM_PROCESSES": str(processes),
            **inherited,
            **environ,
            "PYTHONPATH": path,
        }
        self._users: list[Client] = []
        self._changing = threading.Lock()
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._mistake = ""
        self._process: subprocess.Popen[bytes] | None = None
        # The kernel ends the aggregator when the thread ends that has started it. The thread in which the program makes
        # the group may end before.
        self._thread = threading.Thread(target=self._run, name="psum-own-aggregator", daemon=True)

    def start(self, patience: float) -> str:
        """Starts it and returns its address.

        Args:
            patience: How many seconds it may take.

        Raises:
            ConfigurationError: It cannot serve; what it has printed says more.
        """
        patience = min(patience, START_SECONDS)
        self._thread.start()
        if not self._ready.wait(patience):
            self._mistake = f"the aggregator of this host was not ready within {patience:g} s of its start"
        if self._mistake:
            self.end()
            raise ConfigurationError([self._mistake])
        return self.address

    @property
    def pid(self) -> int:
        """Its process id; 0 if it does not run."""
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        """Whether it serves, or is being started again."""
        return self._thread.is_alive() and not self._stop.is_set()

    def serve(self, client: Client) -> None:
        """Keeps running for a client of this process, until that and all other members of its job have left."""
        with self._changing:
            self._users.append(client)

    def finish(self) -> None:
        """Waits until no job needs it, and ends it. For the end of this process.

        Its clients must be closed.
        """
        if not self.running:
            return
        self._thread.join(_OTHERS_SECONDS)
        if self._thread.is_alive():
            _log.warning(
                "the aggregator at %s ends with this process, although other ranks have not left the job within %g s",
                self.address,
                _OTHERS_SECONDS,
            )
            self.end()

    def end(self) -> None:
        """Ends it at once."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_END_SECONDS + 1.0)

    def _run(self) -> None:
        try:
            self._keep()
        except Exception as error:
            self._mistake = f"the aggregator of this host could not be started: {error}"
        finally:
            self._kill()
            self._ready.set()

    def _keep(self) -> None:
        restarts = 0
        self._launch()
        self._ready.set()
        while not self._mistake:
            assert self._process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(_WATCH_SECONDS)
                if self._stop.is_set() or self._is_done():
                    return
                if restarts == _RESTARTS:
                    _log.error("the aggregator at %s has ended again (%s), and stays away", self.address, _how(code))
                    return
                restarts += 1
                _log.error(
                    "the aggregator at %s %s while this job needs it; starting it again", self.address, _how(code)
                )
                time.sleep(_PAUSE_SECONDS)
                # Its address may be in use for a moment.
                self._launch()
                self._mistake = ""
                continue
            if self._stop.is_set() or self._is_done():
                return

    def _launch(self) -> None:
        """Starts a process, and waits until it accepts connections or has ended."""
        with tempfile.TemporaryDirectory(prefix="psum-", ignore_cleanup_errors=True) as directory:
            file = pathlib.Path(directory) / "addresses"
            command = [sys.executable, "-P", "-m", "psum.cli", "aggregator", "--end-with", str(os.getpid())]
            # The job is over when it ends, so there is nothing to finish.
            command += ["--listen", self.address, "--grace", "500ms", "--announce", str(file)]
            self._process = subprocess.Popen(
                command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Ctrl-C in a terminal then reaches only this process.
                start_new_session=True,
            )
            while not self._stop.is_set():
                # The file appears with its content.
                with contextlib.suppress(FileNotFoundError):
                    self.address = file.read_text().splitlines()[0]
                    return
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._mistake = _cause(self._process.wait(_READY_SECONDS))
                    return

    def _is_done(self) -> bool:
        """Whether no job needs it any more."""
        with self._changing:
            users = list(self._users)
        if not users or not all(client.closed for client in users):
            return False
        try:
            return not fetch_status(self.address, timeout=_STATUS_SECONDS, settings=users[0].settings).jobs
        except PsumError:
            # Too busy, or it has just ended: nobody could use it then.
            return self._process is None or self._process.poll() is not None

    def _kill(self) -> None:
        if self._process is None:
            return
        try:
            # The kernel sends SIGTERM when this process ends. The aggregator then waits for that, to clear up.
            self._process.send_signal(signal.SIGINT)
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _cause(code: int) -> str:
    """Why an aggregator has ended before it was ready."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return (
            f"the aggregator of this host needs {' and '.join(missing)}, which is not installed: pip install"
            " 'psum[aggregator]' on this host, or name aggregators that run elsewhere in PSUM_AGGREGATORS"
        )
    return f"the aggregator of this host {_how(code)} before it was ready; it has printed the reason to standard error"


def _how(code: int) -> str:
    return f"ended with status {code}" if code >= 0 else f"was ended by signal {-code}"
