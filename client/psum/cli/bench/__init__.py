"""`psum bench`: measure psum and its rivals, and write docs/benchmarks.md.

It may import launch. Begin with runs.py. measure.py has the loop that times every system.
"""
