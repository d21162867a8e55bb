"""An aggregator of several processes: a supervisor starts them, watches them, and answers operators for all of them.

It may import everything of the aggregator. The supervisor never starts gRPC, which does not survive a fork: it starts
fresh interpreters, and process.py runs in each. Begin with supervisor.py.
"""
