"""Host memory that stands in for arrays on devices: shared with aggregators, pinned for GPUs, lent again and again.

It may import arrays and engine. Begin with stages.py.
"""
