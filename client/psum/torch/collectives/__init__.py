"""The collectives of a group, made of what psum has: sums, and broadcasts of bytes.

It may import client and torch. Begin with reductions.py.
"""
