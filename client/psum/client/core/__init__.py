"""Decides: placement of shards, their schedule, operations on keys, and a worker's side of the job, without I/O.

It may import wire and planes, never asyncio, grpc or another folder of the client. Begin with session.py.
"""
