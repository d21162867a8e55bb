"""Model-based tests: random histories of faults on workers, relays and aggregators, without network, clock or threads.

Real sessions, registries, jobs, uplinks, action runners and send queues are connected by plain queues. Random numbers
from a seed decide what moves next, what fails and what time it is. An oracle, a reference model, computes each round's
sum. Begin to read at history.py; fleet.py holds the state, steps.py and endings.py say what can happen.
"""

from simulation.counters import Counters
from simulation.history import Failure, History, run, shrink
from simulation.plan import Plan

__all__ = ["Counters", "Failure", "History", "Plan", "run", "shrink"]
