"""The log of what fails: each failed job, and the first failed keys of each job."""

import logging
from collections import Counter
from typing import Final
from weakref import WeakKeyDictionary

from psum.aggregator.core.job import Job
from psum.wire.errors import FaultError

_log = logging.getLogger(__name__)

#: How many failed keys of a job are logged as warnings for each kind of failure.
_FAULTS_LOGGED: Final = 3


class FaultLog:
    """Logs the faults of jobs. A failure of one key mostly fails all keys, and a network has hundreds."""

    def __init__(self) -> None:
        self._counts: WeakKeyDictionary[Job, Counter[int]] = WeakKeyDictionary()
        """How many keys of each job failed, by code."""

    def note(self, job: Job, fault: FaultError) -> None:
        """Logs a fault as an error if the job has failed, else as a warning, or at level debug after the first few."""
        about = {"job": job.name}
        # Most faults name the job.
        text = str(fault) if repr(job.name) in str(fault) else f"job {job.name}: {fault}"
        if fault.key is None:
            _log.error("%s", text, extra=about)
            return
        counts = self._counts.setdefault(job, Counter())
        counts[fault.code] += 1
        if counts[fault.code] == _FAULTS_LOGGED:
            text += " (other keys that fail likewise are logged at level debug)"
        _log.log(logging.WARNING if counts[fault.code] <= _FAULTS_LOGGED else logging.DEBUG, "%s", text, extra=about)
