"""The files that TLS needs, checked in words before gRPC sees them."""

import dataclasses
import ssl

from psum.runtime.watched_files import read_file
from psum.wire.errors import ConfigurationError


@dataclasses.dataclass(frozen=True, slots=True)
class Pem:
    """The contents of TLS files; None where there is no such file."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None


@dataclasses.dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files, empty where there is none.

    Attributes:
        ca: Certificates of the authorities that the other side's certificate must come from.
        cert: This side's certificate, followed by those between it and its authority.
        key: The private key of that certificate, not encrypted.
        ca_setting: What the setting is called that names `ca`.
    """

    ca: str
    cert: str
    key: str
    ca_setting: str = "tls_ca"

    def __bool__(self) -> bool:
        """Whether there are any, hence TLS is spoken."""
        return bool(self.paths)

    @property
    def paths(self) -> tuple[str, ...]:
        """Those that there are."""
        return tuple(path for path in (self.ca, self.cert, self.key) if path)

    def read(self) -> Pem:
        """Reads and checks the files.

        Raises:
            ConfigurationError: One cannot be read, is not what it should be, or certificate and key do not belong
                together.
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
                # The password is for an encrypted key: without it, the user would be asked at the terminal.
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
