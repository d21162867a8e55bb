"""A program of an elastic job: its step boundaries, and the state that a process gets that joins it.

It may import the client's other folders but observe. The client itself imports only `link`, which is what a boundary
needs of it. Begin with state.py, then boundary.py.
"""
