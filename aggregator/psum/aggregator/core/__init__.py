"""Decides: the rounds of a shard, keys, workers and jobs, as synchronous state machines without I/O.

It may import wire and planes, never asyncio, grpc or another folder of the aggregator. Begin with round.py, then
job.py: events go in, the actions of actions.py come out.
"""
