"""The aggregator's settings refuse harmful values."""

import re

import pytest

from psum.aggregator import Settings
from psum.wire.errors import ConfigurationError


def test_several_addresses_can_be_listened_on() -> None:
    """listen is a list of host:port and unix:/path."""
    settings = Settings.from_environment({"PSUM_LISTEN": "127.0.0.1:1,unix:/run/psum.sock"})
    assert settings.listen == ("127.0.0.1:1", "unix:/run/psum.sock")


def test_an_address_that_others_can_reach_needs_a_word() -> None:
    """Serving other machines in plain text needs --insecure."""
    with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0:1.*--insecure"):
        Settings.from_environment({}, listen="0.0.0.0:1")
    assert Settings.from_environment({}, listen="0.0.0.0:1", insecure=True).insecure
    assert Settings.from_environment({"PSUM_AGGREGATOR_INSECURE": "1", "PSUM_LISTEN": "0.0.0.0:1"}).insecure


def test_flags_beat_the_environment() -> None:
    """Flags take precedence."""
    environ = {"PSUM_WORKER_TIMEOUT": "5s", "PSUM_ROUND_TIMEOUT": "7"}
    settings = Settings.from_environment(environ, worker_timeout="9")
    assert (settings.worker_timeout, settings.round_timeout) == (9, 7)


def test_elastic_jobs_have_time_outs_of_their_own() -> None:
    """A closed connection must not be given more time than a silent one."""
    settings = Settings.from_environment({"PSUM_ELASTIC_TIMEOUT": "8", "PSUM_ELASTIC_CLOSED_TIMEOUT": "2"})
    assert (settings.elastic_timeout, settings.elastic_closed_timeout) == (8, 2)
    assert (Settings().elastic_timeout, Settings().elastic_closed_timeout) == (5, 1)
    with pytest.raises(ConfigurationError, match="PSUM_ELASTIC_CLOSED_TIMEOUT"):
        Settings.from_environment({"PSUM_ELASTIC_TIMEOUT": "2", "PSUM_ELASTIC_CLOSED_TIMEOUT": "3"})


OLD = {"PSUM_TLS_CERT": "c.pem", "PSUM_TLS_KEY": "k.pem", "PSUM_TLS_CA": "ca.pem"}
RENAMED = {
    "PSUM_TLS_CERT": "PSUM_AGGREGATOR_TLS_CERT",
    "PSUM_TLS_KEY": "PSUM_AGGREGATOR_TLS_KEY",
    "PSUM_TLS_CA": "PSUM_AGGREGATOR_TLS_CLIENT_CA",
    "PSUM_TOKEN_FILE": "PSUM_AGGREGATOR_TOKEN_FILE",
    "PSUM_INSECURE": "PSUM_AGGREGATOR_INSECURE",
}
OWN = {"PSUM_AGGREGATOR_TLS_CERT": "own.pem", "PSUM_AGGREGATOR_TLS_KEY": "own-key.pem"}
FLAGS = {"tls_cert": "flag.pem", "tls_key": "flag-key.pem"}


@pytest.mark.parametrize(
    ("environ", "given", "files"),
    [
        pytest.param({"PSUM_TLS_CA": "ca.pem"}, {}, ("", "", ""), id="a worker's authority alone"),
        pytest.param({"PSUM_TLS_CA": "ca.pem"}, FLAGS, ("flag.pem", "flag-key.pem", ""), id="beside flags"),
        pytest.param({"PSUM_TLS_CA": "ca.pem", **OWN}, {}, ("own.pem", "own-key.pem", ""), id="beside own names"),
        pytest.param(OLD | OWN, {}, ("own.pem", "own-key.pem", ""), id="a worker's files beside own names"),
        pytest.param(OLD, FLAGS, ("flag.pem", "flag-key.pem", ""), id="a worker's files beside flags"),
        pytest.param(OLD, {}, ("c.pem", "k.pem", "ca.pem"), id="old names alone"),
        pytest.param(OLD, {"tls_client_ca": "x.pem"}, ("c.pem", "k.pem", "x.pem"), id="old names and a flag"),
        pytest.param(
            OWN | {"PSUM_AGGREGATOR_TLS_CLIENT_CA": "own-ca.pem", "PSUM_TLS_CA": "ca.pem"},
            {},
            ("own.pem", "own-key.pem", "own-ca.pem"),
            id="own names",
        ),
    ],
)
def test_files_that_are_exported_for_workers_do_not_become_the_aggregators(
    environ: dict[str, str], given: dict[str, str], files: tuple[str, str, str]
) -> None:
    """An aggregator that has its certificate under its own names, or by flags, takes none of a worker's files. Where it
    has none, a whole set under the old names still counts.
    """
    settings = Settings.from_environment(environ, **given)
    assert (settings.tls_cert, settings.tls_key, settings.tls_client_ca) == files


def test_an_authority_that_does_not_count_any_more_is_warned_of() -> None:
    """Beside flags it made workers bring certificates. An address that others reach does not become open by that."""
    settings = Settings.from_environment({"PSUM_TLS_CA": "ca.pem"}, **FLAGS)
    [warning] = settings.warnings()
    assert warning.startswith("PSUM_TLS_CA=ca.pem is a worker's setting and does not count here: workers are not asked")
    assert "--tls-client-ca or PSUM_AGGREGATOR_TLS_CLIENT_CA" in warning
    with pytest.raises(ConfigurationError, match=r"anybody there could join a job.*--tls-client-ca") as caught:
        Settings.from_environment({"PSUM_TLS_CA": "ca.pem"}, listen="10.0.0.5:1", **FLAGS)
    assert warning in caught.value.mistakes
    # Nor beside the new names, for example from new manifests.
    assert list(Settings.from_environment({"PSUM_TLS_CA": "ca.pem", **OWN}).warnings()) == [warning]


@pytest.mark.parametrize(
    ("old", "effect"),
    [
        ("PSUM_TLS_CERT", "it shows this certificate to workers"),
        ("PSUM_TLS_KEY", "it uses this key"),
        ("PSUM_TLS_CA", "workers must bring a certificate from this authority"),
        ("PSUM_TOKEN_FILE", "workers must bring a token from this file"),
        ("PSUM_INSECURE", "anybody who reaches its addresses can read and change sums"),
    ],
)
def test_an_old_name_that_counts_is_warned_of(old: str, effect: str) -> None:
    """The warning names the effect, the new name, and what to do if it is for workers. The new name gives none."""
    environ = OLD if old in OLD else {old: "1", "PSUM_LISTEN": "0.0.0.0:1", "PSUM_AGGREGATOR_INSECURE": "1"}
    if old == "PSUM_INSECURE":
        del environ["PSUM_AGGREGATOR_INSECURE"]
    found = [text for text in Settings.from_environment(environ).warnings() if text.startswith(f"{old} ")]
    assert len(found) == 1
    assert f"as before: {effect}. If that is meant, call it {RENAMED[old]}; otherwise unset {old}" in found[0]
    renamed = {RENAMED.get(name, name): value for name, value in environ.items()}
    assert not any(text.startswith(f"{old} ") for text in Settings.from_environment(renamed).warnings())


def test_a_word_for_workers_is_no_news_where_it_opens_nothing() -> None:
    """PSUM_INSECURE changes nothing for an aggregator that only this machine reaches."""
    assert list(Settings.from_environment({"PSUM_INSECURE": "1"}).warnings()) == []


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"PSUM_LISTEN": "unix:/x", **OWN}, "tls_cert has no effect: TLS is not spoken on unix sockets"),
        ({"PSUM_MEMORY_BUDGET": "8"}, r"a memory budget of 8 bytes .* is a unit missing, as in 8GiB\?"),
        ({"PSUM_ROUND_TIMEOUT": "20"}, "a round fails after 20 s .* before a vanished worker is given up after 30 s"),
        ({"PSUM_WARN_AFTER": "700"}, r"reported after 700 s \(PSUM_WARN_AFTER\), but fails after 600 s"),
        ({"PSUM_KEEPALIVE": "400"}, r"given up after twice 400 s \(PSUM_KEEPALIVE\), but a round fails after 600 s"),
    ],
)
def test_what_can_hardly_be_meant_is_warned_of(environ: dict[str, str], text: str) -> None:
    """The values are valid, but do not do what they seem to."""
    [warning] = Settings.from_environment(environ).warnings()
    assert re.search(text, warning)


def test_the_defaults_are_meant() -> None:
    """Neither the defaults nor an inherited worker's environment give warnings."""
    assert list(Settings().warnings()) == []
    worker = {"PSUM_AGGREGATORS": "a:1", "PSUM_RANK": "0", "PSUM_NUM_WORKERS": "2", "PSUM_TLS_CA": "ca.pem"}
    assert list(Settings.from_environment(worker).warnings()) == []


def test_a_misspelt_variable_is_refused() -> None:
    """The error lists all other mistakes too, and the names that may be meant."""
    with pytest.raises(ConfigurationError, match=r"PSUM_TREADS: .* did you mean PSUM_THREADS") as caught:
        Settings.from_environment({"PSUM_TREADS": "2", "PSUM_GRACE": "long"})
    assert len(caught.value.mistakes) == 2


@pytest.mark.parametrize(
    ("given", "clash"),
    [
        ({"data_port": "50051"}, "listen and data_port: both are port 50051 on 127.0.0.1"),
        ({"http": "50051"}, "listen and http: both are port 50051 on 127.0.0.1"),
        ({"data_port": "50052", "http": "50052"}, "data_port and http: both are port 50052 on 127.0.0.1"),
        ({"http": "0.0.0.0:50051"}, "listen and http: both are port 50051"),
        ({"processes": "3", "data_port": "50055"}, "data_port and listen of process 2: both are port 50055"),
        ({"processes": "3", "http": "50053"}, "http and listen of process 1: both are port 50053"),
    ],
)
def test_two_settings_do_not_share_a_port(given: dict[str, str], clash: str) -> None:
    """Otherwise listening would fail, and another process would be suspected."""
    with pytest.raises(ConfigurationError, match=clash):
        Settings.from_environment({}, **given)


def test_free_ports_and_other_hosts_are_no_clash() -> None:
    """Port 0 stands for another free port each time."""
    Settings.from_environment({}, listen="127.0.0.1:0,127.0.0.2:0", http="0")
    Settings.from_environment({}, listen="127.0.0.1:5", http="127.0.0.2:5")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"processes": "0"}, "processes='0': expected a whole number from 1 to 64, or auto"),
        ({"processes": "many"}, "processes='many': expected a whole number from 1 to 64, or auto"),
        ({"processes": "4", "listen": "127.0.0.1:65530"}, "process 3 would have port 65536, and ports go up to 65535"),
        ({"processes": "4", "data_port": "65533"}, "process 2 would have port 65537"),
        ({"processes": "2", "listen": f"unix:/{'a' * 105}"}, "has 108 bytes; expected at most 107"),
    ],
)
def test_processes_that_cannot_be_are_mistakes(given: dict[str, str], complaint: str) -> None:
    """The number of processes, and the addresses that follow from it."""
    with pytest.raises(ConfigurationError, match=complaint):
        Settings.from_environment({}, **given)


def test_auto_is_a_number_that_suits_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process for four usable processors, of which at least one and at most eight."""
    for usable, processes in ((1, 1), (2, 1), (7, 1), (8, 2), (16, 4), (64, 8)):
        monkeypatch.setattr("psum.aggregator.declared_settings.processors", lambda usable=usable: usable)
        assert Settings.from_environment({"PSUM_PROCESSES": "auto"}).processes == processes
    assert Settings.from_environment({}).processes == 1
