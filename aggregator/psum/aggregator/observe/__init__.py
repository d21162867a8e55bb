"""What operators see: probes, metrics, the status page, logs, and how late the event loop is.

It may import all other folders; none but server.py imports it. Begin with http.py.
"""
