"""`psum status`: show what a fleet of aggregators does, for people or for programs.

It may import psum.client. Begin with command.py.
"""
