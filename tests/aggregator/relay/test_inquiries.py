"""What a relay asks aggregators on behalf of its workers, and as whom."""

import pathlib

import pytest

from psum.aggregator.relay import inquiries
from psum.aggregator.relay.core.introduction import Identity
from psum.client.transport.credentials import Credentials
from psum.runtime import TlsFiles
from psum.v1 import aggregator_pb2 as pb
from tests.aggregator.relay.pure import hello


@pytest.mark.parametrize("own", [False, True], ids=["the worker's", "the relay's own"])
async def test_a_question_brings_the_token_of_the_uplinks(
    own: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An aggregator that lets in the relay must also answer it: the token is the same as on the connection later."""
    brought = []

    async def ask(address: str, credentials: Credentials, *_: object) -> pb.GetStatusResponse:
        brought.append((address, dict(credentials.metadata())["authorization"]))
        return pb.GetStatusResponse()

    monkeypatch.setattr(inquiries, "ask", ask)
    file = tmp_path / "token"
    file.write_text("of-the-relay")
    credentials = Credentials(tls=TlsFiles("", "", ""), server_name="", token_file=str(file) if own else "")
    asking = inquiries.Inquiries(
        Identity(1, "here"), credentials, insecure=True, connect_timeout=5, descriptors=lambda _: True
    )
    await asking.ask(hello(0), "of-the-worker", None)
    assert brought == [("owner0:1", "Bearer of-the-relay" if own else "Bearer of-the-worker")]
