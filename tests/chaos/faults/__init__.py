"""The chaos test bench: processes to kill or stop, connections to cut, and long runs that inject faults at random.

Used by the tests in tests/chaos and by `scripts/chaos` and `scripts/soak`.
"""
