"""Protocol buffers as bytes: the fields of a message, and a canonical order where their own has no meaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from repro.stabilize.form import UnreadableError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
NESTING = 64

How = Literal["", "map", "named"]


class Field(NamedTuple):
    """One field as it is written: number, type on the wire, its own bytes, and all of it."""

    number: int
    kind: int
    value: bytes
    raw: bytes


class Nested(NamedTuple):
    """What a field holds: messages of which type; `map`: keys (1) with them (2); `named`: in any order."""

    message: str
    how: How = ""


Schema = Mapping[str, Mapping[int, Nested]]  # of each type, the fields that need to be looked into


def fields(content: bytes) -> Iterator[Field]:
    """The fields of a message in their order.

    Raises:
        UnreadableError: it is no message.
    """
    place = 0
    while place < len(content):
        begin = place
        tag, place = varint(content, place)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, place = content[place : (end := varint(content, place)[1])], end
        elif kind == BYTES:
            size, place = varint(content, place)
            value, place = content[place : place + size], place + size
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
            value, place = content[place : place + size], place + size
        else:
            raise UnreadableError("no message of protocol buffers")
        if place > len(content) or not number:
            raise UnreadableError("no message of protocol buffers")
        yield Field(number, kind, value, content[begin:place])


def varint(content: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, and where the next thing begins."""
    found = 0
    for index, byte in enumerate(content[place : place + 10]):
        found |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return found, place + index + 1
    raise UnreadableError("no message of protocol buffers")


def packed(number: int, value: bytes) -> bytes:
    """A field of bytes as it is written."""
    return _varint(number << 3 | BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def ordered(content: bytes, message: str, schema: Schema, depth: int = 0) -> bytes:
    """A message with the entries of its maps, and what else has no order, sorted; all else where and as it is.

    Raises:
        UnreadableError: it is none of that type, or a map names a key twice.
    """
    if depth > NESTING:
        raise UnreadableError("messages too deep within messages")
    known = schema.get(message, {})
    loose: dict[int, list[bytes]] = {number: [] for number, nested in known.items() if nested.how}
    told: list[bytes] = []
    for field in fields(content):
        nested = known.get(field.number)
        if nested is None:
            told.append(field.raw)
            continue
        if field.kind != BYTES:
            raise UnreadableError("a message of another type")
        if nested.how == "map":
            value = _entry(field.value, nested.message, schema, depth)
        else:
            value = ordered(field.value, nested.message, schema, depth + 1)
        (loose[field.number] if nested.how else told).append(packed(field.number, value))
    for number, parts in loose.items():
        if known[number].how == "map" and len({_key(part) for part in parts}) < len(parts):
            raise UnreadableError("a key is there twice")
        told += sorted(parts)
    return b"".join(told)


def _entry(content: bytes, message: str, schema: Schema, depth: int) -> bytes:
    """One entry of a map: its key, and its value in order."""
    found = {field.number: field for field in fields(content)}
    if not found.keys() <= {1, 2} or len(found) < len(list(fields(content))):
        raise UnreadableError("no entry of a map")
    value = found[2].value if 2 in found else b""
    if message:
        if 2 in found and found[2].kind != BYTES:
            raise UnreadableError("no entry of a map")
        return (found[1].raw if 1 in found else b"") + packed(2, ordered(value, message, schema, depth + 1))
    return (found[1].raw if 1 in found else b"") + (found[2].raw if 2 in found else b"")


def _key(part: bytes) -> bytes:
    (whole,) = fields(part)
    return next((field.value for field in fields(whole.value) if field.number == 1), b"")
