"""Every bit of a file counts, but for those that are known to mean nothing: each is turned, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from repro.stabilize import registry
from tests.test_stabilizers import PICTURE, note, picture, png
from tests.test_stabilizers_archives import gzipped, zipped
from tests.test_stabilizers_tensorflow import event, fingerprint, function, graph, node, record, saved


def unnoticed(name: str, content: bytes) -> set[int]:
    """The bytes in which a bit can be turned, and the file still passes for the same."""
    before = registry.stabilized(name, content)
    assert before is not None
    found = set()
    for place in range(len(content)):
        for bit in range(8):
            other = content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
            after = registry.stabilized(name, other)
            if after and after[0] == before[0]:
                found.add(place)
    return found


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.png", PICTURE),
        ("x.png", png(picture("P"), pnginfo=note(Title="x"))),
        ("x.csv", b'a,b\n1.5,"q"\n'),
        ("x.json", b'{"a":[1,1.5,null,"\xc3\xa9"]}'),
        ("x.html", b"<p a='1'>text</p>"),
        ("x.tfevents", record(event(1.0, 2, 0.5))),
        ("saved_model.pb", saved(graph(node("a", x=b"1", y=b"2"), functions=[function("f", node("n", p=b"1"))]))),
    ],
)
def test_no_bit_can_be_turned_unnoticed(name: str, content: bytes) -> None:
    assert unnoticed(name, content) == set()


def test_of_a_fingerprint_only_the_random_number_and_the_checksum_can() -> None:
    assert unnoticed("fingerprint.pb", fingerprint()) == {1, 6}


def test_of_a_gz_only_time_system_and_effort_can() -> None:
    content = gzipped(b"content", level=0)
    assert unnoticed("x.gz", content) - {10} == {3, 4, 5, 6, 7, 8, 9}  # 10: bits before a block that is as it was


def places(content: bytes, mark: bytes, *spans: tuple[int, int]) -> Iterator[int]:
    """Spans of bytes, counted from each place where a mark is."""
    begin = content.find(mark)
    while begin >= 0:
        for first, last in spans:
            yield from range(begin + first, begin + last + 1)
        begin = content.find(mark, begin + 1)


def test_of_a_zip_only_times_versions_and_permissions_can() -> None:
    content = zipped({"a": b"content", "b": b""}, 2020)
    meaningless = {
        *places(content, b"PK\3\4", (4, 5), (10, 13)),  # version needed, time
        *places(content, b"PK\1\2", (4, 7), (12, 15), (36, 41)),  # versions, time, attributes
    }
    assert unnoticed("x.zip", content) <= meaningless
