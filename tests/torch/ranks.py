"""Runs a function on several ranks, each a process of its own in which torch.distributed is initialized with psum."""

import datetime
import multiprocessing
import os
import pathlib
import secrets
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Final

#: The longest that a program may take, with the first import of much of PyTorch.
PATIENCE_SECONDS: Final = 150.0

# The server imports what takes long once. Each rank is forked from it.
_context: Final = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pytest", "psum.torch", "torch._dynamo", "torch.distributed.optim"])


def start_server() -> None:
    """Start the processes of multiprocessing before a test, so that they do not count as the test's."""
    resource_tracker.ensure_running()
    forkserver.ensure_running()


def end_server() -> None:
    """End the processes of multiprocessing, which otherwise live as long as this process."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def pipe() -> tuple["Connection[Any, Any]", "Connection[Any, Any]"]:
    """Returns two ends of a pipe. A program on ranks may get one of them."""
    return _context.Pipe()


class Ranks:
    """Starts ranks.

    Args:
        aggregators: The addresses that they get.
        environ: Further variables of all programs.
    """

    def __init__(self, aggregators: Sequence[str], environ: dict[str, str] | None = None) -> None:
        self.aggregators = ",".join(aggregators)
        self._environ = environ or {}

    def run(
        self,
        size: int,
        program: Callable[..., Any],
        *arguments: Any,
        initialize: bool = True,
        timeout: float = 30.0,
        environ: dict[str, str] | None = None,
        failing: bool = False,
        replacing: bool = False,
    ) -> list[Any]:
        """Run a function on each rank, and return the results by rank.

        Args:
            size: The number of ranks.
            program: A function of a module.
            arguments: Its arguments.
            initialize: Whether the default group is there when it begins. Otherwise its first arguments are the
                init_method, the rank and the size.
            timeout: The timeout of the default group, in seconds.
            environ: Further variables.
            failing: Whether a result may be missing: it is then the text of the exception, or None if the rank died.
            replacing: Whether a rank that died is started again.
        """
        variables = (
            {"PSUM_AGGREGATORS": self.aggregators, "PSUM_JOB": secrets.token_hex(4)} | self._environ | (environ or {})
        )
        with tempfile.TemporaryDirectory() as directory:
            method = f"file://{pathlib.Path(directory) / 'store'}"
            started: dict[Connection[Any, Any], tuple[int, Any]] = {}

            def start(rank: int) -> "Connection[Any, Any]":
                ours, theirs = _context.Pipe()
                process = _context.Process(
                    target=_run, args=(theirs, program, arguments, method, rank, size, initialize, timeout, variables)
                )
                process.start()
                theirs.close()
                started[ours] = rank, process
                return ours

            try:
                for rank in range(size):
                    start(rank)
                return self._results(started, failing, start if replacing else None)
            finally:
                for _, process in started.values():
                    process.kill()
                    process.join()

    def _results(
        self,
        started: dict["Connection[Any, Any]", tuple[int, Any]],
        failing: bool,
        replace: Callable[[int], "Connection[Any, Any]"] | None,
    ) -> list[Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        results: dict[int, Any] = {}
        waiting = list(started)
        while waiting:
            ready = wait(waiting, max(0.0, deadline - time.monotonic()))
            assert ready, f"the ranks {[started[each][0] for each in waiting]} gave no result in time"
            for connection in [each for each in waiting if each in ready]:
                waiting.remove(connection)
                rank = started[connection][0]
                try:
                    result, error = connection.recv()
                except EOFError:
                    if replace is not None:
                        waiting.append(replace(rank))
                        continue
                    result, error = None, "the process died" if not failing else ""
                assert failing or not error, f"rank {rank}: {error}"
                results[rank] = error or result
        return [result for _, result in sorted(results.items())]


def _run(
    connection: "Connection[Any, Any]",
    program: Callable[..., Any],
    arguments: Sequence[Any],
    method: str,
    rank: int,
    size: int,
    initialize: bool,
    timeout: float,
    variables: dict[str, str],
) -> None:
    os.environ.update(variables)
    import torch
    import torch.distributed as dist

    import psum.torch  # noqa: F401

    torch.set_num_threads(1)
    try:
        if initialize:
            dist.init_process_group(
                "psum", init_method=method, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=timeout)
            )
            result = program(*arguments)
            if dist.is_initialized():
                dist.destroy_process_group()
        else:
            result = program(method, rank, size, *arguments)
        connection.send((result, ""))
    except BaseException as error:
        traceback.print_exc()
        connection.send((None, f"{type(error).__name__}: {error}"))
    connection.close()
