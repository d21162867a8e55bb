"""MXNet's engine: operations that Python completes later, waits that signals can interrupt, forks and the end.

It imports only compat of psum.mxnet, and psum.client. Begin with operations.py.
"""
