"""`psum launch`: a whole job on this machine, its processes shown, supervised and always ended.

It may import psum.client. Begin with local_job.py.
"""
