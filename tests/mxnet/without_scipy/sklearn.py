"""See scipy.py."""

raise ImportError("not for tests of psum.mxnet")
