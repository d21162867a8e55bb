"""A misspelt variable is an error that suggests the right name. Variables of Kubernetes for services are accepted."""

import pytest

import psum.aggregator
import psum.client
from psum.runtime import VARIABLES, declarations, similar, unknown_variables
from psum.runtime.variables import is_service_link, without_service_links

#: The variables of a kubelet for a service of that name with a port called grpc, in an IPv4 and in an IPv6 cluster.
SERVICE = {
    "PSUM_AGGREGATOR_SERVICE_HOST": "10.96.0.7",
    "PSUM_AGGREGATOR_SERVICE_PORT": "50051",
    "PSUM_AGGREGATOR_SERVICE_PORT_GRPC": "50051",
    "PSUM_AGGREGATOR_PORT": "tcp://10.96.0.7:50051",
    "PSUM_AGGREGATOR_PORT_50051_TCP": "tcp://10.96.0.7:50051",
    "PSUM_AGGREGATOR_PORT_50051_TCP_PROTO": "tcp",
    "PSUM_AGGREGATOR_PORT_50051_TCP_PORT": "50051",
    "PSUM_AGGREGATOR_PORT_50051_TCP_ADDR": "10.96.0.7",
    "PSUM_SERVICE_HOST": "fd00::7",
    "PSUM_PORT": "tcp://[fd00::7]:50051",
    "PSUM_PORT_53_UDP": "udp://[fd00::7]:53",
    "PSUM_PORT_53_UDP_PROTO": "udp",
    "PSUM_DATA_PORT": "tcp://10.96.0.8:50052",
}


def test_the_list_has_the_names_that_both_sides_declare() -> None:
    """It has no other names. A new setting needs its name here."""
    declared = {
        variable
        for kind in (psum.client.Settings, psum.aggregator.Settings)
        for setting in declarations(kind).values()
        for variable in (*setting.variables, *setting.deprecated)
        if variable.startswith("PSUM_")
    }
    assert set(VARIABLES) == declared


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PSUM_NUM_WORKER", ["PSUM_NUM_WORKERS"]),
        ("PSUM_WORKERS", ["PSUM_NUM_WORKERS"]),
        ("PSUM_WORKERS_NUM", ["PSUM_NUM_WORKERS"]),
        ("PSUM_AGGREGATOR", ["PSUM_AGGREGATORS"]),
        ("PSUM_TREADS", ["PSUM_THREADS"]),
        ("PSUM_TOKEN", ["PSUM_TOKEN_FILE"]),
        ("PSUM_LOG", ["PSUM_LOG_FORMAT", "PSUM_LOG_LEVEL"]),
        ("PSUM_SIZE", []),
        ("PSUM_MY_DATA", []),
    ],
)
def test_what_is_meant_is_suggested(name: str, meant: list[str]) -> None:
    """Suggestions are similar names, longer names, and names with the same words. No suggestion is better than a wrong
    one."""
    assert similar(name, VARIABLES) == meant


def test_a_misspelt_variable_is_told_and_its_value_is_not_shown() -> None:
    """The value may be a secret. Empty variables count as not set."""
    environ = {"PSUM_TOKEN": "secret", "PSUM_MINE": "1", "PSUM_RANK": "0", "PSUM_GONE": "", "PSUMMER": "1"}
    mine, token = unknown_variables(environ)
    assert token.startswith("PSUM_TOKEN: psum has no setting of this name; did you mean PSUM_TOKEN_FILE? If it is")
    assert mine.startswith("PSUM_MINE: psum has no setting of this name; docs/settings.md lists all. If it is")
    assert "secret" not in token


def test_what_kubernetes_sets_for_a_service_is_no_mistake() -> None:
    """Such a variable also gives no value to a setting of the same name."""
    assert [name for name, value in SERVICE.items() if not is_service_link(name, value)] == []
    assert list(unknown_variables(SERVICE)) == []
    assert without_service_links(SERVICE | {"PSUM_RANK": "1"}) == {"PSUM_RANK": "1"}
    assert psum.aggregator.Settings.from_environment(SERVICE) == psum.aggregator.Settings()
    assert psum.client.Settings.from_environment(SERVICE) == psum.client.Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PSUM_METRIC_PORT", "9400"),
        ("PSUM_METRIC_PORT", "0.0.0.0:9400"),
        ("PSUM_DATA_PORT", "50052"),
        ("PSUM_AGGREGATOR_PORT_50051_TCP_NAME", "x"),
        ("PSUM_AGGREGATOR_SERVICE_HOST", "psum.example"),
        ("PSUM_AGGREGATOR_SERVICE_PORT", "http"),
        ("PSUM_AGGREGATOR_HOST", "10.96.0.7"),
        ("MY_PSUM_SERVICE_HOST", "10.96.0.7"),
    ],
)
def test_what_only_looks_like_a_service_is_not_left_aside(name: str, value: str) -> None:
    """Both name and value must have the form that Kubernetes uses."""
    assert not is_service_link(name, value)
