"""Variables that were an aggregator's too, and are a worker's alone now: when they still count, and what is said then.

An aggregator and its workers had the same names for different things. With PSUM_TLS_CA exported for workers, an
aggregator that was started in the same shell asked its workers for certificates that they did not have.
"""

from collections.abc import Mapping
from typing import Any, Final

#: The pair that is an aggregator's certificate under the old names; a worker may have such a pair too.
_OLD_PAIR: Final = ("PSUM_TLS_CERT", "PSUM_TLS_KEY")

_OLD_CA: Final = "PSUM_TLS_CA"

_OWN: Final = {
    "tls_cert": "PSUM_AGGREGATOR_TLS_CERT",
    "tls_key": "PSUM_AGGREGATOR_TLS_KEY",
    "tls_client_ca": "PSUM_AGGREGATOR_TLS_CLIENT_CA",
}


def without_workers_files(environ: Mapping[str, str], given: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The environment as an aggregator reads it, without the files for TLS that are a worker's, and remarks on that.

    The old names count as a whole: where certificate and key both come by them, so does the authority. An aggregator
    that has its certificate by a flag or by a name of its own takes no file by an old name.

    Args:
        environ: The environment.
        given: What flags say, by field name.
    """
    by_flag = [field for field in _OWN if given.get(field) is not None]
    by_name = [field for field, variable in _OWN.items() if environ.get(variable)]
    has_certificate = not {"tls_cert", "tls_key"}.isdisjoint((*by_flag, *by_name))
    if has_certificate:
        dropped: tuple[str, ...] = (*_OLD_PAIR, _OLD_CA)
    elif all(environ.get(variable) for variable in _OLD_PAIR):
        dropped = ()
    else:
        # No aggregator could be started with an authority alone: it is there for workers.
        dropped = (_OLD_CA,)
    remarks = []
    if has_certificate and "tls_client_ca" not in (*by_flag, *by_name) and environ.get(_OLD_CA):
        # It counted until now, so whoever relied on it must hear of it.
        remarks.append(
            f"{_OLD_CA}={environ[_OLD_CA]} is a worker's setting and does not count here: workers are not asked for"
            f" certificates. To ask for them, give --tls-client-ca or {_OWN['tls_client_ca']}; otherwise unset"
            f" {_OLD_CA} for this process"
        )
    return {variable: value for variable, value in environ.items() if variable not in dropped}, remarks
