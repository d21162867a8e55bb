"""Adds up: sums in rank order, the threads that make them, and the memory and messages that results lie in.

It may import core. Begin with sums.py.
"""
