"""The resources that kustomize renders from deploy/kubernetes, and their pods."""

import dataclasses
import functools
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

ROOT = pathlib.Path(__file__).parent.parent.parent
KUBERNETES = ROOT / "deploy/kubernetes"

VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

Resource = dict[str, Any]

#: The renderings that are tested, each with the folders that it combines: all overlays and workers as they are, and
#: each component that no overlay uses, on top of one of them.
RENDERED = {
    "single-node": ("overlays/single-node",),
    "production": ("overlays/production",),
    "own-certificates": ("overlays/own-certificates",),
    "production, large": ("overlays/production", "components/large-fleet"),
    "production, processes": ("overlays/production", "components/stable-addresses", "components/processes"),
    "relays, processes": ("overlays/relays", "components/processes"),
    "production, behind an ingress": ("overlays/production", "components/ingress"),
    "workers/indexed-job": ("workers/indexed-job",),
    "workers/elastic": ("workers/elastic",),
    "workers/single-node": ("workers/single-node",),
    "workers/jobset": ("workers/jobset",),
    "workers/kueue": ("workers/kueue",),
    "workers/volcano": ("workers/volcano",),
    "workers/mxjob": ("workers/mxjob",),
    "production, stable addresses": ("overlays/production", "components/stable-addresses"),
    "production, pull secret and priority": ("overlays/production", "components/pull-secret", "components/priority"),
    "workers/indexed-job, stable addresses": ("workers/indexed-job", "components/worker-stable-addresses"),
    "workers/indexed-job, pull secret and priority": (
        "workers/indexed-job",
        "components/pull-secret",
        "components/worker-priority",
    ),
    "workers/indexed-job, GPU": ("workers/indexed-job", "components/worker-gpu"),
    "relays": ("overlays/relays",),
    "own-certificates, relays": ("overlays/own-certificates", "components/relay", "components/priority"),
    "workers/node-relay": ("workers/node-relay",),
    "workers/pod-relay": ("workers/pod-relay",),
}


@dataclasses.dataclass(frozen=True)
class Pod:
    """A pod as a resource's controller would make it, seen from one of its containers.

    A pod with several containers is several of these, with the same name.

    Attributes:
        owner: The resource, as kind/name.
        name: The pod's name. For a Job's pod this is the host name, which lacks the random suffix of the pod's name.
        subdomain: The service under which DNS has the pod's name; '' if there is none.
        labels: Its labels, including those that its controller adds.
        spec: Its specification.
        container: The container.
        given: The environment variables that the pod's controller adds.
    """

    owner: str
    name: str
    subdomain: str
    labels: dict[str, str]
    spec: Resource
    container: Resource
    given: dict[str, str]

    @property
    def is_aggregator(self) -> bool:
        """Whether it is an aggregator; else it is a worker."""
        return "psum-aggregator" in self.container["image"]

    @property
    def streams(self) -> set[str]:
        """The names of an aggregator's ports for streams and data connections: two for each of its processes."""
        names = (port["name"] for port in self.container.get("ports", ()))
        return {"grpc", "data"} | {name for name in names if name.partition("-")[0] in ("grpc", "data")}

    @property
    def is_relay(self) -> bool:
        """Whether it is an aggregator that workers do not list: the relay of a node, or of their own pod."""
        return self.is_aggregator and (self.owner.startswith("DaemonSet/") or self.is_sidecar)

    @property
    def is_sidecar(self) -> bool:
        """Whether the container starts before the pod's other containers and ends after them."""
        return self.container.get("restartPolicy") == "Always"

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its container."""
        return self.given | {entry["name"]: entry["value"] for entry in self.container.get("env", ())}


@functools.cache
def kustomize(*folders: str) -> tuple[Resource, ...]:
    """Renders folders under deploy/kubernetes together: the first is a resource, the others are components."""
    kubectl = pathlib.Path(sys.executable).with_name("kubectl")
    with tempfile.TemporaryDirectory() as scratch:
        target: pathlib.Path | str = KUBERNETES / folders[0]
        if len(folders) > 1:
            first, *others = (os.path.relpath(KUBERNETES / folder, os.path.realpath(scratch)) for folder in folders)
            # Set the namespace, as a user's own overlay does: a component's resources have none.
            text = yaml.safe_dump({"namespace": "psum", "resources": [first], "components": others})
            pathlib.Path(scratch, "kustomization.yaml").write_text(text)
            target = scratch
        done = subprocess.run([kubectl, "kustomize", target], capture_output=True, text=True, timeout=60)
    # kustomize warns about deprecated fields, but still succeeds.
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def rendered(name: str) -> tuple[Resource, ...]:
    """Returns the resources of one of RENDERED."""
    return kustomize(*RENDERED[name])


def patched(resource: Resource, command: str) -> Resource:
    """Returns a resource as a `kubectl patch` command changes it. No server is asked.

    Args:
        resource: The resource. The command names its kind, name and namespace.
        command: The command as one types it.
    """
    kubectl = pathlib.Path(sys.executable).with_name("kubectl")
    metadata = resource["metadata"]
    named = ["kubectl", "-n", metadata["namespace"], "patch", resource["kind"].lower(), metadata["name"]]
    words = shlex.split(command)
    assert words[: len(named)] == named, f"the command is not for {resource['kind']}/{metadata['name']}: {command}"
    done = subprocess.run(
        [kubectl, "patch", "--local", "-f", "-", "-o", "yaml", *words[len(named) :]],
        input=yaml.safe_dump(resource),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    result: Resource = yaml.safe_load(done.stdout)
    return result


def pods(resources: Sequence[Resource]) -> Iterator[Pod]:
    """Yields all pods of the resources."""
    for resource in resources:
        owner, spec = f"{resource['kind']}/{resource['metadata']['name']}", resource.get("spec", {})
        match resource["kind"]:
            case "StatefulSet":
                for ordinal in range(spec["replicas"]):
                    name = f"{resource['metadata']['name']}-{ordinal}"
                    labels = {"statefulset.kubernetes.io/pod-name": name}
                    yield from _pod(owner, spec["template"], name, labels, subdomain=spec["serviceName"])
            case "DaemonSet":
                # One node stands for all.
                yield from _pod(owner, spec["template"], f"{resource['metadata']['name']}-node")
            case "Job":
                yield from _indexed(owner, spec, resource["metadata"]["name"])
            case "JobSet":
                for job in spec["replicatedJobs"]:
                    name = f"{resource['metadata']['name']}-{job['name']}-0"
                    subdomain = resource["metadata"]["name"] if spec["network"]["enableDNSHostnames"] else ""
                    yield from _indexed(f"{owner}/{job['name']}", job["template"]["spec"], name, subdomain)
            case "MXJob":
                (replicas,) = spec["mxReplicaSpecs"].values()
                for index in range(replicas["replicas"]):
                    # The training operator sets these values if there is no scheduler.
                    yield from _pod(
                        owner,
                        replicas["template"],
                        f"{resource['metadata']['name']}-worker-{index}",
                        given={
                            "DMLC_PS_ROOT_URI": "",
                            "DMLC_PS_ROOT_PORT": "0",
                            "DMLC_NUM_SERVER": "0",
                            "DMLC_NUM_WORKER": str(replicas["replicas"]),
                            "DMLC_WORKER_ID": str(index),
                            "DMLC_ROLE": "worker",
                            "DMLC_USE_KUBERNETES": "1",
                        },
                    )


def of_kind(kind: str, resources: Iterable[Resource]) -> Resource:
    """The first resource of a kind."""
    return next(resource for resource in resources if resource["kind"] == kind)


@dataclasses.dataclass(frozen=True)
class Image:
    """What an image of deploy/containers says about the processes that run in it.

    Attributes:
        command: The command that it runs.
        environ: Its environment variables except PATH.
        files: Files of the repository that are copied unchanged, by their paths in the image.
    """

    command: list[str]
    environ: dict[str, str]
    files: dict[str, pathlib.Path]


@functools.cache
def image(name: str) -> Image:
    """Reads the final stage in the Containerfile of the image "aggregator" or "worker"."""
    text = (ROOT / f"deploy/containers/{name}.Containerfile").read_text()
    final = text.rpartition("\nFROM ")[2].replace("\\\n", " ")
    (command,) = re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", final, re.MULTILINE)
    (variables,) = re.findall(r"^ENV (.*)$", final, re.MULTILINE)
    environ = dict(entry.split("=", 1) for entry in variables.split())
    del environ["PATH"]
    files = re.findall(r"^COPY (?!--)(\S+) (\S+)$", final, re.MULTILINE)
    return Image(yaml.safe_load(command), environ, {target: ROOT / source for source, target in files})


def _indexed(owner: str, spec: Resource, name: str, subdomain: str = "") -> Iterator[Pod]:
    for index in range(spec["completions"]):
        given = {"JOB_COMPLETION_INDEX": str(index)}
        yield from _pod(owner, spec["template"], f"{name}-{index}", given=given, subdomain=subdomain)


def _pod(
    owner: str,
    template: Resource,
    name: str,
    labels: dict[str, str] | None = None,
    given: dict[str, str] | None = None,
    subdomain: str = "",
) -> Iterator[Pod]:
    labels = template["metadata"]["labels"] | (labels or {})
    spec = template["spec"]
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        yield Pod(owner, name, subdomain, labels, spec, container, given or {})
