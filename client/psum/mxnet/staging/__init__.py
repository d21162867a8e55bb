"""Stages: arrays in host memory that stand in for arrays on devices. Aggregators share them, GPUs have them pinned.

It may import arrays and engine. Begin with stages.py.
"""
