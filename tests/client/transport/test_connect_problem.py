"""The log names the best known reason why a worker cannot connect, and not too often."""

from psum.client.transport.connect_problem import ConnectProblem
from psum.wire.errors import ConfigurationError, DeniedError


def logged(problem: ConnectProblem, *times: float) -> list[float]:
    """The times at which the log names the cause."""
    return [now for now in times if problem.should_log(now)]


def test_what_passes_by_itself_is_said_when_it_lasts() -> None:
    """The log names it after 5 s, and again whenever the time has doubled."""
    problem = ConnectProblem(100.0)
    problem.failed("connection refused")
    assert logged(problem, *(100.0 + second for second in range(45))) == [105.0, 110.0, 120.0, 140.0]
    assert problem.cause == "connection refused"


def test_what_only_a_person_can_change_is_said_at_once() -> None:
    """The log names each such reason once, and again while it lasts."""
    problem = ConnectProblem(0.0)
    problem.diagnosed("it asks for a certificate", 0.1)
    problem.failed("Socket closed")
    assert logged(problem, 0.1, 0.2, 1.0, 4.9, 5.0, 6.0) == [0.1, 5.0]
    problem.diagnosed("its certificate has expired", 6.1)
    assert logged(problem, 6.1, 6.2, 10.0) == [6.1, 10.0]


def test_a_refusal_that_names_another_port_each_time_is_no_new_reason() -> None:
    """Otherwise every attempt would log a line."""
    problem = ConnectProblem(0.0)
    problem.refused(DeniedError("peer 127.0.0.1:1 was refused"))
    assert logged(problem, 0.0) == [0.0]
    problem.refused(DeniedError("peer 127.0.0.1:2 was refused"))
    assert logged(problem, 1.0) == []
    assert problem.cause == "peer 127.0.0.1:2 was refused"
    problem.refused(ConfigurationError(["token_file=x: cannot be read"]))
    assert logged(problem, 1.1) == [1.1]


def test_what_was_found_out_counts_more_than_the_words_of_grpc() -> None:
    """It counts until the next diagnosis, which may find another reason."""
    problem = ConnectProblem(0.0)
    assert problem.cause == ""
    assert problem.should_diagnose(0.0)
    problem.diagnosed("it speaks TLS, this side does not", 1.0)
    problem.failed("Socket closed")
    assert problem.cause == "it speaks TLS, this side does not"
    problem.diagnosed(None, 6.0)
    problem.failed("connection refused")
    assert problem.cause == "connection refused"


def test_it_is_found_out_soon_and_then_more_and_more_rarely() -> None:
    """An aggregator that is being started again accepts no connections at first, and a diagnosis costs a connection."""
    problem = ConnectProblem(0.0)
    looks = []
    for tenths in range(300):
        if problem.should_diagnose(now := tenths / 10):
            problem.diagnosed(None, now)
            looks.append(now)
    assert looks == [0.0, 0.3, 0.8, 1.8, 3.8, 7.8, 12.8, 17.8, 22.8, 27.8]
