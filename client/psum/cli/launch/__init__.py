"""`psum launch`: run a whole job on this machine, show its output, and leave no process running.

It may import psum.client. Begin with local_job.py.
"""
