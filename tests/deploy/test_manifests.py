"""The Kubernetes manifests render, are valid, and fit together."""

import copy
import fnmatch
import pathlib
import re
import tomllib

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
    image,
    kustomize,
    of_kind,
    pods,
    rendered,
)
from tests.deploy.server import differences
from tests.deploy.validation import VERSIONS, standard

#: Kinds that belong to no namespace.
FOR_ALL_NAMESPACES = {"PriorityClass"}


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
