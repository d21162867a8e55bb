"""Adds up: sums in rank order, the threads that make them, and the messages in which results are sent.

It may import planes. Begin with sums.py.
"""
