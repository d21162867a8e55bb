"""What operators see: probes, metrics, the status page, logs, and monitors of the event loop and the throughput.

It may import the service, the settings, planes, wire and runtime; only server.py imports it. Begin with http.py.
"""
