"""Relays: an aggregator that sums what a group of ranks contributes, and forwards the sum as one member's contribution.

A relay is a worker of the aggregators that it forwards to, so this folder may import the client's core and transport.
It is loaded only when the first worker asks for a relay. Begin with core/host_job.py, then uplinks.py.
"""
