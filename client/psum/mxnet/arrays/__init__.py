"""NDArrays: what they are, where their memory is, and copies and sums that MXNet's engine makes of them.

It imports no other folder of psum.mxnet. Begin with inspection.py.
"""
