"""Moves bytes: the gRPC service, the connection to each worker, and the execution of a job's actions.

It may import core, sums and access. Begin with service.py, then receiver.py (in) and action_runner.py (out), which has
sums made (summation.py) and sent (delivery.py).
"""
