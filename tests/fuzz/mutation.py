"""Mutates valid protobuf messages into invalid or unusual ones.

Mutations work on three levels: the fields of a message, found by reflection; the fields of its encoding, with their
tags, lengths and nesting; and plain bytes. A fourth kind changes the payload.
"""

import dataclasses
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_BITS: Final = {
    FieldDescriptor.TYPE_UINT32: (0, 32),
    FieldDescriptor.TYPE_UINT64: (0, 64),
    FieldDescriptor.TYPE_FIXED64: (0, 64),
    FieldDescriptor.TYPE_SINT64: (1, 64),
    FieldDescriptor.TYPE_ENUM: (1, 32),
}

#: Integers at which bugs are likely: around powers of two and psum's own limits.
_EDGES: Final = sorted(
    {(1 << bits) + offset for bits in (0, 1, 2, 7, 8, 12, 16, 20, 26, 31, 32, 53, 63, 64) for offset in (-2, -1, 0, 1)}
    | {-1, -2, -(1 << 31), -(1 << 63), 80 << 20}
)
_FLOATS: Final = (0.0, -0.0, 1e-300, -1.0, 1.0, 1e9, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
_TEXTS: Final = (
    "",
    "a",
    "\0",
    "\n2026-01-01 ERROR forged",
    "\x1b[31m",
    "é" * 200,
    "𝄞",
    "x" * 300,
    "%s{0}",
    "x" * 20_000,
)

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = 0, 1, 2, 3, 4, 5


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One field of an encoded message.

    Attributes:
        number: The field number.
        kind: The wire type.
        content: The bytes after the tag and the length, if any.
    """

    number: int
    kind: int
    content: bytes

    def encode(self) -> bytes:
        """Return the field's encoding."""
        length = varint(len(self.content)) if self.kind == _BYTES else b""
        return varint(self.number << 3 | self.kind) + length + self.content


class Mutator:
    """Mutates messages at random.

    Args:
        random: Generator of all decisions.
        donors: Messages of this and other conversations. Mutations reuse their values, such as key ids.
    """

    def __init__(self, random: Random, donors: Sequence[Message]) -> None:
        self._random = random
        self._donors = donors

    def mutate(self, message: Message, payload: bytes) -> bytes:
        """Return the encoding of a message with one to three changes."""
        random = self._random
        changed = type(message)()
        changed.CopyFrom(message)
        count = random.choice((1, 1, 1, 2, 3))
        levels = [random.choices((0, 1, 2, 3), (5, 3, 2, 2))[0] for _ in range(count)]
        for _ in range(levels.count(0)):
            self.change_message(changed)
        for _ in range(levels.count(1)):
            payload = self.change_payload(payload)
        data = changed.SerializeToString()
        if payload:
            data += Field(15, _BYTES, payload).encode()
        for _ in range(levels.count(2)):
            data = self.change_encoding(data, message.DESCRIPTOR)
        for _ in range(levels.count(3)):
            data = self.change_bytes(data)
        return data

    def change_message(self, message: Message) -> None:
        """Change one field, at any depth of the message."""
        random = self._random
        owner = random.choice(_nested(message))
        fields = owner.DESCRIPTOR.fields
        present = [field for field, _ in owner.ListFields()]
        if not fields:
            return
        field: Any = random.choice(present if present and random.random() < 0.7 else list(fields))
        if field.name == "payload":
            return
        if field.is_repeated:
            self._change_repeated(getattr(owner, field.name), field)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if random.random() < 0.3:
                owner.ClearField(field.name)
            else:
                getattr(owner, field.name).CopyFrom(self._replacement(field.message_type))
        else:
            setattr(owner, field.name, self._scalar(field))

    def change_payload(self, payload: bytes) -> bytes:
        """Return a longer, shorter or different payload."""
        random = self._random
        match random.randrange(5):
            case 0:
                return b""
            case 1:
                return payload[: random.randrange(len(payload) + 1)]
            case 2:
                return payload + random.randbytes(random.choice((1, 3, 16, 4096)))
            case 3:
                return payload * random.choice((2, 3))
            case _:
                return random.randbytes(len(payload))

    def change_encoding(self, data: bytes, descriptor: Any) -> bytes:
        """Change the encoding of the fields of a message, or of a nested message."""
        random = self._random
        fields = split_fields(data)
        if not fields:
            return data + self._malformed_field(descriptor)
        place = random.randrange(len(fields))
        field = fields[place]
        inner: Any = descriptor.fields_by_number.get(field.number)
        if (
            inner is not None
            and inner.type == FieldDescriptor.TYPE_MESSAGE
            and field.kind == _BYTES
            and random.random() < 0.6
        ):
            fields[place] = dataclasses.replace(field, content=self.change_encoding(field.content, inner.message_type))
            return b"".join(f.encode() for f in fields)
        encoded = [f.encode() for f in fields]
        changes: tuple[Callable[[], bytes], ...] = (
            lambda: b"",
            lambda: encoded[place] * 2,
            lambda: self._malformed_field(descriptor) + encoded[place],
            lambda: encoded[place] + self._malformed_field(descriptor),
            lambda: varint(field.number << 3 | random.randrange(8)) + field.content,
            lambda: varint(random.choice((0, field.number + 1, 15, 1 << 28)) << 3 | field.kind) + field.content,
            lambda: self._wrong_length(field),
            lambda: varint(field.number << 3 | field.kind, 5) + varint(len(field.content), 10) + field.content,
        )
        if random.random() < 0.2:
            random.shuffle(encoded)
        else:
            encoded[place] = random.choice(changes)()
        return b"".join(encoded)

    def change_bytes(self, data: bytes) -> bytes:
        """Change bytes regardless of their meaning."""
        random = self._random
        changed = bytearray(data)
        place = random.randrange(len(changed) + 1)
        end = min(len(changed), place + random.choice((1, 1, 2, 8, 64)))
        match random.randrange(7):
            case 0 if place < len(changed):
                changed[place] ^= 1 << random.randrange(8)
            case 1 if place < len(changed):
                changed[place] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                changed[place:place] = random.randbytes(random.choice((1, 2, 8)))
            case 3:
                del changed[place:end]
            case 4:
                changed[place:place] = changed[place:end]
            case 5:
                del changed[place:]
            case _ if self._donors:
                changed[place:] = random.choice(self._donors).SerializeToString()[place:]
        return bytes(changed)

    def random_message(self, descriptor: Descriptor) -> Message:
        """Return a message with random fields."""
        message = GetMessageClass(descriptor)()
        field: Any
        # In random order, because the last field set in a oneof wins.
        for field in self._random.sample(list(descriptor.fields), len(descriptor.fields)):
            if self._random.random() < 0.4 or field.name == "payload":
                continue
            if field.is_repeated:
                for _ in range(self._random.choice((1, 1, 2, 5))):
                    self._append(getattr(message, field.name), field)
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                getattr(message, field.name).CopyFrom(self._replacement(field.message_type))
            else:
                setattr(message, field.name, self._scalar(field))
        return message

    def _replacement(self, descriptor: Descriptor) -> Message:
        """Return a message of this type, from a donor or random."""
        if self._donors and self._random.random() < 0.5:
            known = [
                m for m in _nested(self._random.choice(self._donors)) if m.DESCRIPTOR.full_name == descriptor.full_name
            ]
            if known:
                return self._random.choice(known)
        return self.random_message(descriptor)

    def _change_repeated(self, values: Any, field: Any) -> None:
        random = self._random
        place = random.randrange(len(values)) if values else 0
        match random.randrange(6):
            case 0 if values:
                del values[place]
            case 1 if values:
                values.append(values[place])
            case 2 if len(values) > 1:
                kept = list(values)
                random.shuffle(kept)
                del values[:]
                values.extend(kept)
            case 3:
                del values[:]
            case 4 if values:
                values.extend(list(values) * random.choice((1, 20)))
            case _:
                self._append(values, field)

    def _append(self, values: Any, field: Any) -> None:
        is_message = field.type == FieldDescriptor.TYPE_MESSAGE
        values.append(self._replacement(field.message_type) if is_message else self._scalar(field))

    def _scalar(self, field: Any) -> Any:
        random = self._random
        match field.type:
            case FieldDescriptor.TYPE_BOOL:
                return random.random() < 0.5
            case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
                return random.choice(_FLOATS)
            case FieldDescriptor.TYPE_STRING:
                return random.choice(_TEXTS)
            case FieldDescriptor.TYPE_BYTES:
                return random.randbytes(random.choice((0, 1, 15, 16, 300)))
        signed, bits = _BITS[field.type]
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        if field.type == FieldDescriptor.TYPE_ENUM and random.random() < 0.5:
            return random.choice(field.enum_type.values).number
        if random.random() < 0.5:
            return random.choice([n for n in (0, 1, 2, 3, 4, 5, 6, 8) if low <= n <= high])
        if self._donors and random.random() < 0.4:
            owner = random.choice(_nested(random.choice(self._donors)))
            for known, value in owner.ListFields():
                if known.name == field.name and not known.is_repeated and isinstance(value, int):
                    return min(high, max(low, value + random.choice((-1, 0, 0, 0, 1))))
        return random.choice([n for n in _EDGES if low <= n <= high])

    def _malformed_field(self, descriptor: Any) -> bytes:
        """Return the encoding of a field that is unknown, misplaced or malformed."""
        random = self._random
        number = random.choice((9, 13, 14, 15, 16, 100, 1 << 20, *(f.number for f in descriptor.fields)))
        match random.randrange(7):
            case 0:
                return Field(number, _BYTES, random.randbytes(random.choice((0, 1, 30)))).encode()
            case 1:
                return Field(number, _VARINT, varint(random.choice([n for n in _EDGES if 0 <= n < 1 << 64]))).encode()
            case 2:
                return Field(number, _FIXED64, random.randbytes(8)).encode()
            case 3:
                return Field(number, _FIXED32, random.randbytes(4)).encode()
            case 4:
                depth = random.choice((1, 50, 101, 2000))
                opening = Field(number, _GROUP, b"").encode() * depth
                return opening + Field(number, _END_GROUP, b"").encode() * (depth - random.randrange(2))
            case 5:
                return varint(number << 3 | _VARINT) + b"\xff" * random.choice((1, 9, 10, 11, 100))
            case _:
                nested = b""
                for _ in range(random.choice((5, 120))):
                    nested = Field(number, _BYTES, nested).encode()
                return nested

    def _wrong_length(self, field: Field) -> bytes:
        size = len(field.content)
        length = self._random.choice((0, max(0, size - 1), size + 1, size * 2, (1 << 31) - 1, 1 << 32, (1 << 64) - 1))
        return varint(field.number << 3 | _BYTES) + varint(length) + field.content


def varint(value: int, width: int = 0) -> bytes:
    """Encode a number as a protobuf varint of at least `width` bytes."""
    encoded = bytearray()
    while value > 0x7F or len(encoded) < width - 1:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def split_fields(data: bytes) -> list[Field]:
    """Split an encoded message into its fields, as far as it is well formed."""
    fields = []
    place = 0
    while place < len(data):
        tag, place = _read(data, place)
        number, kind = tag >> 3, tag & 7
        start = place
        match kind:
            case 0:
                _, place = _read(data, place)
            case 1:
                place += 8
            case 2:
                length, start = _read(data, place)
                place = start + length
            case 5:
                place += 4
        fields.append(Field(number, kind, data[start:place]))
    return fields


def _read(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data):
        value |= (data[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if data[place - 1] < 0x80:
            break
    return value, place


def _nested(message: Message) -> list[Message]:
    """Return a message and all messages nested in it."""
    found = [message]
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                found += _nested(inner)
    return found
