"""What users and operators see: a worker's metrics, timeline, log and fault file, and the state of aggregators.

It may import core and transport. Begin with timeline.py or exporter.py.
"""
