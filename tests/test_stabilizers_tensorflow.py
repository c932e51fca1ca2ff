"""What TensorFlow writes, from its formats; the files of a real TensorFlow are in test_stabilizers_engine.py."""

from __future__ import annotations

import struct
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.stabilize import registry
from repro.stabilize.pairing import pairing_name, pairing_names
from repro.stabilize.tensorflows import _masked
from repro.stabilize.wire import packed


def after(name: str, content: bytes) -> bytes | None:
    """What is left of a file."""
    found = registry.stabilized(name, content)
    return found[0] if found else None


# protocol buffers ------------------------------------------------------------------------------------------------


def node(name: str, **attributes: bytes) -> bytes:
    entries = [packed(5, packed(1, key.encode()) + packed(2, packed(2, value))) for key, value in attributes.items()]
    return packed(1, name.encode()) + packed(2, b"Const") + b"".join(entries)


def function(name: str, *nodes: bytes) -> bytes:
    return packed(1, packed(1, name.encode())) + b"".join(packed(3, each) for each in nodes)


def graph(*nodes: bytes, functions: Any = ()) -> bytes:
    library = packed(2, b"".join(packed(1, each) for each in functions))
    return b"".join(packed(1, each) for each in nodes) + library


def saved(inner: bytes) -> bytes:
    return b"\x08\x01" + packed(2, packed(2, inner))


def test_maps_and_libraries_of_a_saved_model_have_no_order() -> None:
    one = saved(graph(node("a", x=b"1", y=b"2"), functions=[function("f", node("n", p=b"1", q=b"2")), function("g")]))
    other = saved(graph(node("a", y=b"2", x=b"1"), functions=[function("g"), function("f", node("n", q=b"2", p=b"1"))]))
    assert one != other
    assert None is not after("saved_model.pb", one) == after("saved_model.pb", other)


@pytest.mark.parametrize(
    "other",
    [
        graph(node("b"), node("a", x=b"1")),
        graph(node("a", x=b"2"), node("b")),
        graph(node("a", y=b"1"), node("b")),
        graph(node("a", x=b"1"), node("b"), functions=[function("f")]),
        graph(node("a", x=b"1"), node("b")) + packed(77, b""),
    ],
    ids=["order of nodes", "value", "key", "function", "unknown field"],
)
def test_all_else_of_a_saved_model_counts(other: bytes) -> None:
    one = saved(graph(node("a", x=b"1"), node("b")))
    assert None is not after("saved_model.pb", one) != after("saved_model.pb", saved(other)) is not None


def nested(depth: int) -> bytes:
    value = packed(13, b"x")
    for _level in range(depth):
        value = packed(51, packed(1, value))
    return b"\x08\x01" + packed(2, packed(7, packed(2, packed(1, b"f") + packed(2, packed(3, value)))))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        b"\xff" * 20,
        b"\x08\x01",
        saved(graph(node("a") + packed(5, packed(1, b"x")) * 2)),
        saved(graph(node("a") + packed(5, packed(3, b"x")))),
        b"\x10\x01",
        nested(200_000 // 20),
    ],
)
def test_what_is_no_saved_model_stays_as_it_is(content: bytes) -> None:
    assert after("saved_model.pb", content) is None


def fingerprint(checksum: int = 1, graph_hash: int = 2, uuid: bytes = b"3") -> bytes:
    return bytes([1 << 3, checksum, 2 << 3, graph_hash]) + packed(7, uuid) + packed(6, b"\x08\x01")


def test_of_a_fingerprint_the_hashes_of_the_graph_count() -> None:
    found = after("fingerprint.pb", fingerprint())
    assert None is not found == after("fingerprint.pb", fingerprint(checksum=9, uuid=b"9"))
    assert found != after("fingerprint.pb", fingerprint(graph_hash=9))
    assert after("fingerprint.pb", fingerprint() + packed(8, b"of later")) is None


# events ----------------------------------------------------------------------------------------------------------


def record(content: bytes) -> bytes:
    size = struct.pack("<Q", len(content))
    return size + _masked(size) + content + _masked(content)


def event(wall_time: float, step: int, value: float) -> bytes:
    summary = packed(1, packed(1, b"loss") + b"\x15" + struct.pack("<f", value))
    return b"\x09" + struct.pack("<d", wall_time) + bytes([2 << 3, step]) + packed(5, summary)


EVENTS = st.lists(st.tuples(st.integers(0, 127), st.floats(width=32)), min_size=1, max_size=4)
NAME = "events.out.tfevents.1795790404.host.1.0.v2"


@given(EVENTS, EVENTS)
def test_of_events_all_but_the_time_counts(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> None:
    def written(events: list[tuple[int, float]], begun: float) -> bytes:
        return b"".join(record(event(begun + number, *each)) for number, each in enumerate(events))

    def bits(events: list[tuple[int, float]]) -> list[tuple[int, bytes]]:
        return [(step, struct.pack("<f", value)) for step, value in events]

    assert None is not after(NAME, written(one, 1.5)) == after(NAME, written(one, 99.0))
    assert (after(NAME, written(one, 0)) == after(NAME, written(other, 0))) == (bits(one) == bits(other))


def test_a_record_is_checked_as_tensorflow_checks_it() -> None:
    """From a file of TensorFlow 2.21: the length of its first record, and the checksum."""
    assert _masked(struct.pack("<Q", 62)).hex() == "d9d240e7"
    whole = record(event(1, 1, 1.0))
    for place in (0, 9, 14, len(whole) - 1):
        assert after(NAME, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]) is None
    assert after(NAME, whole[:-1]) is None
    assert after(NAME, b"") is None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("tb/train/events.out.tfevents.1795790404.b24499087759.1.0.v2", "tb/train/events.out.tfevents.v2"),
        ("events.out.tfevents.1795790404.a.host.of.mine", "events.out.tfevents"),
        ("events.out.tfevents.1795790404.10.0.0.1.7.0.v2", "events.out.tfevents.v2"),
        ("model.keras", "model.keras"),
        ("events.out.tfevents.x", "events.out.tfevents.x"),
    ],
)
def test_names_of_event_files_are_paired_without_time_and_host(path: str, name: str) -> None:
    assert pairing_name(path) == name


def test_several_event_files_of_a_folder_are_paired_in_the_order_of_their_making() -> None:
    made = [
        "tb/events.out.tfevents.9.h.1.0.v2",
        "tb/events.out.tfevents.10.h.1.0.v2",
        "tb/events.out.tfevents.10.h.1.1.v2",
    ]
    names = ["tb/events.out.tfevents.v2", "tb/events.out.tfevents.v2.2", "tb/events.out.tfevents.v2.3"]
    for order in permutations(zip(made, names, strict=True)):
        assert pairing_names([path for path, _name in order]) == dict(order)


def test_no_two_files_get_one_name() -> None:
    paths = [
        "events.out.tfevents.1.h.v2",
        "events.out.tfevents.v2",
        "events.out.tfevents.2.h.v2",
        "events.out.tfevents.v2.2",
    ]
    found = pairing_names(paths)
    assert len(set(found.values())) == len(paths)
    assert found["events.out.tfevents.v2"] == "events.out.tfevents.v2"
