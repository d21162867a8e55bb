"""Who may come in: TLS, tokens, limits on streams, and how those who are turned away are counted and logged.

It imports no other folder of the aggregator. Begin with admission.py.
"""
