"""The aggregator's settings refuse what would harm."""

import pytest

from psum.aggregator import Settings
from psum.wire.errors import ConfigurationError


def test_several_addresses_can_be_listened_on() -> None:
    """listen is a list of host:port and unix:/path."""
    settings = Settings.from_environment({"PSUM_LISTEN": "127.0.0.1:1,unix:/run/psum.sock"})
    assert settings.listen == ("127.0.0.1:1", "unix:/run/psum.sock")


def test_an_address_that_others_can_reach_needs_a_word() -> None:
    """Serving beyond this machine in plain text takes --insecure."""
    with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0:1.*--insecure"):
        Settings.from_environment({}, listen="0.0.0.0:1")
    assert Settings.from_environment({}, listen="0.0.0.0:1", insecure=True).insecure
    assert Settings.from_environment({"PSUM_INSECURE": "1", "PSUM_LISTEN": "0.0.0.0:1"}).insecure


def test_flags_beat_the_environment() -> None:
    """What the command line says wins."""
    environ = {"PSUM_WORKER_TIMEOUT": "5s", "PSUM_ROUND_TIMEOUT": "7"}
    settings = Settings.from_environment(environ, worker_timeout="9")
    assert (settings.worker_timeout, settings.round_timeout) == (9, 7)
