"""Checks beyond a schema validator's: the resources fit together, and psum understands their settings."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from psum.aggregator import Settings as AggregatorSettings
from psum.client import Settings as WorkerSettings
from psum.runtime import declarations
from psum.wire.errors import ConfigurationError
from tests.deploy import network
from tests.deploy.manifests import VERSION, Pod, Resource, pods
from tests.deploy.relay_checks import relay_mistakes
from tests.deploy.server import differences

#: The most seconds that an aggregator on a slow machine needs to end, in addition to PSUM_GRACE.
CLOSING_SECONDS = 10

#: A quantity of Kubernetes: 2, 500m, 4Gi.
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|[kMGTPE]|[KMGTPE]i)?")
_UNITS = {None: 1.0, "m": 1e-3, "k": 1e3} | {u: 1000.0 ** (i + 2) for i, u in enumerate("MGTPE")}
_UNITS |= {f"{u}i": 1024.0 ** (i + 1) for i, u in enumerate("KMGTPE")}

#: Settings that name files.
_FILES = tuple(
    declared.variables[0]
    for kind in (AggregatorSettings, WorkerSettings)
    for name, declared in declarations(kind).items()
    if name in ("tls_cert", "tls_key", "tls_ca", "tls_client_ca", "relay_tls_ca", "token_file")
)

#: The label by which network policies recognise workers.
_COMPONENT, _WORKER = "app.kubernetes.io/component", "psum-worker"

#: For how many seconds a cluster's DNS may return an old address. CoreDNS comes with `cache 30`.
DNS_TTL_SECONDS = 30

#: Seconds after which a worker whose node is gone must be started elsewhere.
_GONE_SECONDS = 10
_GONE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")

#: Seconds that a worker may need to end after it has given up leaving at the end of a step.
_GOODBYE_SECONDS = 5

#: Seconds after which the other ranks must learn that a worker was killed.
_CLOSED_SECONDS = 5

#: The keys that cert-manager writes into a certificate's secret.
_CERTIFICATE_KEYS = {"ca.crt", "tls.crt", "tls.key"}


def mistakes(resources: Sequence[Resource]) -> list[str]:
    """Returns a message for each mistake in the resources."""
    found = [text for check in _OF_ALL for text in check(resources)]
    for pod in pods(resources):
        if not pod.is_aggregator and pod.labels.get(_COMPONENT) != _WORKER:
            found.append(f"{pod.owner}: without the label {_COMPONENT}={_WORKER} it reaches no aggregator")
        checks: list[Callable[[Pod], Iterator[str]]] = [_security, _image, _settings, _amounts, _devices, _volumes]
        told = [text for check in checks for text in check(pod)]
        if pod.is_aggregator and not told:
            told = [text for check in (_aggregator_ports, _ending, _room, _patience) for text in check(pod)]
        if not pod.is_aggregator:
            told += [*_moves(pod), *_leaves(pod)]
            told += [text for text in _waits(pod) if not told]
        found += [f"{pod.owner}: {text}" for text in told]
    return list(dict.fromkeys(found))


def quantity(text: str) -> float:
    """Converts a quantity of Kubernetes to a number.

    Raises:
        ValueError: The text is not a quantity.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not an amount such as 2, 500m or 4Gi")
    return float(match[1]) * _UNITS[match[2]]


def _of_kind(resources: Sequence[Resource], *kinds: str) -> list[Resource]:
    return [r for r in resources if r["kind"] in kinds]


def _matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def _selectors(resources: Sequence[Resource]) -> Iterator[str]:
    """Every selector selects at least one pod, or one port of a service."""
    all_pods = list(pods(resources))
    chosen = {
        "Service": lambda spec: spec["selector"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        "StatefulSet": lambda spec: spec["selector"]["matchLabels"],
        "DaemonSet": lambda spec: spec["selector"]["matchLabels"],
    }
    for resource in _of_kind(resources, *chosen):
        selector = chosen[resource["kind"]](resource["spec"])
        if not any(_matches(selector, pod.labels) for pod in all_pods):
            yield f"{resource['kind']}/{resource['metadata']['name']}: no pod has the labels {selector}"
    for pod in all_pods:
        for constraint in pod.spec.get("topologySpreadConstraints", ()):
            if not _matches(constraint["labelSelector"]["matchLabels"], pod.labels):
                yield f"{pod.owner}: it is spread by labels that it does not have"
    services = _of_kind(resources, "Service")
    for monitor in _of_kind(resources, "ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        found = [s for s in services if _matches(selector, s["metadata"].get("labels", {}))]
        ports = {port["name"] for service in found for port in service["spec"]["ports"]}
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint["port"] not in ports:
                yield f"ServiceMonitor/{monitor['metadata']['name']}: no service has a port {endpoint['port']}"


def _ports(resources: Sequence[Resource]) -> Iterator[str]:
    """Every port that a service, a policy or a probe names exists in the pods."""

    def missing(selector: dict[str, str], port: Any) -> bool:
        chosen = [pod for pod in pods(resources) if _matches(selector, pod.labels)]
        return not all(port in _container_ports(pod) for pod in chosen)

    for service in _of_kind(resources, "Service"):
        for port in service["spec"]["ports"]:
            if missing(service["spec"]["selector"], port["targetPort"]):
                yield f"Service/{service['metadata']['name']}: pods have no port {port['targetPort']}"
    for policy in _of_kind(resources, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            for port in rule["ports"]:
                if missing(policy["spec"]["podSelector"]["matchLabels"], port["port"]):
                    yield f"NetworkPolicy/{policy['metadata']['name']}: pods have no port {port['port']}"
    for pod in pods(resources):
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = pod.container.get(kind)
            if probe is not None and probe["httpGet"]["port"] not in _container_ports(pod):
                yield f"{pod.owner}: {kind} asks a port {probe['httpGet']['port']}, which the container does not have"


def _reachable(resources: Sequence[Resource]) -> Iterator[str]:
    """The network policy lets workers reach both ports of each process of an aggregator.

    Workers that share memory use both too.
    """
    labels = next((pod.labels for pod in pods(resources) if not pod.is_aggregator), {_COMPONENT: _WORKER})
    for pod in pods(resources):
        if pod.is_aggregator and not pod.is_sidecar:
            reached = network.open_ports(resources, network.Peer(labels), network.Peer.of(pod))
            if missing := sorted(pod.streams - reached):
                yield f"{pod.owner}: the network policy keeps workers from its port {', '.join(missing)}"


def _names(resources: Sequence[Resource]) -> Iterator[str]:
    """Every resource that another one refers to by name exists."""
    services = {s["metadata"]["name"]: s["spec"] for s in _of_kind(resources, "Service")}
    accounts = {a["metadata"]["name"] for a in _of_kind(resources, "ServiceAccount")}
    for stateful_set in _of_kind(resources, "StatefulSet"):
        spec = stateful_set["spec"]
        if services.get(spec["serviceName"], {}).get("clusterIP") != "None":
            yield f"StatefulSet: {spec['serviceName']} is no headless service, so its pods have no names"
    for resource in _of_kind(resources, "StatefulSet", "DaemonSet"):
        if resource["spec"]["template"]["spec"]["serviceAccountName"] not in accounts:
            yield f"{resource['kind']}: there is no such service account"
    for ingress in _of_kind(resources, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                ports = {port["name"] for port in services.get(backend["name"], {}).get("ports", ())}
                if backend["port"]["name"] not in ports:
                    yield f"Ingress: there is no service {backend['name']} with a port {backend['port']['name']}"


def _unchanged(resources: Sequence[Resource]) -> Iterator[str]:
    """The API server stores each resource as it is written, so that `kubectl diff` shows only real changes."""
    for resource in resources:
        yield from differences(resource)


def _budgets(resources: Sequence[Resource]) -> Iterator[str]:
    """A drain ends even if an aggregator crashes repeatedly. By default, the budget would then forbid all evictions."""
    for budget in _of_kind(resources, "PodDisruptionBudget"):
        if budget["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield (
                f"PodDisruptionBudget/{budget['metadata']['name']}: an aggregator that never gets ready blocks drains;"
                " unhealthyPodEvictionPolicy must be AlwaysAllow"
            )


def _killed(resources: Sequence[Resource]) -> Iterator[str]:
    """The other ranks soon learn that a worker was killed. An ingress may close connections itself, so it is exempt."""
    if _of_kind(resources, "Ingress"):
        return
    for pod in pods(resources):
        timeout = pod.environ.get("PSUM_CLOSED_TIMEOUT", "")
        if pod.is_aggregator and not 0 < float(timeout.removesuffix("s") or "inf") <= _CLOSED_SECONDS:
            yield f"{pod.owner}: when a worker is killed, the others hear late; PSUM_CLOSED_TIMEOUT is {timeout!r}"


def _updates(resources: Sequence[Resource]) -> Iterator[str]:
    """An apply updates all aggregators, and an aggregator can move to another node when its own is gone."""
    for resource in _of_kind(resources, "StatefulSet"):
        name, spec = f"StatefulSet/{resource['metadata']['name']}", resource["spec"]
        if spec.get("updateStrategy", {}).get("rollingUpdate", {}).get("partition") != 0:
            yield f"{name}: a partition set by hand would stay; state partition: 0"
        affinity = spec["template"]["spec"].get("affinity", {}).get("podAntiAffinity", {})
        if "requiredDuringSchedulingIgnoredDuringExecution" in affinity:
            yield f"{name}: an aggregator whose node is gone would wait for a spare one; use a preferred anti-affinity"


def _namespaces(resources: Sequence[Resource]) -> Iterator[str]:
    """Deleting the applied resources keeps tokens and trainings."""
    for namespace in _of_kind(resources, "Namespace"):
        yield f"Namespace/{namespace['metadata']['name']}: `kubectl delete -k` would delete all that is in it"


def _jobs(resources: Sequence[Resource]) -> Iterator[tuple[str, Resource]]:
    """Yields the name and the specification of all Jobs with workers, whether in a JobSet or not."""
    for job in _of_kind(resources, "Job"):
        yield f"Job/{job['metadata']['name']}", job["spec"]
    for job_set in _of_kind(resources, "JobSet"):
        for job in job_set["spec"]["replicatedJobs"]:
            if job["name"] in job_set["spec"]["successPolicy"]["targetReplicatedJobs"]:
                yield f"JobSet/{job_set['metadata']['name']}/{job['name']}", job["template"]["spec"]


def _replaced(resources: Sequence[Resource]) -> Iterator[str]:
    """A worker that fails or is evicted is replaced within seconds, and a finished job is removed automatically."""
    for name, spec in _jobs(resources):
        if spec.get("podReplacementPolicy") == "Failed" or "podFailurePolicy" in spec:
            # The server sets podReplacementPolicy: Failed for every podFailurePolicy.
            yield f"{name}: a worker on a node that is gone would never be replaced (podReplacementPolicy: Failed)"
        if "backoffLimit" in spec or not spec.get("backoffLimitPerIndex"):
            yield f"{name}: all workers would share one delay, doubled by each failure; set backoffLimitPerIndex"
        elastic = any(
            entry["name"] == "PSUM_ELASTIC"
            for container in spec["template"]["spec"]["containers"]
            for entry in container.get("env", ())
        )
        if elastic and "maxFailedIndexes" in spec:
            yield f"{name}: it is elastic, and would end when one worker is given up; leave out maxFailedIndexes"
        if not elastic and spec.get("maxFailedIndexes") != 0:
            yield f"{name}: when one worker is given up, the others would wait for it; set maxFailedIndexes: 0"
    for resource in _of_kind(resources, "Job", "JobSet"):
        if not resource["spec"].get("ttlSecondsAfterFinished"):
            name = f"{resource['kind']}/{resource['metadata']['name']}"
            yield f"{name}: it would stay for ever; set ttlSecondsAfterFinished"


#: The checks of all resources together.
_OF_ALL: tuple[Callable[[Sequence[Resource]], Iterator[str]], ...] = (
    _selectors,
    _ports,
    _reachable,
    _names,
    _unchanged,
    _budgets,
    _killed,
    _updates,
    _namespaces,
    _replaced,
    relay_mistakes,
)


def _security(pod: Pod) -> Iterator[str]:
    """The pod is not root, gains no privileges, has a read-only root file system, and cannot use the cluster's API."""
    context, container = pod.spec.get("securityContext", {}), pod.container.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "it may run as root"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "its system calls are not restricted"
    if container.get("allowPrivilegeEscalation") is not False or container.get("capabilities") != {"drop": ["ALL"]}:
        yield "it may gain privileges"
    if container.get("readOnlyRootFilesystem") is not True:
        yield "it can write to its root file system"
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "it has a token for the cluster's API"
    if pod.spec.get("enableServiceLinks") is not False:
        yield "services would set variables"


def _image(pod: Pod) -> Iterator[str]:
    """The image's tag is this version."""
    name, _, tag = pod.container["image"].rpartition(":")
    if not name or tag != VERSION:
        yield f"image {pod.container['image']}, expected the tag {VERSION}"


def _settings(pod: Pod) -> Iterator[str]:
    """The environment has only settings that psum knows, each once, with valid values."""
    kind: Any = AggregatorSettings if pod.is_aggregator else WorkerSettings
    known = {variable for declared in declarations(kind).values() for variable in declared.variables}
    given = Counter(entry["name"] for entry in pod.container.get("env", ()))
    for name, count in given.items():
        if count > 1:
            yield f"{name} is given twice"
        if name not in known:
            yield f"{name} is no setting"
    try:
        kind.from_environment(pod.environ)
    except ConfigurationError as error:
        yield str(error)


def _amounts(pod: Pod) -> Iterator[str]:
    """The pod's resources are valid quantities, and its memory limit equals its request."""
    amounts = [v for part in pod.container["resources"].values() for v in part.values()]
    amounts += [v["emptyDir"]["sizeLimit"] for v in pod.spec.get("volumes", ()) if "sizeLimit" in v.get("emptyDir", {})]
    for amount in amounts:
        try:
            quantity(amount)
        except ValueError as error:
            yield str(error)
    requests, limits = (pod.container["resources"].get(part, {}) for part in ("requests", "limits"))
    if "cpu" not in requests or "memory" not in requests or requests["memory"] != limits.get("memory"):
        yield "it must ask for processors and memory, and be limited to that memory"


def _devices(pod: Pod) -> Iterator[str]:
    """The pod requests no device that its image cannot use. A cluster without the device would never schedule it."""
    for kind in pod.container["resources"].get("limits", {}):
        if kind not in ("cpu", "memory"):
            yield f"it asks for {kind}, which its image cannot use"


def _moves(pod: Pod) -> Iterator[str]:
    """The pod soon starts elsewhere when its node is gone. By default, that takes five minutes."""
    tolerated = {t.get("key"): t.get("tolerationSeconds") for t in pod.spec.get("tolerations", ())}
    for key in _GONE:
        if not 0 <= (seconds := tolerated.get(key, 300)) <= _GONE_SECONDS:
            yield f"it stays for {seconds} s on a node that is {key}; tolerate that for {_GONE_SECONDS} s"


def _leaves(pod: Pod) -> Iterator[str]:
    """A worker of an elastic job may leave at the end of its step before it is killed, and is replaced then."""
    settings = WorkerSettings.from_environment(pod.environ)
    if settings.elastic is not None and not settings.leave_status:
        yield "a worker that has left would count as one that has done its work (PSUM_LEAVE_STATUS)"
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
    if settings.elastic is not None and grace < settings.leave_timeout + _GOODBYE_SECONDS:
        leaves = f"it leaves within {settings.leave_timeout:g} s (PSUM_LEAVE_TIMEOUT)"
        yield f"{leaves}, and is killed {grace} s after SIGTERM"


def _waits(pod: Pod) -> Iterator[str]:
    """A replacement waits long enough for the end of the pod that it replaces."""
    timeout = WorkerSettings.from_environment(pod.environ).rank_timeout
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
    if timeout < grace + CLOSING_SECONDS:
        yield f"PSUM_RANK_TIMEOUT is {timeout:g} s; the one before may take {grace} s and {CLOSING_SECONDS} s to end"


def _volumes(pod: Pod) -> Iterator[str]:
    """The files that settings name are in mounted secrets. Whole folders are mounted, so that renewals arrive."""
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", ())}
    mounts = pod.container.get("volumeMounts", ())
    containers = (*pod.spec.get("initContainers", ()), *pod.spec["containers"])
    mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", ())}
    if mounted != volumes.keys():
        yield f"volumes {sorted(volumes)}, but mounts {sorted(mounted)}"
        return
    for mount in mounts:
        if "subPath" in mount:
            yield f"{mount['mountPath']} is mounted by subPath, and would never change"
    for name in _FILES:
        if path := pod.environ.get(name):
            folder, _, file = path.rpartition("/")
            secret = next((volumes[m["name"]].get("secret") for m in mounts if m["mountPath"] == folder), None)
            if secret is None:
                yield f"{name}={path} is not in a mounted secret"
            elif "items" in secret and file not in {item["path"] for item in secret["items"]}:
                yield f"{name}={path} is not among what is mounted of the secret {secret['secretName']}"
            elif "_TLS_" in name and file not in _CERTIFICATE_KEYS:
                yield f"{name}={path}: cert-manager makes no such key"


def _container_ports(pod: Pod) -> dict[Any, int]:
    ports = pod.container.get("ports", ())
    return {port["name"]: port["containerPort"] for port in ports}


def _aggregator_ports(pod: Pod) -> Iterator[str]:
    """The aggregator listens on its declared ports, at addresses that others reach."""
    settings, ports = pod.environ, _container_ports(pod)
    # Only the pod's own containers reach a sidecar's streams.
    named = [("http", settings["PSUM_HTTP"])] + ([] if pod.is_sidecar else [("grpc", settings["PSUM_LISTEN"])])
    for name, address in named:
        if address != f"0.0.0.0:{ports.get(name)}":
            yield f"it listens on {address}, but its port {name} is {ports.get(name)}"
    if not pod.is_sidecar and settings["PSUM_DATA_PORT"] != str(ports.get("data")):
        yield f"its data port is {settings['PSUM_DATA_PORT']}, but its port data is {ports.get('data')}"
    if not {"livenessProbe", "startupProbe" if pod.is_sidecar else "readinessProbe"} <= pod.container.keys():
        yield "it is not probed"


def _ending(pod: Pod) -> Iterator[str]:
    """The aggregator has time to finish its rounds before it is killed."""
    grace = AggregatorSettings.from_environment(pod.environ).grace
    if pod.spec.get("terminationGracePeriodSeconds", 30) < grace + CLOSING_SECONDS:
        yield f"it may be killed before it has finished its rounds, {grace:g} s, and closed, {CLOSING_SECONDS} s"


def _room(pod: Pod) -> Iterator[str]:
    """The budget leaves a fifth of the memory for everything else, and each thread has a processor."""
    settings = AggregatorSettings.from_environment(pod.environ)
    resources = pod.container["resources"]
    if not 0 < settings.memory_budget <= 0.8 * quantity(resources["limits"]["memory"]):
        yield f"a budget of {settings.memory_budget} bytes in {resources['limits']['memory']}"
    if settings.threads > quantity(resources["requests"]["cpu"]):
        yield f"{settings.threads} threads on {resources['requests']['cpu']} processors"


def _patience(pod: Pod) -> Iterator[str]:
    """The aggregator waits for its workers for as long as they may look for it at its old address."""
    timeout = AggregatorSettings.from_environment(pod.environ).worker_timeout
    if timeout < 2 * DNS_TTL_SECONDS:
        yield (
            f"PSUM_WORKER_TIMEOUT is {timeout:g} s; a worker may be told an old address for {DNS_TTL_SECONDS} s, and"
            " then needs time to connect: allow twice that"
        )
