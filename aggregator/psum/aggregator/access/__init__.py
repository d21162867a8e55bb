"""Who may connect: TLS, tokens, limits on streams, and how refused peers are counted and logged.

It may import the settings, wire and runtime, but no other folder of the aggregator. Begin with admission.py.
"""
