"""`psum status`: what a fleet of aggregators does, for people and for programs.

It may import psum.client. Begin with command.py.
"""
