"""The Kubernetes manifests render, are valid, and fit together."""

import copy
import fnmatch
import pathlib
import re
import tomllib
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
import yaml

from psum.aggregator import Settings as AggregatorSettings
from psum.client import Settings as WorkerSettings
from psum.wire.errors import ConfigurationError
from tests.deploy.checks import mistakes, quantity
from tests.deploy.manifests import (
    KUBERNETES,
    RENDERED,
    ROOT,
    VERSION,
    Pod,
    Resource,
    image,
    kustomize,
    pods,
    rendered,
)
from tests.deploy.server import differences

#: The oldest version that the guide names, one in between, and the newest that the validator has schemas of.
VERSIONS = ["1.29", "1.33", kubernetes_validate.latest_version()]

#: Kinds that the validator has no schema of. The pods in them are validated.
FOREIGN = {
    "Certificate": "cert-manager.io/v1",
    "Issuer": "cert-manager.io/v1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "JobSet": "jobset.x-k8s.io/v1alpha2",
    "MXJob": "kubeflow.org/v1",
    "PodGroup": "scheduling.volcano.sh/v1beta1",
}


#: Kinds that belong to no namespace.
FOR_ALL_NAMESPACES = {"PriorityClass"}


def standard(resource: Resource) -> list[Resource]:
    """Returns the parts of a resource that Kubernetes' own schemas describe."""
    if resource["kind"] not in FOREIGN:
        return [resource]
    assert resource["apiVersion"] == FOREIGN[resource["kind"]]
    meta = {"metadata": {"name": "within"}}
    match resource["kind"]:
        case "JobSet":
            templates = [job["template"] for job in resource["spec"]["replicatedJobs"]]
            return [{"apiVersion": "batch/v1", "kind": "Job", **meta, **template} for template in templates]
        case "MXJob":
            templates = [replicas["template"] for replicas in resource["spec"]["mxReplicaSpecs"].values()]
            return [{"apiVersion": "v1", "kind": "Pod", **template} for template in templates]
    return []


@pytest.mark.parametrize("name", RENDERED)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_is_valid(name: str, version: str) -> None:
    """Validation is strict: an unknown field is a mistake too. FOREIGN lists the kinds without a schema."""
    for resource in rendered(name):
        for part in standard(resource):
            kubernetes_validate.validate(part, version, strict=True)


#: The messages about components that are for other images than the repository's.
EXPECTED = {"workers/indexed-job, GPU": ["Job/training: it asks for nvidia.com/gpu, which its image cannot use"]}


@pytest.mark.parametrize("name", RENDERED)
def test_the_resources_fit_together(name: str) -> None:
    """The checks find no mistake in selectors, ports, names, settings, files, quantities, times and stored forms."""
    assert mistakes(rendered(name)) == EXPECTED.get(name, [])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", sorted(KUBERNETES.glob("overlays/*/namespace.yaml")), ids=lambda f: f.parent.name)
def test_namespaces_are_valid(file: pathlib.Path, version: str) -> None:
    """Users apply namespaces separately. Their name is the namespace of the overlay's resources."""
    namespace = yaml.safe_load(file.read_text())
    kubernetes_validate.validate(namespace, version, strict=True)
    assert namespace["kind"] == "Namespace"
    resources = [r for r in rendered(file.parent.name) if r["kind"] not in FOR_ALL_NAMESPACES]
    assert {r["metadata"].get("namespace") for r in resources} == {namespace["metadata"]["name"]}


def container(resources: Any) -> Any:
    """The aggregator's container."""
    (found,) = (r for r in resources if r["kind"] == "StatefulSet")
    return found["spec"]["template"]["spec"]["containers"][0]


def set_variable(name: str, value: str) -> Any:
    """Returns a change that gives a variable of the aggregator another value."""

    def change(resources: Any) -> None:
        env = container(resources)["env"]
        env[:] = [entry for entry in env if entry["name"] != name] + [{"name": name, "value": value}]

    return change


def of_kind(kind: str, resources: Any) -> Any:
    """The first resource of a kind."""
    return next(r for r in resources if r["kind"] == kind)


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


def test_an_elastic_job_may_be_scaled_within_its_range() -> None:
    """Pods beyond the number with which the job began join it, up to the maximum. One more is refused."""
    resources = copy.deepcopy(list(rendered("workers/elastic")))
    spec = of_kind("Job", resources)["spec"]
    spec["completions"] = spec["parallelism"] = 8
    settings = [WorkerSettings.from_environment(pod.environ) for pod in pods(resources)]
    assert [s.rank for s in settings] == list(range(8))
    assert [s.joining for s in settings] == [False] * 4 + [True] * 4
    assert {(s.num_workers, str(s.elastic)) for s in settings} == {(4, "2:8")}
    spec["completions"] = spec["parallelism"] = 9
    with pytest.raises(ConfigurationError, match="ranks go from 0 to 7"):
        list(map(WorkerSettings.from_environment, (pod.environ for pod in pods(resources))))


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


def test_every_folder_is_rendered() -> None:
    """RENDERED has every overlay, component and example."""
    named = {folder for folders in RENDERED.values() for folder in folders}
    for file in KUBERNETES.glob("*/*/kustomization.yaml"):
        named |= {f"components/{pathlib.Path(c).name}" for c in yaml.safe_load(file.read_text()).get("components", ())}
    folders = {str(f.parent.relative_to(KUBERNETES)) for f in KUBERNETES.glob("*/*/kustomization.yaml")}
    assert folders == named


def test_the_base_alone_does_not_start() -> None:
    """An aggregator does not start unless its manifest says who may connect."""
    pod = next(pods(kustomize("base")))
    with pytest.raises(ConfigurationError, match="connections would not be encrypted"):
        AggregatorSettings.from_environment(pod.environ)


def fleet(name: str) -> dict[str, Pod]:
    """The aggregators of an overlay, by the address that workers use."""
    namespace, found = "psum", {}
    for pod in pods(rendered(name)):
        if pod.is_aggregator:
            found[f"{pod.name}.psum-aggregator.{namespace}.svc:50051"] = pod
    return found


@pytest.mark.parametrize(
    ("workers", "overlay"),
    [
        ("workers/indexed-job", "production"),
        ("workers/elastic", "production"),
        ("workers/kueue", "production"),
        ("workers/volcano", "production"),
        ("workers/mxjob", "production"),
        ("workers/single-node", "single-node"),
    ],
)
def test_workers_name_the_aggregators_of_their_overlay(workers: str, overlay: str) -> None:
    """Workers name all aggregators as the headless service does. Ranks go from 0 to the job's size - 1."""
    settings = [WorkerSettings.from_environment(pod.environ) for pod in pods(rendered(workers))]
    assert {s.aggregators for s in settings} == {tuple(fleet(overlay))}
    assert [s.rank for s in settings] == list(range(settings[0].num_workers))
    for service in (r for r in rendered(overlay) if r["kind"] == "Service"):
        assert service["metadata"]["namespace"] == "psum"


def test_a_job_set_names_its_own_aggregators() -> None:
    """Workers use the names that the JobSet controller gives to the aggregators' pods."""
    job_set = of_kind("JobSet", rendered("workers/jobset"))
    aggregators = {job["name"]: job["template"]["spec"] for job in job_set["spec"]["replicatedJobs"]}["aggregator"]
    name = job_set["metadata"]["name"]
    expected = tuple(f"{name}-aggregator-0-{i}.{name}:50051" for i in range(aggregators["completions"]))
    workers = [pod for pod in pods(rendered("workers/jobset")) if not pod.is_aggregator]
    settings = [WorkerSettings.from_environment(pod.environ) for pod in workers]
    assert {s.aggregators for s in settings} == {expected}
    assert [s.rank for s in settings] == list(range(settings[0].num_workers))


@pytest.mark.parametrize("name", [name for name in RENDERED if name.startswith("workers/")])
def test_a_job_runs_all_its_workers_at_a_time(name: str) -> None:
    """A job that ran some workers after others would never finish."""
    specs = [r["spec"] for r in rendered(name) if r["kind"] == "Job"]
    specs += [
        j["template"]["spec"] for r in rendered(name) if r["kind"] == "JobSet" for j in r["spec"]["replicatedJobs"]
    ]
    for spec in specs:
        assert spec["completionMode"] == "Indexed"
        assert spec["completions"] == spec["parallelism"]


@pytest.mark.parametrize("workers", ["workers/indexed-job", "workers/mxjob"])
def test_the_certificate_is_for_the_names_that_workers_use(workers: str) -> None:
    """Its patterns match every address in the workers' settings. Both sides mount the secret that it is written to."""
    certificate = next(
        r for r in rendered("production") if r["kind"] == "Certificate" and not r["spec"].get("isCA", False)
    )
    mounted = set()
    for pod in (*pods(rendered("production")), *pods(rendered(workers))):
        mounted |= {v["secret"]["secretName"] for v in pod.spec["volumes"] if v["name"] == "tls"}
    assert mounted == {certificate["spec"]["secretName"]}
    patterns = certificate["spec"]["dnsNames"]
    for pod in pods(rendered(workers)):
        for address in WorkerSettings.from_environment(pod.environ).aggregators:
            host = address.rpartition(":")[0]
            assert any(fnmatch.fnmatch(host, p) and host.count(".") == p.count(".") for p in patterns)


def test_stable_addresses_are_those_of_the_pods() -> None:
    """Each aggregator, ready or not, has a service with both ports. Workers and the certificate use its name."""
    resources = rendered("production, stable addresses")
    services = {
        f"{r['metadata']['name']}.{r['metadata']['namespace']}.svc:50051": r["spec"]
        for r in resources
        if r["kind"] == "Service" and r["spec"].get("clusterIP") != "None"
    }
    fleet_names = [pod.name for pod in pods(resources) if pod.is_aggregator]
    chosen = [spec["selector"]["statefulset.kubernetes.io/pod-name"] for spec in services.values()]
    assert chosen == fleet_names
    ports = {port["name"]: port["containerPort"] for port in next(pods(resources)).container["ports"]}
    for spec in services.values():
        assert spec["publishNotReadyAddresses"] is True
        assert {port["name"]: port["port"] for port in spec["ports"]} == {k: ports[k] for k in ("grpc", "data")}
    workers = list(pods(rendered("workers/indexed-job, stable addresses")))
    assert {WorkerSettings.from_environment(pod.environ).aggregators for pod in workers} == {tuple(services)}
    names = next(r for r in resources if r["kind"] == "Certificate" and "dnsNames" in r["spec"])["spec"]["dnsNames"]
    assert {address.rpartition(":")[0] for address in services} <= set(names)


def test_volcano_schedules_all_workers_or_none() -> None:
    """The group has the size and the requests of the Job, and the Job's pods name the group."""
    resources = rendered("workers/volcano")
    group, workers = of_kind("PodGroup", resources), list(pods(resources))
    assert group["spec"]["minMember"] == len(workers)
    for name, amount in group["spec"]["minResources"].items():
        requests = [quantity(pod.container["resources"]["requests"][name]) for pod in workers]
        assert quantity(amount) == sum(requests)
    template = of_kind("Job", resources)["spec"]["template"]
    assert template["metadata"]["annotations"] == {"scheduling.k8s.io/group-name": group["metadata"]["name"]}
    assert template["spec"]["schedulerName"] == "volcano"
    assert group["metadata"]["namespace"] == "psum"


def test_kueue_has_room_for_the_training_that_it_queues() -> None:
    """The Job names a queue of its namespace and fits its quota. Only Kueue suspends the Job."""
    job = of_kind("Job", rendered("workers/kueue"))
    queue = list(yaml.safe_load_all((KUBERNETES / "workers/kueue/queue.yaml").read_text()))
    assert [text for resource in queue for text in differences(resource)] == []
    flavor, cluster, local = queue
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    assert job["metadata"]["namespace"] == local["metadata"]["namespace"]
    assert "suspend" not in job["spec"]
    assert local["spec"]["clusterQueue"] == cluster["metadata"]["name"]
    (resource_group,) = cluster["spec"]["resourceGroups"]
    (quota,) = resource_group["flavors"]
    assert quota["name"] == flavor["metadata"]["name"]
    for entry in quota["resources"]:
        requests = [quantity(pod.container["resources"]["requests"][entry["name"]]) for pod in pods([job])]
        assert sum(requests) <= quantity(entry["nominalQuota"])
    assert {entry["name"] for entry in quota["resources"]} == set(resource_group["coveredResources"])


def test_pull_secrets_and_priorities_reach_both_sides() -> None:
    """Aggregators have a higher priority than workers."""
    classes = {
        r["metadata"]["name"]: r
        for r in rendered("production, pull secret and priority")
        if r["kind"] == "PriorityClass"
    }
    given = []
    for name in ("production, pull secret and priority", "workers/indexed-job, pull secret and priority"):
        for pod in pods(rendered(name)):
            assert pod.spec["imagePullSecrets"] == [{"name": "psum-registry"}]
            given.append((pod.is_aggregator, classes[pod.spec["priorityClassName"]]["value"]))
    assert len(set(given)) == 2
    assert sorted(given) == sorted(given, key=lambda g: g[1])


def test_memory_is_shared_by_one_user_through_one_folder() -> None:
    """On a single node, the aggregator and the workers have the same volume of the host and the same user id."""
    (aggregator,), workers = list(pods(rendered("single-node"))), list(pods(rendered("workers/single-node")))
    for pod in (aggregator, *workers):
        (volume,) = (v for v in pod.spec["volumes"] if v["name"] == "shared-memory")
        (mount,) = (m for m in pod.container["volumeMounts"] if m["name"] == "shared-memory")
        assert volume["hostPath"]["path"] == mount["mountPath"] == pod.environ["PSUM_SHM_DIRECTORY"]
        assert pod.spec["securityContext"]["runAsUser"] == aggregator.spec["securityContext"]["runAsUser"]


def test_the_image_runs_as_the_user_that_the_manifests_name() -> None:
    """The image names the user by number, so that Kubernetes sees that it is not root. It runs `psum aggregator`."""
    text = (ROOT / "deploy/containers/aggregator.Containerfile").read_text()
    user = re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE)
    context = next(pods(rendered("production"))).spec["securityContext"]
    assert user == [(str(context["runAsUser"]), str(context["runAsGroup"]))]
    assert image("aggregator").command == ["psum", "aggregator"]


@pytest.mark.parametrize("name", ["aggregator", "worker"])
def test_an_image_says_what_it_is(name: str) -> None:
    """The image has the labels of the Open Container Initiative. Its version is that of the manifests."""
    text = (ROOT / f"deploy/containers/{name}.Containerfile").read_text()
    final = text.rpartition("\nFROM ")[2]
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', final))
    assert labels.keys() == {"title", "description", "version", "revision", "licenses"}
    assert labels["version"] == VERSION
    assert labels["licenses"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    assert "ARG REVISION=" in final
