"""The alert rules and the dashboard query existing metrics, and each alert fires only when it should."""

import json
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from psum.aggregator.observe.metrics import METRICS, collect
from psum.aggregator.server import Server
from psum.aggregator.settings import Settings
from tests.deploy.manifests import ROOT, rendered

MONITORING = ROOT / "deploy/monitoring"

#: How long promtool may take.
PATIENCE_SECONDS = 40.0

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="Prometheus is not installed (Debian: apt-get install prometheus)"
)

#: Labels that Prometheus adds to all series that it scrapes in Kubernetes.
SCRAPED = {"job", "instance", "namespace", "pod"}

#: The series of kube-state-metrics about StatefulSets and DaemonSets, with their labels, as its documentation has them.
OF_KUBERNETES = {
    "kube_statefulset_replicas": {"namespace", "statefulset"},
    "kube_statefulset_status_replicas_ready": {"namespace", "statefulset"},
    "kube_daemonset_status_desired_number_scheduled": {"namespace", "daemonset"},
    "kube_daemonset_status_number_ready": {"namespace", "daemonset"},
}


def promtool(*arguments: str, cwd: pathlib.Path = MONITORING) -> "subprocess.CompletedProcess[str]":
    """Runs promtool."""
    command = ["promtool", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def rules() -> list[dict[str, Any]]:
    """All alert rules."""
    return [
        rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
    ]


def panels() -> list[dict[str, Any]]:
    """All panels of the dashboard except the headings of rows."""
    return [p for p in json.loads((MONITORING / "dashboard.json").read_text())["panels"] if p["type"] != "row"]


def queries() -> Iterator[str]:
    """Yields the queries of the dashboard, with its variables filled in as Grafana does."""
    for panel in panels():
        for target in panel["targets"]:
            yield re.sub(r"\$\w+", lambda v: "5m" if v[0] == "$__rate_interval" else ".*", target["expr"])


@pytest.fixture
async def exported() -> dict[str, set[str]]:
    """The series that the queries may use, by name, with the labels of each."""
    server = Server(Settings(listen=("127.0.0.1:0",)))
    await server.start()
    families = list(collect(server._service, server._loop_monitor, 0.0))
    await server.stop(0)
    found: dict[str, tuple[str, set[str]]] = {metric.name: (metric.kind, set(metric.labels)) for metric in METRICS}
    found |= {
        f.name + ("_total" if f.type == "counter" else ""): (f.type, set()) for f in families if "process" in f.name
    }
    series = {"up": SCRAPED, **OF_KUBERNETES}
    for name, (kind, labels) in found.items():
        for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            series[name + suffix] = labels | SCRAPED | ({"le"} if suffix == "_bucket" else set())
    return series


def series_in(query: str) -> Iterator[tuple[str, set[str]]]:
    """Yields the series in a query, with the labels that it matches."""
    for name, matchers in re.findall(r"\b(up|psum_\w+|process_\w+|kube_\w+)(?:\{(.*?)\})?", query):
        yield name, set(re.findall(r"(\w+)\s*[=!]~?", matchers))


@pytest.mark.parametrize("where", ["alerts", "dashboard"])
def test_every_metric_that_is_asked_for_is_exported(exported: dict[str, set[str]], where: str) -> None:
    """The series have the names in the queries, and the labels that these match."""
    asked = [rule["expr"] for rule in rules()] if where == "alerts" else list(queries())
    found = [pair for query in asked for pair in series_in(query)]
    assert len(found) >= len(asked) > 5
    for name, labels in found:
        assert name in exported
        assert labels <= exported[name], name


@pytest.mark.parametrize("where", ["alerts", "dashboard"])
def test_series_are_put_together_by_labels_that_they_have(exported: dict[str, set[str]], where: str) -> None:
    """Queries sum by and join on labels that their series have."""
    asked = [rule["expr"] for rule in rules()] if where == "alerts" else list(queries())
    for query in asked:
        known = {label for name, _ in series_in(query) for label in exported[name]}
        for labels in re.findall(r"\b(?:by|on)\s*\((.*?)\)", query):
            assert set(re.split(r",\s*", labels)) <= known, query


def test_the_dashboard_shows_every_metric() -> None:
    """Nobody would look at a metric that is not shown."""
    shown = {re.sub("_(bucket|sum|count)$", "", name) for query in queries() for name, _ in series_in(query)}
    assert {metric.name for metric in METRICS} - shown == {
        "psum_sent_bytes_total",
        "psum_held_bytes",
        "psum_contributions_total",
    }


def test_the_panels_do_not_overlap() -> None:
    """All panels lie within the page's 24 columns too."""
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@needs_promtool
def test_promtool_understands_every_query(tmp_path: pathlib.Path) -> None:
    """promtool checks the dashboard's queries as recording rules."""
    recorded = [{"record": f"panel:query:{i}", "expr": query} for i, query in enumerate(queries())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    done = promtool("check", "rules", "rules.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_each_alert_fires_and_stays_silent() -> None:
    """alerts-test.yaml has both cases for each alert, and promtool passes it."""
    done = promtool("test", "rules", "alerts-test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    tests = yaml.safe_load((MONITORING / "alerts-test.yaml").read_text())["tests"]
    looked = [(look["alertname"], bool(look.get("exp_alerts"))) for test in tests for look in test["alert_rule_test"]]
    assert set(looked) == {(rule["alert"], fires) for rule in rules() for fires in (True, False)}


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    """promtool accepts the rules."""
    done = promtool("check", "rules", "alerts.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_explained() -> None:
    """Each alert has a summary, a description, and a link to its section of the operator's guide."""
    guide = (ROOT / "docs/operating.md").read_text()
    headings = {heading.lower() for heading in re.findall(r"^#+ (\S+)$", guide, re.MULTILINE)}
    # Alertmanager and Grafana turn only full addresses into links.
    url = re.compile(r"https://psum\.example/(docs/operating\.md)#(\w+)")
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        match = url.fullmatch(rule["annotations"]["runbook_url"])
        assert match is not None, rule["alert"]
        assert match[2] == rule["alert"].lower()
        assert match[2] in headings


def test_kubernetes_has_the_same_rules_and_the_same_dashboard() -> None:
    """The overlay gives Prometheus and Grafana the files that the tests above check."""
    resources = rendered("production")
    (rule,) = (r for r in resources if r["kind"] == "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    (dashboard,) = (r for r in resources if r["kind"] == "ConfigMap")
    assert dashboard["data"]["psum.json"] == (MONITORING / "dashboard.json").read_text()
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
