"""The files of certificates and tokens that a test writes, and a sum that needs them."""

import pathlib
from typing import Any

import numpy as np
import trustme

from psum import client as psum

NIGHT, DAY, GENERAL, UNKNOWN = "night-0123456789", "day-0123456789ab", "general-01234567", "unknown-01234567"


class Files:
    """The PEM files and token files of a test.

    Args:
        directory: Where they are written.

    Attributes:
        ca: The file of the authority that issues this test's certificates.
        other_ca: The file of an authority that issued none of them.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.ours, self.others = trustme.CA(), trustme.CA()
        self.ca = self.authority(self.ours, "ours")
        self.other_ca = self.authority(self.others, "others")

    def authority(self, ca: trustme.CA, name: str) -> str:
        return self.write(f"{name}-ca.pem", ca.cert_pem.bytes())

    def write(self, name: str, content: bytes | str) -> str:
        """Replace a file atomically, as Kubernetes does."""
        part = self.directory / f"{name}.part"
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.rename(self.directory / name)
        return str(self.directory / name)

    def certificate(self, name: str, *hosts: str, ca: trustme.CA | None = None, **given: Any) -> dict[str, Any]:
        """Return the settings for a new certificate."""
        issued = (ca or self.ours).issue_cert(*hosts, **given)
        return {
            "tls_cert": self.write(f"{name}.pem", issued.cert_chain_pems[0].bytes()),
            "tls_key": self.write(f"{name}-key.pem", issued.private_key_pem.bytes()),
        }


def total(client: psum.Client) -> float:
    """Return the result of a push-pull of 1."""
    value = np.ones(100_000, np.float32)
    client.store().push_pull("w", value)
    assert (value == value[0]).all()
    return float(value[0])
