"""The files for TLS, checked with clear errors before gRPC reads them."""

import dataclasses
import ssl

from psum.runtime.watched_files import read_file
from psum.wire.errors import ConfigurationError


@dataclasses.dataclass(frozen=True, slots=True)
class Pem:
    """The contents of TLS files, each None if there is no such file."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None


@dataclasses.dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files, each empty if there is no such file.

    Attributes:
        ca: Certificates of the authorities that must have issued the other side's certificate.
        cert: This side's certificate, followed by its intermediate certificates.
        key: The private key of this certificate, not encrypted.
        ca_setting: The name of the setting for `ca`.
    """

    ca: str
    cert: str
    key: str
    ca_setting: str = "tls_ca"

    def __bool__(self) -> bool:
        """Return whether TLS is used, which means that there are any files."""
        return bool(self.paths)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that are not empty."""
        return tuple(path for path in (self.ca, self.cert, self.key) if path)

    def read(self) -> Pem:
        """Read and check the files.

        Raises:
            ConfigurationError: A file cannot be read or has the wrong content, or certificate and key do not match.
        """
        pem = Pem(
            ca=read_file(self.ca, self.ca_setting) if self.ca else None,
            cert=read_file(self.cert, "tls_cert") if self.cert else None,
            key=read_file(self.key, "tls_key") if self.key else None,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca:
            try:
                context.load_verify_locations(cafile=self.ca)
            except (OSError, ValueError) as error:
                text = f"{self.ca_setting}={self.ca}: expected PEM certificates ({_reason(error)})"
                raise ConfigurationError([text]) from None
        if self.cert:
            try:
                # Without a password, OpenSSL would ask for that of an encrypted key on the terminal.
                context.load_cert_chain(self.cert, self.key, password="")
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    [
                        f"tls_cert={self.cert} and tls_key={self.key}: expected a PEM certificate and its private key,"
                        f" not encrypted ({_reason(error)})"
                    ]
                ) from None
        return pem


def _reason(error: BaseException) -> str:
    return getattr(error, "reason", None) or str(error)
