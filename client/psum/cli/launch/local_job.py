"""Run a whole job on this machine."""

import functools

from psum.cli.launch.elastic_fleet import ElasticFleet
from psum.cli.launch.fleet import LocalFleet
from psum.cli.launch.job import LocalJob
from psum.cli.launch.store_port import StorePort
from psum.cli.launch.supervise import supervise


async def run(job: LocalJob) -> int:
    """Run a job to its end. Show its output, report failures, and leave no process running.

    SIGINT, SIGTERM and SIGHUP end everything. A second signal skips the grace period.

    Returns:
        The exit status: that of the worker that failed first, as a shell would report it; 128 + the number of the
        signal that ended everything; or 0. Of an elastic job it is 0 too if enough workers have ended well.
    """
    kind = LocalFleet if job.elastic is None else ElasticFleet
    with StorePort() as port:
        return await supervise(functools.partial(kind, job, port.number))
