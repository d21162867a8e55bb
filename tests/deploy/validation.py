"""The parts of the manifests that Kubernetes' own schemas describe, and the versions of these."""

import kubernetes_validate

from tests.deploy.manifests import (
    Resource,
)

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
