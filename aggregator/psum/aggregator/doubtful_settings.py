"""Warnings about settings of an aggregator that work but are probably not meant."""

from collections.abc import Iterator
from typing import Final

from psum.aggregator.declared_settings import DeclaredSettings
from psum.aggregator.exposed_addresses import exposed
from psum.runtime import declarations

#: A smaller budget probably lacks its unit.
_LEAST_BUDGET_BYTES: Final = 1 << 20

#: The effects of settings that come by an old name, for the warning.
_EFFECTS: Final = {
    "insecure": "anybody who reaches its addresses can read and change sums",
    "tls_cert": "it shows this certificate to workers",
    "tls_key": "it uses this key",
    "tls_client_ca": "workers must bring a certificate from this authority",
    "token_file": "workers must bring a token from this file",
}


def doubts(settings: DeclaredSettings) -> Iterator[str]:
    """Yields a sentence for each doubt: what will happen, and what to change."""
    for name, declared in declarations(DeclaredSettings).items():
        old = settings.sources.get(name)
        if old in declared.deprecated and (name != "insecure" or any(exposed(settings))):
            yield (
                f"{old} is a worker's setting, and is taken for this aggregator's own as before: {_EFFECTS[name]}."
                f" If that is meant, call it {declared.variables[0]}; otherwise unset {old} for this process"
            )
    if settings.tls_cert and all(address.startswith("unix:") for address in settings.listen):
        yield "tls_cert has no effect: TLS is not spoken on unix sockets, and there is no other address"
    if 0 < settings.memory_budget < _LEAST_BUDGET_BYTES:
        yield (
            f"a memory budget of {settings.memory_budget} bytes holds hardly any key; is a unit missing, as in 8GiB?"
            " (PSUM_MEMORY_BUDGET)"
        )
    if settings.round_timeout <= settings.worker_timeout and "round_timeout" in settings.sources:
        yield (
            f"a round fails after {settings.round_timeout:g} s (PSUM_ROUND_TIMEOUT), before a vanished worker is given"
            f" up after {settings.worker_timeout:g} s (PSUM_WORKER_TIMEOUT): errors will name a slow worker where one"
            " has died"
        )
    if settings.warn_after >= settings.round_timeout and "warn_after" in settings.sources:
        yield (
            f"a round that waits is reported after {settings.warn_after:g} s (PSUM_WARN_AFTER), but fails after"
            f" {settings.round_timeout:g} s (PSUM_ROUND_TIMEOUT): no report will come before"
        )
    if 2 * settings.keepalive > settings.round_timeout and "keepalive" in settings.sources:
        yield (
            f"a silent connection is given up after twice {settings.keepalive:g} s (PSUM_KEEPALIVE), but a round fails"
            f" after {settings.round_timeout:g} s (PSUM_ROUND_TIMEOUT): errors will name a slow worker where a"
            " connection is broken"
        )
