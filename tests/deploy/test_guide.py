"""The instructions of the Kubernetes guide work."""

import functools
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from psum.client import Settings as WorkerSettings
from psum.runtime import parse_destinations
from tests.deploy.checks import mistakes
from tests.deploy.manifests import KUBERNETES, RENDERED, ROOT, of_kind, pods, rendered

PAGES = ("docs/kubernetes.md", "docs/operating.md", "README.md")

#: How long openssl and kubectl may take.
PATIENCE_SECONDS = 40.0


@functools.cache
def guide() -> str:
    """The text of the guide."""
    return (ROOT / "docs/kubernetes.md").read_text()


def blocks(language: str) -> list[str]:
    """The guide's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", guide(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_what_the_pages_name_is_there(page: str) -> None:
    """Files of the repository exist, and so do overlays, components and examples that a page names in short."""
    text = (ROOT / page).read_text()
    for path in re.findall(r"(?<![\w/])(?:deploy|scripts|docs)/[\w./-]*\w", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:overlays|components|workers)/[\w-]+)`", text):
        assert (KUBERNETES / path).is_dir(), path


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_pages_lead_somewhere(page: str) -> None:
    """Each link leads to a file, and to a heading if it names one."""
    folder = (ROOT / page).parent
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", (ROOT / page).read_text()):
        file = folder / target if target else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


def test_every_overlay_component_and_example_is_explained() -> None:
    """The guide names each of them."""
    for file in KUBERNETES.glob("*/*/kustomization.yaml"):
        assert f"`{file.parent.relative_to(KUBERNETES)}`" in guide()


def test_the_overlay_of_ones_own_makes_a_fleet(tmp_path: pathlib.Path) -> None:
    """The ten lines of the guide make a valid fleet when they lie beside a copy of the repository."""
    (text,) = (block for block in blocks("yaml") if "kind: Kustomization" in block)
    assert len([line for line in text.splitlines() if not line.startswith("#")]) == 10
    shutil.copytree(ROOT / "deploy", tmp_path / "psum/deploy")
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet/kustomization.yaml").write_text(text)
    kubectl = pathlib.Path(sys.executable).with_name("kubectl")
    command = [str(kubectl), "kustomize", str(tmp_path / "fleet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    resources = list(yaml.safe_load_all(done.stdout))
    assert mistakes(resources) == []
    fleet = list(pods(resources))
    assert {pod.container["image"] for pod in fleet} == {"registry.your-company.example/ml/psum-aggregator:0.1.0"}
    assert {r["metadata"]["namespace"] for r in resources} == {"psum"}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_certificate_made_by_hand_is_for_the_aggregators(tmp_path: pathlib.Path) -> None:
    """The guide's commands that need no cluster make a certificate, signed by the authority, for the workers' names."""
    (block,) = (block for block in blocks("sh") if "openssl" in block)
    commands = [line for line in block.splitlines() if not line.startswith("kubectl")]
    run = functools.partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    done = run(["sh", "-eu", "-c", "\n".join(commands)])
    assert done.returncode == 0, done.stderr
    assert run(["openssl", "verify", "-CAfile", "ca.crt", "tls.crt"]).stdout == "tls.crt: OK\n"
    for pod in pods(rendered("workers/indexed-job")):
        for address in WorkerSettings.from_environment(pod.environ).aggregators:
            host = address.rpartition(":")[0]
            found = run(["openssl", "x509", "-noout", "-in", "tls.crt", "-checkhost", host])
            assert "does match certificate" in found.stdout, found.stdout
    # The guide makes the secret from the files that the pods mount.
    assert "--from-file=tls.crt --from-file=tls.key --from-file=ca.crt" in block
    assert {"tls.crt", "tls.key", "ca.crt"} <= {file.name for file in tmp_path.iterdir()}


def test_the_ranges_are_ranges() -> None:
    """psum understands every list of aggregators that has a range."""
    found = re.findall(r"[\w.-]+\{[^}]*\}[\w.-]+:\d+", guide())
    assert found
    for text in found:
        assert len(parse_destinations(text)) > 1


def test_numbers_are_those_of_the_manifests() -> None:
    """They say how often workers are replaced, when jobs are removed, and for how long workers try to reconnect."""
    job = of_kind("Job", rendered("workers/indexed-job"))
    assert f"`backoffLimitPerIndex: {job['spec']['backoffLimitPerIndex']}`" in guide()
    assert f"the same worker fails {job['spec']['backoffLimitPerIndex'] + 1} times" in guide()
    job_set = of_kind("JobSet", rendered("workers/jobset"))
    assert job_set["spec"]["failurePolicy"]["maxRestarts"] == 3
    assert "at most three times" in " ".join(guide().split())
    ends = {r["spec"].get("ttlSecondsAfterFinished") for r in (job, job_set)}
    assert ends == {3 * 24 * 3600}
    for name in RENDERED:
        if name.startswith("workers/"):
            for pod in pods(rendered(name)):
                if not pod.is_aggregator:
                    assert WorkerSettings.from_environment(pod.environ).reconnect_timeout == 600, name
