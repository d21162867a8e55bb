"""A client's timeline: whether there is one, and when and where to write it."""

import logging
import os
import pathlib
import threading
import time

from psum.client.core.recorder import Recorder
from psum.client.observe import process_name, trace
from psum.client.settings import Settings

_log = logging.getLogger(__name__)


class Timeline:
    """Records operations, and writes them to a file in PSUM_TRACE_DIR. If that fails, the training goes on without.

    Args:
        settings: The worker's settings, with trace_dir.

    Attributes:
        recorder: Records the session's operations. None if no file can be written, or it was written already.
    """

    def __init__(self, settings: Settings) -> None:
        self.recorder: Recorder | None = Recorder(settings.trace_start_step, settings.trace_end_step)
        self._settings = settings
        self._path = pathlib.Path(settings.trace_dir) / trace.file_name(settings.rank)
        self._writing = threading.Lock()
        if (reason := _unusable(self._path.parent)) is not None:
            # Now rather than after the last step.
            _log.warning("no timeline in %s (PSUM_TRACE_DIR): %s", settings.trace_dir, reason)
            self.recorder = None

    def write(self) -> None:
        """Ends the recording and writes the file. Only the first call does something. From any thread."""
        with self._writing:
            recorder, self.recorder = self.recorder, None
            if recorder is None:
                return
            if not recorder.operations:
                _log.warning(
                    "no timeline: the training had no step from %d to %d (PSUM_TRACE_START_STEP, PSUM_TRACE_END_STEP)",
                    self._settings.trace_start_step,
                    self._settings.trace_end_step,
                )
                return
            about = {
                "job": self._settings.job,
                "num_workers": self._settings.num_workers,
                "worker": process_name.name(),
            }
            wall_offset = time.time() - time.monotonic()
            try:
                trace.write(self._path, recorder, rank=self._settings.rank, wall_offset=wall_offset, about=about)
            except OSError as error:
                _log.warning("no timeline in %s (PSUM_TRACE_DIR): %s", self._path, error.strerror or error)
                return
            if recorder.full:
                _log.warning("the timeline ends with step %d: more is not kept in memory", recorder.last)
            _log.info("the timeline from step %d on is in %s", recorder.first, self._path)


def _unusable(directory: pathlib.Path) -> str | None:
    """Makes a directory. Returns why it cannot take files, or None if it can."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None if os.access(directory, os.W_OK | os.X_OK) else "this process may not write to it"
