"""Finds fields that an API server drops or stores in another form than the manifest's.

With such a field, `kubectl diff` is never empty, or `kubectl apply` never says "unchanged". Tools that compare a
cluster with a repository then report a difference that nobody made.
"""

import re
from collections.abc import Iterator
from typing import Any

from tests.deploy.manifests import Resource

#: Fields that the server keeps even if they are empty, 0 or false, because these values matter. It drops all others.
_KEPT = {
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "backoffLimit",
    "emptyDir",
    "enableServiceLinks",
    "maxFailedIndexes",
    "namespaceSelector",
    "partition",
    "podSelector",
    "selfSigned",
}

#: Fields with free text or with data that Kubernetes does not interpret.
_OPAQUE = {"annotations", "data", "labels", "matchLabels"}

_QUANTITIES = {"requests", "limits", "minResources"}
_QUANTITY = re.compile(r"(\d+)(?:\.(\d+))?(m|[kMGTPE]|[KMGTPE]i)?")
_DECIMAL = ["m", "", "k", "M", "G", "T", "P", "E"]
_BINARY = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]

#: Durations, which cert-manager writes in the format of Go.
_DURATIONS = {"duration", "renewBefore"}
_GO_DURATION = re.compile(r"(\d+h)?([0-5]?\dm)?([0-5]?\ds)")


def differences(resource: Resource) -> Iterator[str]:
    """Yields the fields that a server would return in another form, each with what to write instead."""
    name = f"{resource['kind']}/{resource['metadata']['name']}"
    for path, text in _walk(resource, ""):
        yield f"{name}: {path.lstrip('.')} {text}"
    if resource["kind"] == "NetworkPolicy":
        for way in ("ingress", "egress"):
            for rule in resource["spec"].get(way) or ():
                # The list is replaced as a whole. The server's list has more in it, so every apply would send it again.
                if any("protocol" not in port for port in rule.get("ports", ())):
                    yield f"{name}: a port without its protocol, which the server adds: say TCP"


def canonical(text: str) -> str:
    """Returns a quantity as Kubernetes writes it: 1 for 1000m, 500m for 0.5, 1Gi for 1024Mi, 2k for 2000.

    Raises:
        ValueError: The text is not a quantity.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an amount such as 2, 500m or 4Gi")
    whole, fraction, unit = match[1], match[2] or "", match[3] or ""
    units, base = (_BINARY, 1024) if unit.endswith("i") else (_DECIMAL, 1000)
    step = units.index(unit)
    # Use smaller units until the number is an integer, then the largest unit in which it still is one.
    numerator, denominator = int(whole + fraction), 10 ** len(fraction)
    while numerator % denominator and step > 0:
        numerator, step = numerator * base, step - 1
    if numerator % denominator:
        raise ValueError(f"{text!r} is finer than Kubernetes counts")
    number = numerator // denominator
    while number and number % base == 0 and step + 1 < len(units):
        number, step = number // base, step + 1
    return f"{number}{units[step]}"


def _walk(value: Any, path: str) -> Iterator[tuple[str, str]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        here = f"{path}.{key}" if isinstance(value, dict) else f"{path}[{key}]"
        if key in _OPAQUE:
            if not item:
                yield here, "is empty, which the server drops: leave it out"
        elif not item and key not in _KEPT:
            yield here, f"is {item!r}, which the server drops: leave it out"
        elif key in _DURATIONS and isinstance(item, str) and not _GO_DURATION.fullmatch(item):
            yield here, f"is {item}, which cert-manager writes with all its parts, as in 720h0m0s"
        elif key in _QUANTITIES and isinstance(item, dict):
            for name, amount in item.items():
                yield from _amount(f"{here}.{name}", amount)
        elif key in ("sizeLimit", "nominalQuota"):
            yield from _amount(here, item)
        else:
            yield from _walk(item, here)


def _amount(path: str, amount: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(amount, str):
        yield path, f"is the number {amount}, which the server makes text: quote it"
        return
    try:
        expected = canonical(amount)
    except ValueError as error:
        yield path, str(error)
    else:
        if amount != expected:
            yield path, f"is {amount}, which the server writes as {expected}"
