"""What a session sends, for tests."""

from psum.client.core.session import Session
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode


def sent(session: Session, aggregator: int = 0) -> list[pb.ExchangeRequest]:
    """All messages to an aggregator that can be sent now, without payloads."""
    messages = []
    while (data := session.next_message(aggregator)) is not None:
        messages.append(decode(pb.ExchangeRequest, data)[0])
    return messages
