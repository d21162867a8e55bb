"""Tokens: a job is open to those who have its token, and no token is shown."""

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from tests.integration.credential_files import DAY, GENERAL, NIGHT, UNKNOWN, Files, total

TOKENS = f"# of the night shift\nnight {NIGHT}\n\nnight shift two {DAY}\n{GENERAL}\n"


@pytest.mark.parametrize(
    ("job", "token", "allowed"),
    [
        ("night", NIGHT, True),
        ("night shift two", DAY, True),
        ("anything", GENERAL, True),
        ("night", DAY, False),
        ("night", GENERAL, False),
        ("anything", NIGHT, False),
        ("night", UNKNOWN, False),
        ("night", None, False),
    ],
)
def test_a_job_is_open_to_its_token_only(
    make_fleet: Callable[..., Any], files: Files, job: str, token: str | None, allowed: bool
) -> None:
    """A token without a job opens all jobs that have no token of their own. The error says what to do."""
    fleet = make_fleet(token_file=files.write("tokens", TOKENS))
    given = {"token_file": files.write("token", token)} if token else {}
    if allowed:
        assert fleet.on_every_rank(1, total, job=job, **given) == [1.0]
    else:
        with pytest.raises(psum.DeniedError, match="PSUM_TOKEN_FILE") as caught:
            fleet.worker(0, 1, job=job, **given)
        for secret in (NIGHT, DAY, GENERAL, UNKNOWN):
            assert secret not in str(caught.value)


def test_without_its_token_a_job_can_be_neither_seen_nor_disturbed(
    make_fleet: Callable[..., Any], files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """This holds for the status, for joining, and for a wrong hello, which would fail a job that waits for ranks."""
    fleet = make_fleet(token_file=files.write("tokens", f"night {NIGHT}\nday {DAY}\n"))
    night, day = (files.write(name, token) for name, token in (("n", NIGHT), ("d", DAY)))
    with fleet.worker(0, 2, job="night", token_file=night) as zero:
        future = zero.store().push_pull_async("w", np.ones(3, np.float32))
        shown = psum.fetch_status(fleet.addresses[0], settings=psum.Settings(token_file=day))
        assert not shown.jobs
        with pytest.raises(psum.ConnectError, match="UNAUTHENTICATED"):
            psum.fetch_status(fleet.addresses[0])
        with pytest.raises(psum.DeniedError):
            fleet.worker(1, 3, job="night", token_file=day)
        # Another process of the same rank. A job without tokens would refuse it with details of the first.
        with pytest.raises(psum.DeniedError, match="its token is not one of this job's"):
            fleet.worker(0, 2, job="night", token_file=day)
        with fleet.worker(1, 2, job="night", token_file=night) as one:
            one.store().push_pull("w", np.ones(3, np.float32))
        future.result(10)
    assert not any(token in caplog.text for token in (NIGHT, DAY))


def test_tokens_are_replaced_without_a_restart(make_fleet: Callable[..., Any], files: Files) -> None:
    """Both tokens are valid during a replacement. A removed token is not."""
    fleet = make_fleet(token_file=files.write("tokens", GENERAL))
    old, new = files.write("old", GENERAL), files.write("new", DAY)
    files.write("tokens", f"{GENERAL}\n{DAY}\n")
    assert [fleet.on_every_rank(1, total, token_file=token) for token in (old, new)] == [[1.0], [1.0]]
    files.write("tokens", DAY)
    with pytest.raises(psum.DeniedError):
        fleet.worker(0, 1, token_file=old)


@pytest.mark.parametrize(
    ("content", "text"),
    [("", "it contains no token"), ("short", "line 1: expected TOKEN or JOB TOKEN"), ("a\nb c d?\n", "line 2")],
)
def test_a_token_file_that_cannot_be_used_is_refused_without_showing_it(
    make_fleet: Callable[..., Any], files: Files, content: str, text: str
) -> None:
    """The error has the file and the line, but not the token."""
    with pytest.raises(psum.ConfigurationError, match=text) as caught:
        make_fleet(token_file=files.write("tokens", content))
    assert not re.search("short|d[?]", str(caught.value))


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "cannot be read: No such file"), ("two words", "expected one token"), ("\x00ab", "expected one token")],
)
def test_a_worker_with_a_bad_token_file_says_so(fleet: Any, files: Files, content: str | None, text: str) -> None:
    """The error comes before any connection."""
    path = files.write("token", content) if content is not None else str(files.directory / "none")
    with pytest.raises(psum.ConfigurationError, match=text):
        fleet.worker(0, 1, token_file=path)


def test_secrets_are_not_in_the_command_line_the_log_or_the_errors(files: Files) -> None:
    """There is no flag for the token itself. `ps` shows only the file's path."""
    command = [sys.executable, "-m", "psum.cli", "aggregator", "--token-file", files.write("t", f"bad line {NIGHT}!")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "line 1" in done.stderr
    assert NIGHT not in done.stderr + done.stdout
