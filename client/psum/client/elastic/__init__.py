"""A program of an elastic job: its step boundaries, and the state that a process gets that joins it.

`link` connects it with the client. The other modules are above the client.
"""
