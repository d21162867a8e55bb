"""Decides without I/O: where shards go, when they are sent, and what each answer of an aggregator completes.

It may import wire, runtime and planes, never asyncio, grpc or another folder of the client. Begin with session.py.
"""
