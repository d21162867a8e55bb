"""Hides SciPy from processes of tests, and sklearn.py hides scikit-learn.

MXNet 1.9.1 imports both where they are installed, which takes a quarter of the time of its import. psum.mxnet needs
neither, and MXNet works without them.
"""

raise ImportError("not for tests of psum.mxnet")
