"""Find workers that ended successfully without having joined the job."""

import asyncio
from collections.abc import Callable, Sequence

from psum.client import ConnectError, Settings, fetch_status


class JoinCheck:
    """Report workers that have trained alone. Other ranks may be waiting for them.

    Args:
        job: The name of the job.
        token_file: The file with the job's token.
        note: Shows a message.
    """

    def __init__(self, job: str, token_file: str, note: Callable[[str], None]) -> None:
        self._job = job
        self._settings = Settings(token_file=token_file)
        self._note = note
        self._not_joined: list[int] = []
        self._cannot_ask = False

    async def check(self, ranks: Sequence[int], address: str) -> None:
        """Check ranks that ended successfully, and explain the first one that has not joined.

        Args:
            ranks: The ranks.
            address: The address of an aggregator.
        """
        if not ranks or self._cannot_ask:
            return
        try:
            status = await asyncio.to_thread(fetch_status, address, job=self._job, settings=self._settings)
        except ConnectError as error:
            self._cannot_ask = True
            self._note(f"cannot tell whether worker {_ranks(ranks)} joined the job: {error}")
            return
        joined = {rank for ended in status.ended for rank in ended.joined}
        joined.update(worker.rank for job in status.jobs for worker in job.workers)
        not_joined = [rank for rank in ranks if rank not in joined]
        if not_joined and not self._not_joined:
            self._note(
                f"worker rank {not_joined[0]} ended without having joined the job: nothing was summed for it, and other"
                " ranks would wait for it. A program joins when it creates the store or connects. On MXNet 1.9.1,"
                " mx.kv.create('byteps') silently returns a store without other workers unless the program imports"
                " MXNet by `from psum.mxnet import mx`"
            )
        self._not_joined += not_joined

    def close(self) -> None:
        """Report the other ranks that have not joined, in ascending order."""
        if len(self._not_joined) > 1:
            self._note(f"worker {_ranks(sorted(self._not_joined[1:]))} also ended without having joined the job")


def _ranks(ranks: Sequence[int]) -> str:
    """Return ranks as text, such as 'rank 1' or 'ranks 1, 2, 3'."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
