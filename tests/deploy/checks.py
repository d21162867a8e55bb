"""What a validator of schemas does not see: that the resources mean each other, and that psum understands them."""

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
from tests.deploy.server import differences

#: Seconds that an aggregator takes to end besides PSUM_GRACE, at the most, on a slow machine.
CLOSING_SECONDS = 10

#: As Kubernetes writes amounts: 2, 500m, 4Gi.
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|[kMGTPE]|[KMGTPE]i)?")
_UNITS = {None: 1.0, "m": 1e-3, "k": 1e3} | {u: 1000.0 ** (i + 2) for i, u in enumerate("MGTPE")}
_UNITS |= {f"{u}i": 1024.0 ** (i + 1) for i, u in enumerate("KMGTPE")}

#: Settings that name files.
_FILES = tuple(
    declared.variables[0]
    for kind in (AggregatorSettings, WorkerSettings)
    for name, declared in declarations(kind).items()
    if name in ("tls_cert", "tls_key", "tls_ca", "tls_client_ca", "token_file")
)

#: The label by which network policies know workers.
_COMPONENT, _WORKER = "app.kubernetes.io/component", "psum-worker"

#: For how long a cluster's DNS may hand out an old address, in seconds; CoreDNS is delivered with `cache 30`.
DNS_TTL_SECONDS = 30

#: How soon a worker whose node is gone has to be started elsewhere, in seconds.
_GONE_SECONDS = 10
_GONE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")

#: How soon the others hear of a worker that was killed, in seconds.
_CLOSED_SECONDS = 5

#: What cert-manager writes into a certificate's secret.
_CERTIFICATE_KEYS = {"ca.crt", "tls.crt", "tls.key"}


def mistakes(resources: Sequence[Resource]) -> list[str]:
    """All that is wrong with them."""
    found = [text for check in _OF_ALL for text in check(resources)]
    for pod in pods(resources):
        if not pod.is_aggregator and pod.labels.get(_COMPONENT) != _WORKER:
            found.append(f"{pod.owner}: without the label {_COMPONENT}={_WORKER} it reaches no aggregator")
        checks: list[Callable[[Pod], Iterator[str]]] = [_security, _image, _settings, _amounts, _devices, _volumes]
        told = [text for check in checks for text in check(pod)]
        if pod.is_aggregator and not told:
            told = [text for check in (_aggregator_ports, _ending, _room, _patience) for text in check(pod)]
        if not pod.is_aggregator:
            told += _moves(pod)
            told += [text for text in _waits(pod) if not told]
        found += [f"{pod.owner}: {text}" for text in told]
    return list(dict.fromkeys(found))


def quantity(text: str) -> float:
    """An amount of Kubernetes' as a number.

    Raises:
        ValueError: It is none.
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
    """Whatever selects pods, selects some."""
    all_pods = list(pods(resources))
    chosen = {
        "Service": lambda spec: spec["selector"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        "StatefulSet": lambda spec: spec["selector"]["matchLabels"],
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
    """Whatever names a port of a pod's, names one that it has."""

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
    """Workers are let in to both of an aggregator's ports: also those that share memory use the second."""
    labels = next((pod.labels for pod in pods(resources) if not pod.is_aggregator), {_COMPONENT: _WORKER})
    for pod in pods(resources):
        if pod.is_aggregator:
            reached = network.open_ports(resources, network.Peer(labels), network.Peer.of(pod))
            if missing := sorted({"grpc", "data"} - reached):
                yield f"{pod.owner}: the network policy keeps workers from its port {', '.join(missing)}"


def _names(resources: Sequence[Resource]) -> Iterator[str]:
    """Whatever is called by its name is there."""
    services = {s["metadata"]["name"]: s["spec"] for s in _of_kind(resources, "Service")}
    accounts = {a["metadata"]["name"] for a in _of_kind(resources, "ServiceAccount")}
    for stateful_set in _of_kind(resources, "StatefulSet"):
        spec = stateful_set["spec"]
        if services.get(spec["serviceName"], {}).get("clusterIP") != "None":
            yield f"StatefulSet: {spec['serviceName']} is no headless service, so its pods have no names"
        if spec["template"]["spec"]["serviceAccountName"] not in accounts:
            yield "StatefulSet: there is no such service account"
    for ingress in _of_kind(resources, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                ports = {port["name"] for port in services.get(backend["name"], {}).get("ports", ())}
                if backend["port"]["name"] not in ports:
                    yield f"Ingress: there is no service {backend['name']} with a port {backend['port']['name']}"


def _unchanged(resources: Sequence[Resource]) -> Iterator[str]:
    """A server gives back what it was given, so that `kubectl diff` shows nothing but what somebody changed."""
    for resource in resources:
        yield from differences(resource)


def _budgets(resources: Sequence[Resource]) -> Iterator[str]:
    """A drain ends, also where an aggregator crashes again and again: then by default nothing may be evicted."""
    for budget in _of_kind(resources, "PodDisruptionBudget"):
        if budget["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield (
                f"PodDisruptionBudget/{budget['metadata']['name']}: an aggregator that never gets ready blocks drains;"
                " unhealthyPodEvictionPolicy must be AlwaysAllow"
            )


def _killed(resources: Sequence[Resource]) -> Iterator[str]:
    """Of a worker that was killed the others hear soon, where no proxy closes connections by itself."""
    if _of_kind(resources, "Ingress"):
        return
    for pod in pods(resources):
        timeout = pod.environ.get("PSUM_CLOSED_TIMEOUT", "")
        if pod.is_aggregator and not 0 < float(timeout.removesuffix("s") or "inf") <= _CLOSED_SECONDS:
            yield f"{pod.owner}: of a worker that was killed the others hear late; PSUM_CLOSED_TIMEOUT is {timeout!r}"


def _updates(resources: Sequence[Resource]) -> Iterator[str]:
    """An apply updates all aggregators, and each of them finds a node when its own is gone."""
    for resource in _of_kind(resources, "StatefulSet"):
        name, spec = f"StatefulSet/{resource['metadata']['name']}", resource["spec"]
        if spec.get("updateStrategy", {}).get("rollingUpdate", {}).get("partition") != 0:
            yield f"{name}: a partition that was set by hand would stay; state partition: 0"
        affinity = spec["template"]["spec"].get("affinity", {}).get("podAntiAffinity", {})
        if "requiredDuringSchedulingIgnoredDuringExecution" in affinity:
            yield f"{name}: an aggregator whose node is gone would wait for a spare one; prefer to keep them apart"


def _namespaces(resources: Sequence[Resource]) -> Iterator[str]:
    """Whoever deletes what was applied keeps tokens and trainings."""
    for namespace in _of_kind(resources, "Namespace"):
        yield f"Namespace/{namespace['metadata']['name']}: `kubectl delete -k` would delete all that is in it"


def _jobs(resources: Sequence[Resource]) -> Iterator[tuple[str, Resource]]:
    """All Jobs with workers, by themselves or in a set: name and specification."""
    for job in _of_kind(resources, "Job"):
        yield f"Job/{job['metadata']['name']}", job["spec"]
    for job_set in _of_kind(resources, "JobSet"):
        for job in job_set["spec"]["replicatedJobs"]:
            if job["name"] in job_set["spec"]["successPolicy"]["targetReplicatedJobs"]:
                yield f"JobSet/{job_set['metadata']['name']}/{job['name']}", job["template"]["spec"]


def _replaced(resources: Sequence[Resource]) -> Iterator[str]:
    """A worker that fails or is evicted is replaced within seconds, and a job that is over goes away by itself."""
    for name, spec in _jobs(resources):
        if spec.get("podReplacementPolicy") == "Failed" or "podFailurePolicy" in spec:
            # The second brings the first with it.
            yield f"{name}: a worker on a node that is gone would never be replaced (podReplacementPolicy: Failed)"
        if "backoffLimit" in spec or not spec.get("backoffLimitPerIndex"):
            yield f"{name}: all workers would share one delay, doubled by each failure; set backoffLimitPerIndex"
        if spec.get("maxFailedIndexes") != 0:
            yield f"{name}: when one worker is given up, the others would wait for it; set maxFailedIndexes: 0"
    for resource in _of_kind(resources, "Job", "JobSet"):
        if not resource["spec"].get("ttlSecondsAfterFinished"):
            name = f"{resource['kind']}/{resource['metadata']['name']}"
            yield f"{name}: it would stay for ever; set ttlSecondsAfterFinished"


#: What is looked at in all resources together.
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
)


def _security(pod: Pod) -> Iterator[str]:
    """It is not root, can become nobody else, writes nowhere and knows nothing of the cluster."""
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
    """Its image is that of this version."""
    name, _, tag = pod.container["image"].rpartition(":")
    if not name or tag != VERSION:
        yield f"image {pod.container['image']}, expected the tag {VERSION}"


def _settings(pod: Pod) -> Iterator[str]:
    """Its environment has settings that psum knows, once each, with values that it takes."""
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
    """Its resources are amounts, and it cannot use more memory than it asked for."""
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
    """It asks for nothing that its image cannot use: without such a device it would never be scheduled."""
    for kind in pod.container["resources"].get("limits", {}):
        if kind not in ("cpu", "memory"):
            yield f"it asks for {kind}, which its image cannot use"


def _moves(pod: Pod) -> Iterator[str]:
    """When its node is gone it is started elsewhere soon; by default that takes five minutes."""
    tolerated = {t.get("key"): t.get("tolerationSeconds") for t in pod.spec.get("tolerations", ())}
    for key in _GONE:
        if not 0 <= (seconds := tolerated.get(key, 300)) <= _GONE_SECONDS:
            yield f"it stays for {seconds} s on a node that is {key}; tolerate that for {_GONE_SECONDS} s"


def _waits(pod: Pod) -> Iterator[str]:
    """When it is replaced, the new one waits for the end of the old one for as long as that can take."""
    timeout = WorkerSettings.from_environment(pod.environ).rank_timeout
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
    if timeout < grace + CLOSING_SECONDS:
        yield f"PSUM_RANK_TIMEOUT is {timeout:g} s; the one before may take {grace} s and {CLOSING_SECONDS} s to end"


def _volumes(pod: Pod) -> Iterator[str]:
    """Files that settings name are in secrets that it has, whole folders of them, so that they are renewed."""
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", ())}
    mounts = pod.container.get("volumeMounts", ())
    if {mount["name"] for mount in mounts} != volumes.keys():
        yield f"volumes {sorted(volumes)}, but mounts {sorted(mount['name'] for mount in mounts)}"
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
    """It listens on the ports that it says it has, where others reach them."""
    settings, ports = pod.environ, _container_ports(pod)
    for name, address in (("grpc", settings["PSUM_LISTEN"]), ("http", settings["PSUM_HTTP"])):
        if address != f"0.0.0.0:{ports[name]}":
            yield f"it listens on {address}, but its port {name} is {ports[name]}"
    if settings["PSUM_DATA_PORT"] != str(ports["data"]):
        yield f"its data port is {settings['PSUM_DATA_PORT']}, but its port data is {ports['data']}"
    if not {"livenessProbe", "readinessProbe"} <= pod.container.keys():
        yield "it is not probed"


def _ending(pod: Pod) -> Iterator[str]:
    """It has the time to finish its rounds before it is killed."""
    grace = AggregatorSettings.from_environment(pod.environ).grace
    if pod.spec.get("terminationGracePeriodSeconds", 30) < grace + CLOSING_SECONDS:
        yield f"it may be killed before it has finished its rounds, {grace:g} s, and closed, {CLOSING_SECONDS} s"


def _room(pod: Pod) -> Iterator[str]:
    """Its budget leaves a fifth of its memory for everything else, and it has a processor for each thread."""
    settings = AggregatorSettings.from_environment(pod.environ)
    resources = pod.container["resources"]
    if not 0 < settings.memory_budget <= 0.8 * quantity(resources["limits"]["memory"]):
        yield f"a budget of {settings.memory_budget} bytes in {resources['limits']['memory']}"
    if settings.threads > quantity(resources["requests"]["cpu"]):
        yield f"{settings.threads} threads on {resources['requests']['cpu']} processors"


def _patience(pod: Pod) -> Iterator[str]:
    """It keeps its workers' places for as long as some of them may look for it at the address that it had before."""
    timeout = AggregatorSettings.from_environment(pod.environ).worker_timeout
    if timeout < 2 * DNS_TTL_SECONDS:
        yield (
            f"PSUM_WORKER_TIMEOUT is {timeout:g} s; a worker may be told an old address for {DNS_TTL_SECONDS} s, and"
            " then needs time to connect: twice that"
        )
