"""DECIDES what a relay does: the job of its group, and what is sent to the owners of shards. Events in, actions out.

Begin with host_job.py, then uplink.py.
"""
