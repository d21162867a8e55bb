"""Moves bytes: opens streams to aggregators, sends and receives on them, and finds out why one cannot be opened.

It may import core. Begin with connection.py.
"""
