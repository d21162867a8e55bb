"""What an aggregator that nobody uses as a relay does without."""

import subprocess
import sys


def test_an_aggregator_does_not_load_the_client_before_it_is_a_relay() -> None:
    """Its start takes no longer, and it takes no more memory, than without relays."""
    program = "import sys, psum.aggregator.server; print([m for m in sys.modules if m.startswith('psum.client')])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
