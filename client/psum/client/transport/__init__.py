"""Moves bytes: the connection to each aggregator, the planes that it opens, and why it cannot be made.

It may import core. Begin with connection.py.
"""
