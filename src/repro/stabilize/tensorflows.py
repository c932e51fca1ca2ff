"""What TensorFlow writes: the graph of a SavedModel, its fingerprint, and TensorBoard's events."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from repro.stabilize.form import Stabilizer, UnreadableError, digest, lines
from repro.stabilize.wire import BYTES, FIXED64, VARINT, Field, Nested, Schema, fields, ordered, packed

GRAPHS: Schema = {  # numbers of fields, from TensorFlow's .proto files
    "SavedModel": {2: Nested("MetaGraph")},
    "MetaGraph": {
        1: Nested("MetaInfo"),
        2: Nested("Graph"),
        4: Nested("", "map"),  # collections
        5: Nested("Signature", "map"),
        7: Nested("ObjectGraph"),
    },
    "MetaInfo": {8: Nested("", "map")},  # aliases of functions
    "Graph": {1: Nested("Node"), 2: Nested("Library"), 5: Nested("Traces")},
    "Traces": {2: Nested("", "map"), 4: Nested("", "map"), 5: Nested("", "map"), 6: Nested("", "map")},
    "Library": {1: Nested("Function", "named"), 2: Nested("", "named"), 3: Nested("", "named")},
    "Function": {
        3: Nested("Node"),
        4: Nested("", "map"),  # what it returns
        5: Nested("Attribute", "map"),
        6: Nested("", "map"),  # what it waits for
        7: Nested("Arguments", "map"),
        8: Nested("", "map"),  # ids of resources
    },
    "Arguments": {1: Nested("Attribute", "map")},
    "Node": {5: Nested("Attribute", "map")},
    "Attribute": {1: Nested("Attributes"), 10: Nested("Call")},
    "Attributes": {9: Nested("Call")},
    "Call": {2: Nested("Attribute", "map")},
    "Signature": {1: Nested("Tensor", "map"), 2: Nested("Tensor", "map"), 4: Nested("", "map")},
    "Tensor": {5: Nested("Composite")},
    "Composite": {1: Nested("TypeSpec"), 2: Nested("Tensor")},
    "ObjectGraph": {1: Nested("Object"), 2: Nested("Concrete", "map")},
    "Object": {6: Nested("Callable"), 8: Nested("Bare"), 11: Nested("", "map")},
    "Callable": {2: Nested("FunctionSpec")},
    "Bare": {4: Nested("FunctionSpec")},
    "FunctionSpec": {1: Nested("Structure"), 5: Nested("Structure")},
    "Concrete": {3: Nested("Structure"), 4: Nested("Structure")},
    "TypeSpec": {2: Nested("Structure")},
    "Structure": {
        34: Nested("TypeSpec"),
        51: Nested("Structures"),
        52: Nested("Structures"),
        53: Nested("Dictionary"),
        54: Nested("Tuple"),
    },
    "Structures": {1: Nested("Structure")},
    "Dictionary": {1: Nested("Structure", "map")},
    "Tuple": {2: Nested("Pair")},
    "Pair": {2: Nested("Structure")},
}
CHECKSUM, UUID = 1, 7  # of a fingerprint
OF_FINGERPRINT = dict.fromkeys(range(1, 6), VARINT) | {6: BYTES, UUID: BYTES}  # numbers and types of its fields
WALL_TIME, GRAPH = 1, 4  # of an event


def saved_model(content: bytes) -> bytes:
    """The same message, with the entries of maps and the functions of a library sorted: their order has no meaning."""
    found = ordered(content, "SavedModel", GRAPHS)
    if not any(field.number == 2 for field in fields(content)):
        raise UnreadableError("no SavedModel")
    return found


def fingerprint(content: bytes) -> bytes:
    """All but a random number, and the checksum of saved_model.pb, which is compared itself."""
    found = list(fields(content))
    kinds = {field.number: field.kind for field in found}
    if not found or len(kinds) < len(found) or not kinds.items() <= OF_FINGERPRINT.items():
        raise UnreadableError("no fingerprint of a SavedModel")
    return b"".join(field.raw for field in found if field.number not in (CHECKSUM, UUID))


def events(content: bytes) -> bytes:
    """A line for each event: the sha256 of all but when it was written. Graphs as in a SavedModel."""
    return lines([digest(b"".join(_timeless(each))) for each in records(content)])


def _timeless(event: bytes) -> Iterator[bytes]:
    for field in fields(event):
        if field.number == GRAPH and field.kind == BYTES:
            yield _graph(field)
        elif (field.number, field.kind) != (WALL_TIME, FIXED64):
            yield field.raw


def _graph(field: Field) -> bytes:
    try:
        return packed(field.number, ordered(field.value, "Graph", GRAPHS))
    except UnreadableError:
        return field.raw


def records(content: bytes) -> Iterator[bytes]:
    """What is in a file of TFRecords; each must be whole.

    Raises:
        UnreadableError: one is not.
    """
    place = 0
    if not content:
        raise UnreadableError("no event")
    while place < len(content):
        head, check = content[place : place + 8], content[place + 8 : place + 12]
        size = int.from_bytes(head, "little")
        body = content[place + 12 : place + 12 + size]
        end = content[place + 12 + size : place + 16 + size]
        if check != _masked(head) or len(body) != size or end != _masked(body):
            raise UnreadableError("a broken record")
        yield body
        place += 16 + size


def _table() -> list[int]:
    found = []
    for each in range(256):
        value = each
        for _bit in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return found


CRC32C = _table()


def _masked(content: bytes) -> bytes:
    """The CRC-32C of bytes as TFRecords have it: turned and shifted, since it may be of what holds one itself."""
    table, crc = CRC32C, 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


SAVED_MODEL = Stabilizer(
    name="saved-model",
    version=1,
    patterns=("saved_model.pb",),
    function=saved_model,
    reason="maps and libraries of functions have no order, and are written in a random one",
    limit=64 << 20,
)
FINGERPRINT = Stabilizer(
    name="fingerprint",
    version=1,
    patterns=("fingerprint.pb",),
    function=fingerprint,
    reason="it holds a random number, and a checksum of bytes that are compared themselves",
    limit=1 << 20,
)
EVENTS = Stabilizer(
    name="tfevents",
    version=1,
    patterns=("events.out.tfevents.*", "*.tfevents"),
    function=events,
    reason="when an event was written is no result",
    limit=16 << 20,
)
