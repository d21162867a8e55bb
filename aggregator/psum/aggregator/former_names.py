"""Former names of an aggregator's variables that are only a worker's now: when they still count, and what is warned.

An aggregator and its workers once used the same names for different files. If PSUM_TLS_CA was exported for workers, an
aggregator that was started in the same shell required certificates of its workers, which had none.
"""

from collections.abc import Mapping
from typing import Any, Final

#: The former names of an aggregator's certificate and key. A worker may have such a pair too.
_OLD_PAIR: Final = ("PSUM_TLS_CERT", "PSUM_TLS_KEY")

_OLD_CA: Final = "PSUM_TLS_CA"

_OWN: Final = {
    "tls_cert": "PSUM_AGGREGATOR_TLS_CERT",
    "tls_key": "PSUM_AGGREGATOR_TLS_KEY",
    "tls_client_ca": "PSUM_AGGREGATOR_TLS_CLIENT_CA",
}


def without_workers_files(environ: Mapping[str, str], given: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Removes a worker's TLS files from the environment.

    The former names count together: if certificate and key are given by them, so is the authority. An aggregator that
    has its certificate from a flag or a name of its own takes no file from a former name.

    Args:
        environ: The environment.
        given: The values of flags, by field name.

    Returns:
        The environment without the ignored variables, and remarks for the operator.
    """
    by_flag = [field for field in _OWN if given.get(field) is not None]
    by_name = [field for field, variable in _OWN.items() if environ.get(variable)]
    has_certificate = not {"tls_cert", "tls_key"}.isdisjoint((*by_flag, *by_name))
    if has_certificate:
        dropped: tuple[str, ...] = (*_OLD_PAIR, _OLD_CA)
    elif all(environ.get(variable) for variable in _OLD_PAIR):
        dropped = ()
    else:
        # An authority without a certificate is no valid setting of an aggregator, so it is meant for workers.
        dropped = (_OLD_CA,)
    remarks = []
    if has_certificate and "tls_client_ca" not in (*by_flag, *by_name) and environ.get(_OLD_CA):
        # It counted in earlier versions, and an operator may rely on it.
        remarks.append(
            f"{_OLD_CA}={environ[_OLD_CA]} is a worker's setting and does not count here: workers are not asked for"
            f" certificates. To ask for them, give --tls-client-ca or {_OWN['tls_client_ca']}; otherwise unset"
            f" {_OLD_CA} for this process"
        )
    return {variable: value for variable, value in environ.items() if variable not in dropped}, remarks
