"""NDArrays: their properties, their memory, and copies and sums that MXNet's engine makes of them.

It imports only compat of psum.mxnet, and psum.client. Begin with inspection.py.
"""
