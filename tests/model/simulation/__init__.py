"""Workers and aggregators in one thread, without network or clock, and random histories of what may happen to them.

Real sessions and real registries, jobs, deliveries and outboxes are joined by queues; what moves next, what breaks and
what the time is, is decided by random numbers from a seed. A trivial model says what each round's sum has to be.
"""

from simulation.counters import Counters
from simulation.history import Failure, History, run, shrink
from simulation.plan import Plan

__all__ = ["Counters", "Failure", "History", "Plan", "run", "shrink"]
