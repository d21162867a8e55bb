"""What users and operators see of a worker: its metrics, timeline, log and fault file.

It may import core and the client's settings. Begin with telemetry.py, which starts the rest.
"""
