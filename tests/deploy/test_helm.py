"""The Helm chart makes the same resources as the overlays."""

import pathlib
import shutil
import subprocess
import sys
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.checks import mistakes
from tests.deploy.manifests import RENDERED, ROOT, VERSION, Resource, pods, rendered
from tests.deploy.validation import VERSIONS, standard

CHART = ROOT / "deploy/helm/psum"

#: How long Helm may take.
PATIENCE_SECONDS = 40.0

_HELM = shutil.which("helm", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("helm")

pytestmark = pytest.mark.skipif(_HELM is None, reason="Helm is not installed: scripts/helm")

#: The values with which the chart makes the same resources as an overlay.
SAME: dict[str, list[str]] = {
    "production": [],
    "own-certificates": ["--set", "tls.certManager=false,monitoring.enabled=false"],
    "single-node": ["--values", "values-single-node.yaml"],
    "production, large": ["--values", "values-large-fleet.yaml"],
    "production, stable addresses": ["--set", "stableAddresses=true"],
    "production, processes": [
        "--set",
        "stableAddresses=true,processes=4,threads=8",
        "--set-string",
        "resources.requests.cpu=8",
    ],
    "production, pull secret and priority": [
        "--set",
        "imagePullSecrets[0].name=psum-registry,priorityClassName=psum-aggregator",
    ],
    "relays": ["--values", "values-relays.yaml"],
    "own-certificates, relays": [
        "--set",
        "tls.certManager=false,monitoring.enabled=false,relays.enabled=true,priorityClassName=psum-aggregator",
    ],
}


#: What the chart does not make: an ingress belongs to the cluster, and some workers have aggregators or relays of their
#: own.
LEFT_OUT = {"production, behind an ingress", "relays, processes", "workers/jobset", "workers/pod-relay"}


def helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs Helm in the chart's folder."""
    assert _HELM is not None
    return subprocess.run([_HELM, *arguments], cwd=CHART, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def template(*arguments: str, namespace: str = "psum") -> list[Resource]:
    """Returns the resources that the chart makes with some values."""
    done = helm("template", "psum", ".", "--namespace", namespace, *arguments)
    assert done.returncode == 0, done.stderr
    return [resource for resource in yaml.safe_load_all(done.stdout) if resource]


def ordered(value: Any) -> Any:
    """Returns the same value, with lists of named things sorted by name, because their order has no meaning."""
    if isinstance(value, dict):
        return {key: ordered(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [ordered(item) for item in value]
        return sorted(items, key=lambda i: str(i["name"])) if all("name" in i for i in items) else items
    return value


def by_name(resources: Any) -> dict[tuple[str, str], Any]:
    """Returns resources by kind and name."""
    found = {(r["kind"], r["metadata"]["name"]): ordered(r) for r in resources}
    assert len(found) == len(list(resources))
    return found


@pytest.mark.parametrize("name", SAME)
def test_the_chart_makes_what_kustomize_makes(name: str) -> None:
    """All fields are equal. Priority classes belong to the cluster, so the chart leaves them out."""
    expected = by_name([r for r in rendered(name) if r["kind"] != "PriorityClass"])
    made = by_name(template(*SAME[name]))
    assert made.keys() == expected.keys()
    for key, resource in expected.items():
        assert made[key] == resource, key


def test_the_chart_makes_every_fleet() -> None:
    """The chart makes every fleet except those in LEFT_OUT."""
    fleets = {name for name in RENDERED if any(pod.is_aggregator for pod in pods(rendered(name)))}
    assert fleets == SAME.keys() | LEFT_OUT


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_chart_makes_with_other_values_is_valid(version: str) -> None:
    """Validation is strict, and the resources fit together. A namespace and a name that are set hold everywhere."""
    resources = template(
        "--set",
        "name=sums,tls.certManager=false,monitoring.labels.release=prometheus,stableAddresses=true,grace=60s,"
        "relays.enabled=true,priorityClassName=sums,monitoring.runbooks=https://wiki.example/psum/",
        "--set-string",
        "settings.PSUM_MAX_STREAMS=100",
        namespace="ml",
    )
    assert mistakes(resources) == []
    for resource in resources:
        assert resource["metadata"]["namespace"] == "ml"
        assert "psum-aggregator" not in str(resource["metadata"])
        for part in standard(resource):
            kubernetes_validate.validate(part, version, strict=True)
    assert not any(resource["kind"] in ("Certificate", "Issuer") for resource in resources)
    (rule,) = (r for r in resources if r["kind"] == "PrometheusRule")
    assert rule["metadata"]["labels"] == {"release": "prometheus"}
    links = {alert["annotations"]["runbook_url"] for group in rule["spec"]["groups"] for alert in group["rules"]}
    assert all(link.startswith("https://wiki.example/psum/docs/operating.md#") for link in links)
    assert "{{ $labels.pod }}" in str(rule)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ("replica=3", "replica"),
        ("replicas=0", "replicas"),
        ("settings.PSUM_THREADS=2", "settings"),
        ("grace=1m", "grace"),
        ("tls.enabled=false,token.enabled=false", "who may connect?"),
        ("relays.enabled=true", "relays need a priority"),
        ("relays.replicas=3", "replicas"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(values: str, complaint: str) -> None:
    """Helm refuses them before it installs anything, and misspelt values too."""
    done = helm("template", "psum", ".", "--set", values)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_helm_finds_nothing_to_object_to() -> None:
    """Helm's linter accepts the chart with each file of values."""
    for arguments in ([], *(["--values", file.name] for file in CHART.glob("values-*.yaml"))):
        done = helm("lint", "--strict", ".", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_notes_tell_what_workers_need() -> None:
    """The notes have the list of aggregators as a range, with the names of their services, and the relays' address."""
    for values, expected in (
        ("replicas=3", "psum-aggregator-{0..2}.psum-aggregator.psum.svc:50051"),
        ("replicas=4,stableAddresses=true", "psum-aggregator-{0..3}.psum.svc:50051"),
    ):
        done = helm("install", "psum", ".", "--namespace", "psum", "--dry-run=client", "--set", values)
        assert f"PSUM_AGGREGATORS={expected}" in done.stdout, done.stderr
        assert "PSUM_RELAY=" not in done.stdout
    done = helm("install", "psum", ".", "--namespace", "psum", "--dry-run=client", "--values", "values-relays.yaml")
    assert "PSUM_RELAY=psum-aggregator-relay.psum.svc:50051" in done.stdout, done.stderr


def test_the_charts_version_is_the_projects() -> None:
    """The version of the image that it names is the project's too."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
