"""Processes that can be killed and stopped, connections that can be cut, and long runs of all that.

The tests of tests/chaos use it, and so do the scripts: `scripts/chaos` and `scripts/soak`.
"""
