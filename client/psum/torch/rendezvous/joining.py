"""Joins a group of torch's processes to a job of psum, and starts aggregators where none are named."""

import atexit
import contextlib
import dataclasses
import datetime
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import psum.client
from psum.client import Client, ConfigurationError, Settings
from psum.runtime import processors, sensible_processes
from psum.torch.rendezvous import this_host
from psum.torch.rendezvous.exchange import Exchange
from psum.torch.rendezvous.names import contradictions, is_elastic, local_place, node, restarts
from psum.torch.rendezvous.own_aggregator import OwnAggregator
from psum.torch.rendezvous.plan import Plan, Report, Starter, advertised, make_plan
from psum.wire import join_address

_log = logging.getLogger(__name__)

#: Stands for aggregators until they are known: psum's settings ask several workers for some.
_ANY: Final = ("127.0.0.1:1",)

#: Variables of the process, which the job of its default group uses.
_PROCESS_VARIABLES: Final = (
    "PSUM_METRICS_PORT",
    "PSUM_TRACE_DIR",
    "PSUM_FAULT_FILE",
    "BYTEPS_TRACE_ON",
    "PSUM_ELASTIC",
    "PSUM_JOIN",
)

#: The most seconds that this process waits at its end for its own operations.
_CLOSE_SECONDS: Final = 2.0


class _World:
    """The job of the default group, and what it needs: groups over parts of its ranks use its aggregators too.

    Attributes:
        job: The job's name.
        addresses: Its aggregators.
        given: Settings by which they are reached.
        own: The one that this process has started, if any.
        clients: This process's clients on them.
    """

    def __init__(
        self, job: str, addresses: tuple[str, ...], given: Mapping[str, Any], own: OwnAggregator | None
    ) -> None:
        self.job = job
        self.addresses = addresses
        self.given = given
        self.own = own
        self.clients: list[Client] = []

    @property
    def open(self) -> bool:
        """Whether a client of it is open."""
        return any(not client.closed and not client.forked for client in self.clients)

    def use(self, client: Client) -> None:
        """Notes a client."""
        self.clients.append(client)
        if self.own is not None:
            self.own.serve(client)


_worlds: Final[list[_World]] = []
"""The jobs of this process that may be open. The last one is that of the present default group."""


def connect(store: Any, rank: int, size: int, *, timeout: datetime.timedelta, group_name: str = "") -> Client:
    """Joins the job of a group. All ranks of the group must call it.

    Where PSUM_AGGREGATORS names no aggregators, the lowest rank of each host starts one. It ends when all ranks have
    closed their clients, or when the process ends that has started it.

    The default group of an elastic job meets nobody in torch's store: a process that replaces another one joins while
    the others train. PSUM_AGGREGATORS, PSUM_JOB and the local ranks must then be told to each process.

    Args:
        store: torch's store of this group.
        rank: This process's rank in the group.
        size: The group's size.
        timeout: How long ranks may take until all have come and the aggregators run.
        group_name: The group's name, for a group over some ranks; empty for the default group. All of its ranks give
            the same.

    Raises:
        ConfigurationError: Settings cannot be used or differ between ranks, or an aggregator cannot be started. All
            ranks raise it, with the same text.
        ConnectError: Ranks did not come in time, torch's store does not answer, or an aggregator was not reached.
        FaultError: An aggregator refused this worker.
    """
    environ = _environment(group_name)
    if not group_name and (alone := _elastic(environ, rank, size)) is not None:
        client = psum.client.connect(alone, staging=True)
        _enter(_World(alone.job, alone.aggregators, {}, None), client)
        return client
    exchange = Exchange(store, rank, size, timeout=timeout.total_seconds())
    world = next((world for world in reversed(_worlds) if world.open), None) if group_name else None
    report = _report(environ, rank, size, group_name, exchange.host, world)
    plan, token = _agree(exchange, report, group_name)
    own: OwnAggregator | None = None
    if world is not None and plan.job == f"{world.job}/{group_name}":
        addresses, given = world.addresses, world.given
    else:
        world = None
        given = _access(environ, token, plan) if plan.starters else {}
        try:
            addresses, own = _start(exchange, plan, rank, environ, given)
        except BaseException:
            _give_back(given)
            raise
    try:
        settings = _settings(environ, plan, rank, size, group_name, addresses, given)
        client = psum.client.connect(settings, staging=True)
    except BaseException:
        if own is not None:
            own.end()
        raise
    if world is None:
        _enter(_World(plan.job, addresses, given, own), client)
    else:
        world.use(client)
    if own is not None:
        _tell(own, plan)
    return client


def _enter(world: _World, client: Client) -> None:
    """Notes the job of a new default group, and its client."""
    _worlds[:] = [*(other for other in _worlds if other.open or (other.own and other.own.running)), world]
    world.use(client)


def _elastic(environ: Mapping[str, str], rank: int, size: int) -> Settings | None:
    """The settings of a worker of an elastic job; None if the job is not elastic.

    Raises:
        ConfigurationError: Settings cannot be used.
    """
    if not is_elastic(environ):
        return None
    mistakes = list(contradictions(environ, rank, size))
    if rank >= size:
        mistakes.append(
            f"rank {rank} of {size}: with PyTorch, an elastic job has the ranks of its world size, in which it begins,"
            " and no further ones. Begin with as many workers as it may have"
        )
    if mistakes:
        raise ConfigurationError(mistakes)
    if not environ.get("PSUM_AGGREGATORS"):
        raise ConfigurationError(
            [
                "PSUM_ELASTIC is set and PSUM_AGGREGATORS is not: aggregators that psum starts for a job end with the"
                " rank that has started them. Start aggregators beside the workers, or use `psum launch --elastic`"
            ]
        )
    local_rank, local_size = (environ.get(name) or None for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    told = Settings.from_environment(environ, rank=rank, num_workers=size).sources
    return Settings.from_environment(
        environ,
        rank=rank,
        num_workers=size,
        local_rank=None if "local_rank" in told else local_rank,
        local_size=None if "local_size" in told else local_size,
    )


def _environment(group_name: str) -> Mapping[str, str]:
    if not group_name:
        return os.environ
    return {name: value for name, value in os.environ.items() if name not in _PROCESS_VARIABLES}


def _report(
    environ: Mapping[str, str], rank: int, size: int, group_name: str, store_host: str, world: _World | None
) -> Report:
    """What this rank tells rank 0."""
    mistakes: list[str] = [] if group_name else list(contradictions(environ, rank, size))
    settings = Settings()
    if not mistakes:
        try:
            # The addresses that it names, if it does: a given value would hide them.
            settings = Settings.from_environment(environ, rank=0, num_workers=1, local_rank=0, local_size=1)
        except ConfigurationError as error:
            mistakes += error.mistakes
    return Report(
        host=f"{this_host.identity()} {node(environ)}",
        address=this_host.address_towards(store_host or environ.get("MASTER_ADDR", "")),
        listen=(environ.get("PSUM_LISTEN") or "").partition(",")[0].strip(),
        aggregators=settings.aggregators,
        job=settings.job if "job" in settings.sources else "",
        restarts=restarts(environ),
        world=world.job if world is not None else "",
        world_aggregators=world.addresses if world is not None else (),
        tls=bool(settings.tls),
        certificate=bool(environ.get("PSUM_AGGREGATOR_TLS_CERT")),
        mistakes=tuple(mistakes),
    )


def _agree(exchange: Exchange, report: Report, group_name: str) -> tuple[Plan, str]:
    """Returns what all ranks do, as rank 0 decides, and a token for aggregators that are started.

    Raises:
        ConfigurationError: They cannot do anything.
        ConnectError: Not all ranks come.
    """

    def decide(found: Sequence[Any], earlier: int) -> Any:
        reports = [_restored(Report, fields) for fields in found]
        plan = make_plan(reports, group_name, random=secrets.token_hex(6), earlier=earlier)
        return [dataclasses.asdict(plan), secrets.token_urlsafe()]

    fields, token = exchange.decide(dataclasses.asdict(report), decide)
    fields["starters"] = [Starter(**starter) for starter in fields["starters"]]
    plan: Plan = _restored(Plan, fields)
    if plan.mistakes:
        raise ConfigurationError(plan.mistakes)
    return plan, token


def _restored(kind: Any, fields: Mapping[str, Any]) -> Any:
    """A dataclass from its fields as JSON gives them."""
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def _access(environ: Mapping[str, str], token: str, plan: Plan) -> dict[str, Any]:
    """Settings by which workers reach aggregators that ranks start: with the user's token, or else this job's own."""
    given: dict[str, Any] = {}
    if not environ.get("PSUM_TOKEN_FILE"):
        # Memory with a path: it goes with this process, however that ends.
        descriptor = os.memfd_create("psum-token")
        os.write(descriptor, token.encode())
        given["token_file"] = f"/proc/{os.getpid()}/fd/{descriptor}"
        if plan.exposed:
            given["insecure"] = True
    return given


def _give_back(given: Mapping[str, Any]) -> None:
    if token_file := given.get("token_file"):
        with contextlib.suppress(OSError):
            os.close(int(token_file.rpartition("/")[2]))


def _start(
    exchange: Exchange, plan: Plan, rank: int, environ: Mapping[str, str], given: Mapping[str, Any]
) -> tuple[tuple[str, ...], OwnAggregator | None]:
    """Starts this rank's aggregator, if it shall, and returns the addresses of all in the order of the plan.

    Raises:
        ConfigurationError: One could not be started. All ranks raise it.
        ConnectError: A rank did not come.
    """
    own: OwnAggregator | None = None
    keys = [f"aggregator/{starter.rank}" for starter in plan.starters]
    for starter in plan.starters:
        if starter.rank == rank:
            address = this_host.address_towards(starter.towards or exchange.host)
            own = _own(starter, address, plan.hosts.count(plan.hosts[rank]), environ, given, plan.exposed)
            try:
                exchange.publish(
                    keys[plan.starters.index(starter)], [advertised(own.start(exchange.left), address), ""]
                )
            except ConfigurationError as error:
                own = None
                exchange.publish(keys[plan.starters.index(starter)], ["", *error.mistakes])
    try:
        ranks = [starter.rank for starter in plan.starters]
        answers = exchange.collect(keys, ranks, "the aggregator of each host") if keys else []
        mistakes = [
            f"rank {rank}: {mistake}"
            for rank, (_, *its) in zip(ranks, answers, strict=True)
            for mistake in its
            if mistake
        ]
        if mistakes:
            raise ConfigurationError(mistakes)
    except BaseException:
        if own is not None:
            own.end()
        raise
    return (*plan.aggregators, *(answer[0] for answer in answers)), own


def _own(
    starter: Starter, address: str, local: int, environ: Mapping[str, str], given: Mapping[str, Any], exposed: bool
) -> OwnAggregator:
    """The aggregator of this host, for so many local ranks."""
    its = {"PSUM_AGGREGATOR_TOKEN_FILE": given.get("token_file") or environ.get("PSUM_TOKEN_FILE", "")}
    if environ.get("PSUM_AGGREGATOR_TOKEN_FILE") and "token_file" not in given:
        its = {}
    if exposed:
        its["PSUM_AGGREGATOR_INSECURE"] = "1"
    processes = max(1, min(sensible_processes(processors()), local))
    return OwnAggregator(starter.listen or join_address(address, 0), processes, its)


def _settings(
    environ: Mapping[str, str],
    plan: Plan,
    rank: int,
    size: int,
    group_name: str,
    addresses: tuple[str, ...],
    given: Mapping[str, Any],
) -> Settings:
    local_rank, local_size = local_place({} if group_name else environ, plan.hosts, rank)
    if group_name and any(level.partition("/")[2] for level in environ.get("PSUM_RELAY", "").split(",")):
        # The sizes of its levels are those of the whole job.
        given = {**given, "relay": "off"}
    return Settings.from_environment(
        environ,
        job=plan.job,
        rank=rank,
        num_workers=size,
        local_rank=local_rank,
        local_size=local_size,
        aggregators=addresses or None,
        **given,
    )


def _tell(own: OwnAggregator, plan: Plan) -> None:
    """Says in the log what was started. Only now psum's log is set up."""
    if plan.exposed:
        _log.warning(
            "PSUM_AGGREGATORS names no aggregators, so psum has started one on each host for this job, here at %s. What"
            " travels between hosts is not encrypted, as with torch's other backends; see docs/torch.md",
            own.address,
        )
    else:
        _log.info("PSUM_AGGREGATORS names no aggregators, so psum has started one for this job at %s", own.address)


@atexit.register
def _finish() -> None:
    """Ends what this process has started, before psum's own clients are closed."""
    for world in _worlds:
        for client in world.clients:
            client.close(_CLOSE_SECONDS)
    for world in _worlds:
        if world.own is not None:
            world.own.finish()


def _forked() -> None:
    # All of it belongs to the parent, and ends with that.
    _worlds.clear()


os.register_at_fork(after_in_child=_forked)
