"""`psum timeline`: where the time of each step goes, from the timelines of a job's ranks.

It may import psum.client.observe. Begin with traces.py.
"""
