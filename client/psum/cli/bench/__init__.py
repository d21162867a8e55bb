"""`psum bench`: measures psum beside the systems that its users would take instead, and writes docs/benchmarks.md.

It may import launch. Begin with runs.py; measure.py is the one loop that times every system.
"""
