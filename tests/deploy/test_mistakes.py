"""The checks of the manifests find mistakes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.deploy.checks import mistakes, quantity
from tests.deploy.manifests import (
    of_kind,
    rendered,
)


def container(resources: Any) -> Any:
    """The aggregator's container."""
    return template(resources)["containers"][0]


def set_variable(name: str, value: str) -> Any:
    """Returns a change that gives a variable of the aggregator another value."""

    def change(resources: Any) -> None:
        env = container(resources)["env"]
        env[:] = [entry for entry in env if entry["name"] != name] + [{"name": name, "value": value}]

    return change


def template(resources: Any) -> Any:
    """The specification of the aggregators' pods."""
    return of_kind("StatefulSet", resources)["spec"]["template"]["spec"]


#: Possible mistakes in the production overlay, by a part of the message about each.
MISTAKES = {
    "no pod has the labels": lambda r: of_kind("Service", r)["spec"]["selector"].update(other="x"),
    "PodDisruptionBudget/psum-aggregator: no pod": lambda r: of_kind("PodDisruptionBudget", r)["spec"]["selector"][
        "matchLabels"
    ].update(other="x"),
    "NetworkPolicy/psum-aggregator: no pod": lambda r: of_kind("NetworkPolicy", r)["spec"]["podSelector"][
        "matchLabels"
    ].update(other="x"),
    "no service has a port": lambda r: of_kind("ServiceMonitor", r)["spec"]["endpoints"][0].update(port="web"),
    "spread by labels": lambda r: template(r)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].update(
        other="x"
    ),
    "Service/psum-aggregator: pods have no port": lambda r: of_kind("Service", r)["spec"]["ports"][0].update(
        targetPort="rpc"
    ),
    "NetworkPolicy/psum-aggregator: pods have no port": lambda r: of_kind("NetworkPolicy", r)["spec"]["ingress"][0][
        "ports"
    ][0].update(port="rpc"),
    "keeps workers from its port data": lambda r: of_kind("NetworkPolicy", r)["spec"]["ingress"][0]["ports"].pop(),
    "readinessProbe asks a port": lambda r: container(r)["readinessProbe"]["httpGet"].update(port="admin"),
    "no headless service": lambda r: of_kind("Service", r)["spec"].pop("clusterIP"),
    "no such service account": lambda r: template(r).update(serviceAccountName="other"),
    "may run as root": lambda r: template(r)["securityContext"].pop("runAsNonRoot"),
    "not restricted": lambda r: template(r)["securityContext"].pop("seccompProfile"),
    "may gain privileges": lambda r: container(r)["securityContext"].pop("capabilities"),
    "can write to its root": lambda r: container(r)["securityContext"].pop("readOnlyRootFilesystem"),
    "token for the cluster": lambda r: template(r).pop("automountServiceAccountToken"),
    "services would set": lambda r: template(r).pop("enableServiceLinks"),
    "expected the tag": lambda r: container(r).update(image="registry.example/psum-aggregator:latest"),
    "PSUM_TREADS is no setting": set_variable("PSUM_TREADS", "2"),
    "given twice": lambda r: container(r)["env"].append({"name": "PSUM_THREADS", "value": "2"}),
    "expected a size": set_variable("PSUM_MEMORY_BUDGET", "3Gi"),
    "connections would not be encrypted": lambda r: container(r).update(
        env=[e for e in container(r)["env"] if "_TLS_" not in e["name"]]
    ),
    "is not an amount": lambda r: container(r)["resources"]["requests"].update(cpu="2cores"),
    "limited to that memory": lambda r: container(r)["resources"]["limits"].update(memory="8Gi"),
    "but mounts": lambda r: container(r)["volumeMounts"].pop(),
    "by subPath": lambda r: container(r)["volumeMounts"][0].update(subPath="x"),
    "is not in a mounted secret": set_variable("PSUM_AGGREGATOR_TOKEN_FILE", "/etc/tokens"),
    "cert-manager makes no such key": set_variable("PSUM_AGGREGATOR_TLS_CERT", "/etc/psum/tls/cert.pem"),
    "but its port grpc is": set_variable("PSUM_LISTEN", "127.0.0.1:50051"),
    "its data port is": set_variable("PSUM_DATA_PORT", "1"),
    "it is not probed": lambda r: container(r).pop("livenessProbe"),
    "may be killed before": set_variable("PSUM_GRACE", "55s"),
    "a budget of": set_variable("PSUM_MEMORY_BUDGET", "4GiB"),
    "threads on": set_variable("PSUM_THREADS", "3"),
    "spec.egress is []": lambda r: of_kind("NetworkPolicy", r)["spec"].update(egress=[]),
    "is None, which": lambda r: of_kind("StatefulSet", r)["metadata"].update(creationTimestamp=None),
    "is empty, which": lambda r: of_kind("Service", r)["metadata"].update(annotations={}),
    "a port without its protocol": lambda r: of_kind("NetworkPolicy", r)["spec"]["ingress"][0]["ports"][0].pop(
        "protocol"
    ),
    "the server writes as 2": lambda r: container(r)["resources"]["requests"].update(cpu="2000m"),
    "is the number 2": lambda r: container(r)["resources"]["requests"].update(cpu=2),
    "cert-manager writes with all": lambda r: of_kind("Certificate", r)["spec"].update(duration="2160h"),
    "blocks drains": lambda r: of_kind("PodDisruptionBudget", r)["spec"].pop("unhealthyPodEvictionPolicy"),
    "state partition: 0": lambda r: of_kind("StatefulSet", r)["spec"].pop("updateStrategy"),
    "wait for a spare one": lambda r: template(r).update(
        affinity={
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "psum-aggregator"}},
                    }
                ]
            }
        }
    ),
    "would delete all that is in it": lambda r: r.append(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "psum"}}
    ),
    "the others hear late": set_variable("PSUM_CLOSED_TIMEOUT", "30s"),
    "told an old address": set_variable("PSUM_WORKER_TIMEOUT", "30s"),
}


#: Possible mistakes in an example of workers, by a part of the message about each.
WORKERS_MISTAKES: dict[str, Callable[[Any], object]] = {
    "share one delay": lambda spec: spec.update(backoffLimit=12),
    "would wait for it; set maxFailedIndexes": lambda spec: spec.pop("maxFailedIndexes"),
    "would never be replaced": lambda spec: spec.update(podReplacementPolicy="Failed"),
    "the one before may take 60 s": lambda spec: spec["template"]["spec"].update(terminationGracePeriodSeconds=60),
    "would stay for ever": lambda spec: spec.pop("ttlSecondsAfterFinished"),
    "stays for 300 s on a node": lambda spec: spec["template"]["spec"].pop("tolerations"),
    "asks for nvidia.com/gpu": lambda spec: spec["template"]["spec"]["containers"][0]["resources"]["limits"].update(
        {"nvidia.com/gpu": "1"}
    ),
    "reaches no aggregator": lambda spec: spec["template"]["metadata"]["labels"].pop("app.kubernetes.io/component"),
}


#: Possible mistakes in an elastic Job.
ELASTIC_MISTAKES: dict[str, Callable[[Any], object]] = {
    "would end when one worker is given up": lambda spec: spec.update(maxFailedIndexes=0),
    "would never be replaced": lambda spec: spec.update(podReplacementPolicy="Failed"),
    "it leaves within 25 s": lambda spec: spec["template"]["spec"].update(terminationGracePeriodSeconds=20),
    "one that has done its work": lambda spec: spec["template"]["spec"]["containers"][0]["env"].append(
        {"name": "PSUM_LEAVE_STATUS", "value": "0"}
    ),
}


@pytest.mark.parametrize("text", ELASTIC_MISTAKES)
def test_a_mistake_in_an_elastic_job_is_found(text: str) -> None:
    """Each check reports its mistake."""
    resources = copy.deepcopy(list(rendered("workers/elastic")))
    ELASTIC_MISTAKES[text](of_kind("Job", resources)["spec"])
    assert any(text in found for found in mistakes(resources)), mistakes(resources)


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_found(text: str) -> None:
    """Each check reports its mistake."""
    resources = copy.deepcopy(list(rendered("production")))
    MISTAKES[text](resources)
    assert any(text in found for found in mistakes(resources)), mistakes(resources)


@pytest.mark.parametrize("text", WORKERS_MISTAKES)
def test_a_mistake_in_workers_is_found(text: str) -> None:
    """Each check of workers reports its mistake."""
    resources = copy.deepcopy(list(rendered("workers/indexed-job")))
    WORKERS_MISTAKES[text](of_kind("Job", resources)["spec"])
    assert any(text in found for found in mistakes(resources)), mistakes(resources)


def test_a_job_set_that_starts_all_again_is_found() -> None:
    """Such a JobSet would wait until every pod is gone, which never happens if a node has vanished."""
    resources = copy.deepcopy(list(rendered("workers/jobset")))
    workers = next(j for j in of_kind("JobSet", resources)["spec"]["replicatedJobs"] if j["name"] == "worker")
    workers["template"]["spec"].update(backoffLimit=0)
    assert any("JobSet/training/worker: all workers would share one delay" in found for found in mistakes(resources))


def test_quantities_are_those_of_kubernetes() -> None:
    """1Gigs is not a quantity, although a schema accepts it."""
    assert [quantity(text) for text in ("2", "500m", "4Gi", "1k")] == [2.0, 0.5, 4 * 2**30, 1000.0]
    for text in ("1Gigs", "", "-1", "4 Gi"):
        with pytest.raises(ValueError, match="not an amount"):
            quantity(text)
