"""HDF5: what is under which path counts, and how it lies in the file does not."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from repro.stabilize import registry


def after(content: bytes) -> bytes | None:
    """What is left of a file."""
    found = registry.stabilized("x.h5", content)
    return found[0] if found else None


def h5(*fill: Callable[[h5py.File], Any], **how: Any) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w", **how) as opened:
        for each in fill:
            each(opened)
    return file.getvalue()


def with_values(values: Any, **how: Any) -> bytes:
    return h5(lambda file: file.create_dataset("x", data=values, **how))


@given(arrays.arrays(np.float32, (4, 3)))
def test_how_values_are_laid_out_does_not_matter(values: np.ndarray[Any, Any]) -> None:
    found = after(with_values(values))
    assert (
        None
        is not found
        == after(with_values(values, chunks=(2, 1), compression="gzip", shuffle=True, fletcher32=True))
    )
    assert found == after(with_values(values, maxshape=(None, None), track_times=True))
    assert found == after(h5(lambda file: file.create_dataset("x", data=values), libver="latest"))


@given(arrays.arrays(np.float32, (2, 3)), st.integers(0, 5), st.integers(0, 31))
def test_each_bit_of_the_values_counts(values: np.ndarray[Any, Any], place: int, bit: int) -> None:
    other = values.copy()
    other.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
    assert None is not after(with_values(values)) != after(with_values(other)) is not None


def test_times_and_the_order_of_writing_do_not_matter() -> None:
    def one(file: h5py.File) -> None:
        file["a"], file["b"] = 1, 2

    def other(file: h5py.File) -> None:
        file["gone"] = np.zeros(1000)
        file["b"], file["a"] = 2, 1
        del file["gone"]

    first = h5(lambda file: file.create_dataset("x", data=1, track_times=True))
    time.sleep(1.1)
    second = h5(lambda file: file.create_dataset("x", data=1, track_times=True))
    assert first != second
    assert None is not after(first) == after(second)
    assert None is not after(h5(one)) == after(h5(other))


def objects(file: h5py.File) -> None:
    """One of each."""
    file["text"], file["texts"] = "é", np.array(["a", "bc", ""], dtype=h5py.string_dtype())
    file["bytes"], file["empty"] = np.array([b"a", b"bc"]), h5py.Empty("f4")
    file["bool"], file["complex"] = np.array([True, False]), np.array([1 + 2j])
    file["records"] = np.array([(1, 2.5)], dtype=np.dtype([("i", "i1"), ("f", "f8")], align=True))
    file["enum"] = np.array([0, 1], dtype=h5py.enum_dtype({"A": 0, "B": 1}, basetype="i1"))
    file["opaque"], file["type"] = np.array([b"ab"], dtype="V2"), np.dtype("f8")
    lists = file.create_dataset("lists", (2,), dtype=h5py.vlen_dtype("i4"))
    lists[0] = [1, 2]
    file["group/array"] = np.zeros(2, dtype=[("m", "f4", (2, 2))])
    file["group/again"], file["group/loop"] = file["text"], file["/"]
    file["group/soft"], file["group/elsewhere"] = h5py.SoftLink("/text"), h5py.ExternalLink("o.h5", "/x")
    references = file.create_dataset("references", (2,), dtype=h5py.ref_dtype)
    references[0] = file["text"].ref
    file["axis"] = np.arange(2)
    file["axis"].make_scale("axis")
    file["bool"].dims[0].attach_scale(file["axis"])
    file.attrs.update({"number": 3, "names": ["a", "b"], "nothing": h5py.Empty("f4")})
    ordered = file.create_group("ordered", track_order=True)
    ordered["b"], ordered["a"] = 1, 2
    ordered.attrs.update({"x": 1, "y": 2})


def change(path: str, value: Any) -> Callable[[h5py.File], None]:
    def done(file: h5py.File) -> None:
        del file[path]
        file[path] = value

    return done


def reordered(file: h5py.File) -> None:
    del file["ordered"]
    ordered = file.create_group("ordered", track_order=True)
    ordered["a"], ordered["b"] = 2, 1
    ordered.attrs.update({"x": 1, "y": 2})


def attributes_reordered(file: h5py.File) -> None:
    for name in list(file["ordered"].attrs):
        del file["ordered"].attrs[name]
    file["ordered"].attrs.update({"y": 2, "x": 1})


def set_item(path: str, place: int, value: Callable[[h5py.File], Any]) -> Callable[[h5py.File], None]:
    def done(file: h5py.File) -> None:
        file[path][place] = value(file)

    return done


CHANGES = {
    "text": change("text", "e"),
    "text of fixed length": change("text", np.array("é".encode(), dtype="S2")),
    "one of many texts": set_item("texts", 1, lambda _file: "bd"),
    "type": change("bool", np.array([1, 0], "i1")),
    "size of numbers": change("complex", np.array([1 + 2j], "c8")),
    "order of bytes": change("axis", np.arange(2, dtype=">i8")),
    "shape": change("complex", np.array([[1 + 2j]])),
    "nothing": change("empty", np.float32(0)),
    "field": change("records", np.array([(1, 2.6)], dtype=[("i", "i1"), ("f", "f8")])),
    "name of a field": change("records", np.array([(1, 2.5)], dtype=[("j", "i1"), ("f", "f8")])),
    "meaning of a number": change("enum", np.array([0, 1], dtype=h5py.enum_dtype({"A": 0, "C": 1}, basetype="i1"))),
    "list": set_item("lists", 0, lambda _file: [1, 3]),
    "longer list": set_item("lists", 1, lambda _file: [0]),
    "inner array": set_item("group/array", 0, lambda _file: (np.ones((2, 2)),)),
    "copy and not the same": change("group/again", "é"),
    "soft link": change("group/soft", h5py.SoftLink("/texts")),
    "link elsewhere": change("group/elsewhere", h5py.ExternalLink("o.h5", "/y")),
    "reference": set_item("references", 0, lambda file: file["texts"].ref),
    "one more reference": set_item("references", 1, lambda file: file["text"].ref),
    "attribute": lambda file: file.attrs.update({"number": 4}),
    "attribute's type": lambda file: file.attrs.update({"number": 3.0}),
    "attribute's name": lambda file: file.attrs.update({"Number": 3}),
    "one name of many": lambda file: file.attrs.update({"names": ["a", "c"]}),
    "group": lambda file: file.create_group("new"),
    "committed type": change("type", np.dtype("f4")),
    "order that is kept": reordered,
    "order of attributes that is kept": attributes_reordered,
}


def test_files_with_one_of_each_are_the_same_each_time() -> None:
    assert None is not after(h5(objects)) == after(h5(objects, libver="latest"))


@pytest.mark.parametrize("cause", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_in_a_file_counts(cause: Callable[[h5py.File], None]) -> None:
    assert None is not after(h5(objects)) != after(h5(objects, cause)) is not None


def test_what_lies_unused_between_fields_does_not_count() -> None:
    kind = np.dtype([("i", "i1"), ("f", "f8")], align=True)
    raw = [np.frombuffer(bytes([1, *[fill] * 7]) + bytes(8), kind) for fill in (0, 255)]
    found = [with_values(each) for each in raw]
    assert found[0] != found[1]
    assert None is not after(found[0]) == after(found[1])


def test_what_stands_before_the_file_counts() -> None:
    content = h5(objects, userblock_size=512)
    assert None is not after(b"front" + content[5:]) != after(content) is not None


def elsewhere(file: h5py.File) -> None:
    file.create_dataset("x", (2,), "i1", external=[("/etc/passwd", 0, 2)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2,), "i1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (2,))
    file.create_virtual_dataset("x", layout)


def part(file: h5py.File) -> None:
    file["x"] = np.arange(4)
    file.create_dataset("y", (1,), dtype=h5py.regionref_dtype)[0] = file["x"].regionref[:2]


def huge(file: h5py.File) -> None:
    file.create_dataset("x", (1 << 40,), "f8", chunks=(1 << 10,))


def rare_float(file: h5py.File) -> None:
    """64 bits, of which more are the mantissa's than a double has."""
    kind = h5py.h5t.IEEE_F64LE.copy()
    kind.set_fields(63, 60, 3, 0, 60)
    kind.set_ebias(3)
    h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((2,)))


def comment(file: h5py.File) -> None:
    h5py.h5o.set_comment(file.create_group("x").id, b"said")


def deep(file: h5py.File) -> None:
    group = file
    for _level in range(1500):
        group = group.create_group("g")


@pytest.mark.parametrize("fill", [elsewhere, virtual, part, huge, rare_float, comment, deep])
def test_a_file_that_cannot_be_vouched_for_stays_as_it_is(fill: Callable[[h5py.File], None]) -> None:
    assert after(h5(fill)) is None


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", h5(objects)[:-200], b"x" * 3000])
def test_what_is_no_hdf5_stays_as_it_is(content: bytes) -> None:
    assert after(content) is None


def test_no_link_is_followed_out_of_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # who opens it waits for ever
    content = h5(lambda file: file.__setitem__("x", h5py.ExternalLink(str(tmp_path / "pipe"), "/x")))
    assert after(content) is not None
