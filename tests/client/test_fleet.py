"""What a worker makes of the list of aggregators before it joins."""

import pytest

from psum.client import Settings, fleet


@pytest.mark.parametrize(
    ("aggregators", "given", "processes", "by_roles", "weights"),
    [
        ("host-{0..2}:1", None, (1, 1, 1), True, ()),
        ("host-{0..2}:1", "auto", (1, 1, 1), True, ()),
        ("host-{0..2}:1", "1,1,1", (1, 1, 1), False, (1, 1, 1)),
        ("127.0.0.1:1,10.0.0.7:1", None, (1, 1), True, ()),
        # One aggregator takes everything, and a machine by itself has one link for all.
        ("host-0:1", "auto", (1,), False, ()),
        ("127.0.0.1:1,localhost:2,[::1]:3,unix:/run/psum", "auto", (1, 1, 1, 1), False, ()),
        ("", None, (), False, ()),
        # The same with several processes, also if the list names all of them.
        ("host-{0..1}:1", None, (2, 2), True, ()),
        ("host-{0..1}:1", None, (1, 3), True, ()),
        ("host-{0..1}:1", "2,1", (1, 2), False, (4, 1, 1)),
        ("host-0:1", None, (4,), False, ()),
        ("host-0:1,host-0:3", None, (2, 1), False, ()),
        ("127.0.0.1:1,localhost:1", None, (1, 3), False, (3, 1, 1, 1)),
    ],
)
def test_weights_follow_from_roles_unless_they_are_given(
    monkeypatch: pytest.MonkeyPatch,
    aggregators: str,
    given: str | None,
    processes: tuple[int, ...],
    by_roles: bool,
    weights: tuple[int, ...],
) -> None:
    """All workers decide that alike, since they have the same list, the same weights and the same answers."""
    told = [[(f"x:{1 + 2 * number}",) for number in range(count)] if count > 1 else () for count in processes]
    monkeypatch.setattr(fleet, "_ask", lambda settings, route: (told, frozenset()))
    environ = {"PSUM_AGGREGATORS": aggregators} | ({} if given is None else {"PSUM_AGGREGATOR_WEIGHTS": given})
    with fleet.whole_fleet(Settings.from_environment(environ)) as found:
        assert (found.by_roles, found.settings.weights) == (by_roles, weights)
