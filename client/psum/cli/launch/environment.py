"""The environment variables of a job's processes."""

import os
from collections.abc import Mapping, Sequence
from typing import Final

#: Variables that processes do not inherit because they would contradict this job: TLS files for other aggregators, and
#: rank, size and role in the names of other systems. DMLC_ROLE would make `import mxnet` a server.
_FOREIGN: Final = (
    "PSUM_TLS_CA",
    "PSUM_TLS_CERT",
    "PSUM_TLS_KEY",
    "PSUM_TLS_SERVER_NAME",
    "PSUM_AGGREGATOR_TLS_CERT",
    "PSUM_AGGREGATOR_TLS_KEY",
    "PSUM_AGGREGATOR_TLS_CLIENT_CA",
    "DMLC_ROLE",
    "DMLC_NUM_WORKER",
    "DMLC_WORKER_ID",
    "DMLC_NUM_SERVER",
    "BYTEPS_GLOBAL_RANK",
    "BYTEPS_LOCAL_RANK",
    "BYTEPS_LOCAL_SIZE",
    "JOB_COMPLETION_INDEX",
    # torchrun's, which would make all workers wait for a store that its agent has.
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_NAME",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "TORCHELASTIC_MAX_RESTARTS",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
)


def common_environment(environ: Mapping[str, str], token_file: str, shm_directory: str) -> dict[str, str]:
    """Return the variables that workers and aggregators share.

    Args:
        environ: Additional variables.
        token_file: The file with the job's token.
        shm_directory: The directory for shared memory, empty for the default.
    """
    inherited = {variable: value for variable, value in os.environ.items() if variable not in _FOREIGN}
    host = {"PSUM_SHM_DIRECTORY": shm_directory} if shm_directory else {}
    return {
        **inherited,
        **environ,
        **host,
        "PSUM_TOKEN_FILE": token_file,
        "PSUM_AGGREGATOR_TOKEN_FILE": token_file,
    }


def worker_environment(
    *, job: str, addresses: Sequence[str], rank: int, num_workers: int, plane: str, fault_file: str, store_port: int
) -> dict[str, str]:
    """Return the additional variables of a worker, in psum's names and in those of torch.distributed."""
    return {
        # Show lines as soon as they are printed.
        "PYTHONUNBUFFERED": os.environ.get("PYTHONUNBUFFERED") or "1",
        "PSUM_JOB": job,
        "PSUM_AGGREGATORS": ",".join(addresses),
        "PSUM_RANK": str(rank),
        "PSUM_NUM_WORKERS": str(num_workers),
        "PSUM_LOCAL_RANK": str(rank),
        "PSUM_LOCAL_SIZE": str(num_workers),
        # All of the job is on this host. The environment may name a relay of another fleet.
        "PSUM_RELAY": "off",
        "PSUM_PLANE": plane,
        "PSUM_FAULT_FILE": fault_file,
        "RANK": str(rank),
        "WORLD_SIZE": str(num_workers),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(num_workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store_port),
    }
