"""What ranks do to become a job, decided from their reports."""

import pytest

from psum.torch.rendezvous.plan import Plan, Report, Starter, advertised, make_plan

HERE, THERE = Report("a", "10.0.0.1"), Report("b", "10.0.0.2")


def plan(*reports: Report, group: str = "", earlier: int = 0) -> Plan:
    return make_plan(reports, group, random="7f", earlier=earlier)


def report(host: Report, **changed: object) -> Report:
    return Report(**{**vars(host), **changed})


def test_the_lowest_rank_of_each_host_starts_an_aggregator() -> None:
    """All ranks list them in the order of these ranks, and count hosts in the same order."""
    made = plan(THERE, HERE, THERE, HERE)
    assert made.starters == (Starter(0, "10.0.0.2:0"), Starter(1, "10.0.0.1:0"))
    assert made.hosts == (0, 1, 0, 1)
    assert made.exposed
    assert not made.mistakes


def test_on_one_host_other_machines_reach_nothing() -> None:
    """The aggregator listens on loopback, also for two of torchrun's agents that share a host."""
    assert plan(HERE, HERE).starters == (Starter(0, "127.0.0.1:0"),)
    agents = plan(Report("a 0", "127.0.0.1"), Report("a 1", "127.0.0.1"))
    assert agents.starters == (Starter(0, "127.0.0.1:0"), Starter(1, "127.0.0.1:0"))
    assert not agents.exposed


def test_the_host_of_the_store_takes_the_address_by_which_it_reaches_another() -> None:
    """On that host, MASTER_ADDR is often a name for a loopback address, which is of no use elsewhere."""
    assert plan(Report("a", "127.0.1.1"), THERE).starters == (Starter(0, "", "10.0.0.2"), Starter(1, "10.0.0.2:0"))


def test_what_the_user_has_set_wins() -> None:
    """PSUM_LISTEN says where, PSUM_AGGREGATORS that none is started; TLS does not need the plain port."""
    made = plan(report(HERE, listen="0.0.0.0:5000"), report(THERE, listen="192.168.7.2:5000"))
    assert [starter.listen for starter in made.starters] == ["0.0.0.0:5000", "192.168.7.2:5000"]
    assert advertised("0.0.0.0:5000", "10.0.0.1") == "10.0.0.1:5000"
    assert advertised("[::]:5000", "fd00::1") == "[fd00::1]:5000"
    assert advertised("192.168.7.2:5000", "10.0.0.2") == "192.168.7.2:5000"
    named = plan(*(report(host, aggregators=("c:1", "d:2")) for host in (HERE, THERE)))
    assert (named.aggregators, named.starters) == (("c:1", "d:2"), ())
    assert not plan(*(report(host, tls=True, certificate=True) for host in (HERE, THERE))).exposed


def test_a_job_of_one_needs_no_aggregator() -> None:
    """Its sums are its own values."""
    assert plan(HERE) == Plan("torch-7f", (0,))


def test_jobs_have_names_of_their_own() -> None:
    """Without a name, one that no other job has; after a restart by torchrun, one that no earlier run has had."""
    named = report(HERE, job="mine", aggregators=("c:1",))
    assert plan(HERE, HERE).job == "torch-7f"
    assert plan(named, named).job == "mine"
    assert plan(named, named, group="3").job == "mine/3"
    assert plan(named, report(named, restarts=1), earlier=2).job == "mine.run-3"
    assert plan(named, report(named, restarts=1)).job == "mine.run-2"


def test_a_group_of_some_ranks_uses_the_aggregators_of_the_default_group() -> None:
    """If all of its ranks have that. Otherwise it starts its own."""
    member = report(HERE, world="torch-1", world_aggregators=("10.0.0.1:7",))
    assert plan(member, member, group="2") == Plan("torch-1/2", (0, 0), ("10.0.0.1:7",))
    assert plan(member, HERE, group="2").starters == (Starter(0, "127.0.0.1:0"),)


@pytest.mark.parametrize(
    ("reports", "text"),
    [
        (
            (report(HERE, aggregators=("c:1",)), HERE, THERE),
            "PSUM_AGGREGATORS must be the same on all ranks, and is c:1 on rank 0; not set on ranks 1-2",
        ),
        ((report(HERE, job="x"), report(HERE, job="y")), "PSUM_JOB must be the same on all ranks, and is x on rank 0;"),
        ((HERE, report(HERE, mistakes=("no",)), report(HERE, mistakes=("no",))), "ranks 1-2: no"),
        ((HERE, Report("b")), "rank 1: its host has no address by which it reaches MASTER_ADDR"),
        ((report(HERE, tls=True), HERE), "rank 0: PSUM_TLS_CA asks for TLS"),
    ],
)
def test_what_cannot_work_is_one_error_for_all(reports: tuple[Report, ...], text: str) -> None:
    """It names the ranks, and what each has."""
    (mistake,) = plan(*reports).mistakes
    assert mistake.startswith(text)
