"""Decides: rounds, keys, workers and jobs as synchronous state machines without I/O.

It may import wire and runtime, never asyncio, grpc or another folder of the aggregator. Begin with round.py, then
job.py: events go in, and the actions of actions.py come out.
"""
