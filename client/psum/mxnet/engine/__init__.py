"""MXNet's engine: operations that Python completes later, waits that signals can interrupt, forks and the end.

It imports no other folder of psum.mxnet. Begin with operations.py.
"""
