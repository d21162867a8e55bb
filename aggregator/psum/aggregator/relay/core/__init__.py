"""Decides what a relay does: the job of its group, and what is sent to the owners of shards. Events in, actions out.

It may import the cores of both sides, planes, wire and runtime, never asyncio, grpc or sockets. Begin with host_job.py,
then uplink.py.
"""
