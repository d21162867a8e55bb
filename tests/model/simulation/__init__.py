"""Workers and aggregators in one thread, without network or clock, and random histories of what may happen to them.

Real sessions and real registries, jobs, deliveries and outboxes are joined by queues; what moves next, what breaks and
what the time is, is decided by random numbers from a seed. A trivial model says what each round's sum has to be.
"""

from simulation._history import Failure, History, run, shrink
from simulation._plan import Plan
from simulation._tally import Tally

__all__ = ["Failure", "History", "Plan", "Tally", "run", "shrink"]
