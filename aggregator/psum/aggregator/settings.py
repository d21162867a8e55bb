"""An aggregator's settings: read from the environment, and checked."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from psum.aggregator.declared_settings import DeclaredSettings
from psum.aggregator.doubtful_settings import doubts
from psum.aggregator.exposed_addresses import exposed
from psum.aggregator.former_names import without_workers_files
from psum.aggregator.process_addresses import nth_address, nth_port
from psum.runtime import TlsFiles, load
from psum.wire import split_address


@dataclasses.dataclass(frozen=True)
class Settings(DeclaredSettings):
    """The settings of one aggregator. Every field is a flag of `psum aggregator` and an environment variable."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> "Settings":
        """The settings from the environment. Those given here take precedence (text is parsed, None is ignored).

        Raises:
            ConfigurationError: Some settings are wrong; it lists all mistakes.
        """
        own, remarks = without_workers_files(environ, given)
        return load(cls, own, given, remarks)

    @property
    def tls(self) -> TlsFiles:
        """The files for TLS; empty without TLS."""
        return TlsFiles(ca=self.tls_client_ca, cert=self.tls_cert, key=self.tls_key, ca_setting="tls_client_ca")

    def _ports(self, process: int) -> Iterator[tuple[str, str, int]]:
        """The ports that one process needs, each with its setting and host; 0 for any free one.

        Raises:
            ValueError: There is no such port.
        """
        hosts = []
        for address in self.listen:
            # A further unix socket may have too long a path.
            own = nth_address(address, process)
            if not own.startswith("unix:"):
                hosts.append(split_address(own)[0])
                yield "listen", *split_address(own)
        for host in dict.fromkeys(hosts):
            yield "data_port", host, nth_port(self.data_port, process)

    def _ports_twice(self) -> Iterator[str]:
        """A sentence for each pair of settings with the same port, and for a port that does not exist."""
        ports: list[tuple[str, str, int]] = []
        for process in range(self.processes):
            of = f" of process {process}" if process else ""
            try:
                ports += [(f"{name}{of}", host, port) for name, host, port in self._ports(process)]
            except ValueError as error:
                yield f"processes={self.processes}: {error}"
                return
            if not process and self.http:
                ports.append(("http", *split_address(self.http)))
        for number, (name, host, port) in enumerate(ports):
            for other, other_host, other_port in ports[:number]:
                if port and port == other_port and (host == other_host or {host, other_host} & {"0.0.0.0", "::"}):
                    yield f"{other} and {name}: both are port {port} on {host}; each needs one of its own"
                    break

    def mistakes(self) -> Iterator[str]:
        """A sentence for each mistake in the combination of values."""
        if not self.listen:
            yield "listen: at least one address is needed"
        if self.elastic_closed_timeout > self.elastic_timeout:
            yield (
                f"a worker whose connection was closed would be waited for longer, {self.elastic_closed_timeout:g} s"
                f" (PSUM_ELASTIC_CLOSED_TIMEOUT), than one that is silent, {self.elastic_timeout:g} s"
                " (PSUM_ELASTIC_TIMEOUT)"
            )
        if self.credit_bytes < 1:
            yield "a credit of 0 bytes would let nothing pass to other aggregators (PSUM_CREDIT_BYTES)"
        if bool(self.tls_cert) is not bool(self.tls_key):
            yield (
                "tls_cert and tls_key: both are needed, or none"
                " (PSUM_AGGREGATOR_TLS_CERT and PSUM_AGGREGATOR_TLS_KEY, or flags)"
            )
        if self.tls_client_ca and not self.tls_cert:
            yield (
                f"tls_client_ca={self.tls_client_ca}: to ask workers for certificates, this side needs tls_cert and"
                " tls_key"
            )
        yield from self._ports_twice()
        if not self.insecure:
            yield from exposed(self)

    def warnings(self) -> Iterator[str]:
        """A sentence for each valid but unlikely setting."""
        yield from self.remarks
        yield from doubts(self)
