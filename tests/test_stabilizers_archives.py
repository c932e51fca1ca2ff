"""Archives: what is in them counts, by whom and when it was packed does not, and what is hidden in one is found."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.stabilize import registry
from repro.stabilize.form import DEPTH, LIMIT

NAMES = st.text("abc/._é", min_size=1, max_size=5).filter(lambda name: not name.endswith("/"))
FILES = st.dictionaries(NAMES, st.binary(max_size=20), max_size=4)


def after(name: str, content: bytes) -> bytes | None:
    """What is left of a file."""
    found = registry.stabilized(name, content)
    return found[0] if found else None


def zipped(files: dict[str, bytes], year: int = 1980, method: int = zipfile.ZIP_STORED, **attributes: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0))
            member.external_attr, member.compress_type = 0o100644 << 16, method
            for key, value in attributes.items():
                setattr(member, key, value)
            archive.writestr(member, content)
    return file.getvalue()


def tarred(files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT, **attributes: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in attributes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def gzipped(content: bytes, name: str = "", mtime: float = 0, level: int = 9) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile(name, "wb", level, file, mtime) as packed:
        packed.write(content)
    return file.getvalue()


# zip -------------------------------------------------------------------------------------------------------------


@given(FILES)
def test_order_times_and_compression_of_a_zip_do_not_matter(files: dict[str, bytes]) -> None:
    turned = dict(reversed(files.items()))
    found = after("x.zip", zipped(files))
    assert None is not found == after("x.zip", zipped(turned, 2026, zipfile.ZIP_DEFLATED))
    assert found == after("x.zip", zipped(files, external_attr=0o100600 << 16))  # the other umask


@given(FILES, FILES)
def test_two_zips_are_one_only_if_their_members_are(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert (after("x.zip", zipped(one)) == after("x.zip", zipped(other))) == (one == other)


ONE = {"a": b"content"}


@pytest.mark.parametrize(
    "other",
    [
        zipped(ONE, external_attr=0o100755 << 16),
        zipped(ONE, external_attr=0o120777 << 16),
        zipped(ONE, comment=b"said"),
        zipped(ONE | {"b/": b""}),
        zipped({"a": b"content "}),
        zipped({"A": b"content"}),
    ],
    ids=["program", "link", "comment", "folder", "content", "name"],
)
def test_what_a_zip_says_of_a_member_counts(other: bytes) -> None:
    assert None is not after("x.zip", zipped(ONE)) != after("x.zip", other) is not None


def twice() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a", b"2")
    return file.getvalue()


def with_hidden(content: bytes, hidden: bytes) -> bytes:
    """Bytes between the members and the directory, which then is found where it is."""
    end = content.rindex(b"PK\5\6")
    start = int.from_bytes(content[end + 16 : end + 20], "little")
    moved = content[end : end + 16] + (start + len(hidden)).to_bytes(4, "little") + content[end + 20 :]
    return content[:start] + hidden + content[start:end] + moved


def encrypted(content: bytes) -> bytes:
    """By its flag alone, in both places."""
    raw = bytearray(content)
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        raw[raw.index(mark) + place] |= 1
    return bytes(raw)


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new, 1)


@pytest.mark.parametrize(
    "content",
    [
        twice(),
        b"#!/bin/sh\n" + zipped(ONE),
        zipped(ONE) + b"x",
        with_hidden(zipped(ONE), b"hidden"),
        zipped(ONE)[:-1],
        encrypted(zipped(ONE)),
        replaced(zipped(ONE), b"content", b"c0ntent"),
        replaced(zipped(ONE, method=zipfile.ZIP_DEFLATED), b"PK\3\4", b"PK\3\5"),
        zipped(ONE, method=zipfile.ZIP_BZIP2),
        zipped(ONE, extra=b"\x75\x70\x01\x00x"),  # another name for other readers
        zipped(ONE, external_attr=0o020644 << 16),
        replaced(zipped({"a": b"12", "b": b""}), b"PK\3\4\x14\0\0\0\0\0\0\0!\0", b"PK\3\4\x14\0\0\0\x08\0\0\0!\0"),
        b"",
    ],
    ids=[
        "two of one name",
        "something before",
        "something behind",
        "something between",
        "cut off",
        "encrypted",
        "checksum",
        "no header",
        "rare packing",
        "further names",
        "device",
        "two stories",
        "empty",
    ],
)
def test_a_zip_that_cannot_be_vouched_for_stays_as_it_is(content: bytes) -> None:
    assert after("x.zip", content) is None


def test_a_zip_from_a_pipe_is_read_too() -> None:
    """Its sizes come after the bytes."""

    class Pipe(io.BytesIO):
        def seek(self, *_place: int) -> int:
            raise io.UnsupportedOperation

        def seekable(self) -> bool:
            return False

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a", "b"):
            archive.writestr(name, b"content" * 9)
    straight = zipped({"a": b"content" * 9, "b": b"content" * 9})
    assert after("x.zip", pipe.getvalue()) == after("x.zip", straight) is not None


def test_a_zip_that_is_ready_for_large_members_is_read_too() -> None:
    """Keras writes such ones."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, archive.open(zipfile.ZipInfo("a"), "w", force_zip64=True) as member:
        member.write(b"content")
    assert after("x.zip", file.getvalue()) == after("x.zip", zipped(ONE)) is not None


def test_arrays_in_an_npz_are_compared_as_arrays() -> None:
    def saved(write: Callable[..., None], **arrays: Any) -> bytes:
        file = io.BytesIO()
        write(file, **arrays)
        return file.getvalue()

    values = np.arange(6.0).reshape(2, 3)
    one = saved(np.savez, a=values, b=np.ones(2))
    assert (
        None
        is not after("x.npz", one)
        == after("x.npz", saved(np.savez_compressed, b=np.ones(2), a=np.asfortranarray(values)))
    )
    assert after("x.npz", one) != after("x.npz", saved(np.savez, a=values, b=np.ones(2, "f4")))
    assert after("x.npz", one) != after("x.npz", saved(np.savez, a=values, c=np.ones(2)))


def test_archives_within_archives_are_opened_and_say_by_which_stabilizer() -> None:
    one = zipped({"in.tar": tarred({"x.json.gz": gzipped(b'{"b":1, "a":1.0}')})})
    other = zipped({"in.tar": tarred({"x.json.gz": gzipped(b'{"a":1.00,"b":1}', mtime=9)}, mtime=7)}, 2026)
    found = after("x.zip", one)
    assert None is not found == after("x.zip", other)
    assert [json.loads(line).get("stabilizer") for line in (found or b"").splitlines()] == [None, "tar@1"]


def test_a_broken_file_in_an_archive_counts_byte_for_byte() -> None:
    one, other = zipped({"x.json": b"{broken"}), zipped({"x.json": b"{ broken"})
    assert None is not after("x.zip", one) != after("x.zip", other)


# hostile ---------------------------------------------------------------------------------------------------------


def bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)), packer.flush()])


def test_a_bomb_is_not_unpacked() -> None:
    content = bomb(LIMIT + (2 << 20))
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = packed.compress(bytes(64 << 20)) + packed.flush()
    liar = zipped({"a": raw})  # says that it is stored; then, in both places, that it is packed and small
    for mark, method, size in ((b"PK\3\4", 8, 22), (b"PK\1\2", 10, 24)):
        place = liar.index(mark)
        liar = liar[: place + method] + b"\x08\0" + liar[place + method + 2 :]
        liar = liar[: place + size] + (10).to_bytes(4, "little") + liar[place + size + 4 :]
    tracemalloc.start()
    try:
        assert after("x.zip", liar) is None
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert after("x.gz", content) is None


def test_many_small_bombs_are_one_large_one() -> None:
    quarter = gzip.compress(bytes(LIMIT // 4), mtime=0)
    inner = zipped({f"{number}.gz": quarter for number in range(6)})
    found = after("x.zip", inner)
    lines = [json.loads(line) for line in (found or b"").splitlines()]
    assert [each.get("stabilizer") for each in lines] == [None, *["gzip@1"] * 3, None, None, None]


def test_archives_too_deep_within_archives_count_byte_for_byte() -> None:
    def nested(year: int, depth: int) -> bytes:
        content = zipped(ONE, year)
        for _level in range(depth):
            content = zipped({"x.zip": content})
        return content

    assert after("x.zip", nested(1980, DEPTH)) == after("x.zip", nested(2026, DEPTH)) is not None
    assert after("x.zip", nested(1980, DEPTH + 1)) != after("x.zip", nested(2026, DEPTH + 1)) is not None


# tar -------------------------------------------------------------------------------------------------------------

NORMAL = st.dictionaries(st.text("abcé", min_size=1, max_size=5), st.binary(max_size=20), max_size=4)


@given(NORMAL, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_order_times_owners_and_format_of_a_tar_do_not_matter(files: dict[str, bytes], kind: int) -> None:
    turned = dict(reversed(files.items()))
    other = tarred(turned, kind, mtime=1.5, uid=7, gid=8, uname="me", gname="us", mode=0o600)
    assert None is not after("x.tar", tarred(files)) == after("x.tar", other)
    assert after("x.tar.gz", gzipped(tarred(files))) == after("x.tgz", gzipped(other, mtime=5, level=1)) is not None


@given(NORMAL, NORMAL)
def test_two_tars_are_one_only_if_their_members_are(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert (after("x.tar", tarred(one)) == after("x.tar", tarred(other))) == (one == other)


EMPTY = {"a": b""}


@pytest.mark.parametrize(
    "other",
    [
        tarred(EMPTY, mode=0o755),
        tarred(EMPTY, mode=0o4644),
        tarred(EMPTY, type=tarfile.SYMTYPE, linkname="b"),
        tarred(EMPTY, type=tarfile.SYMTYPE, linkname="c"),
        tarred(EMPTY, type=tarfile.LNKTYPE, linkname="b"),
        tarred(EMPTY, type=tarfile.DIRTYPE),
        tarred(EMPTY, type=tarfile.FIFOTYPE),
        tarred(EMPTY, type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        tarred(EMPTY, type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        tarred(EMPTY, pax_headers={"SCHILY.xattr.user.a": "b"}),
    ],
)
def test_what_a_tar_says_of_a_member_counts(other: bytes) -> None:
    others = {
        after("x.tar", tarred(EMPTY, mode=0o644)),
        after("x.tar", tarred(EMPTY, type=tarfile.SYMTYPE, linkname="d")),
    }
    assert None is not after("x.tar", other) not in others


@pytest.mark.parametrize(
    "content",
    [
        tarred({"a": b"1"}) + tarred({"b": b"1"}),
        tarred({"a": b"1", "./a": b"2"}),
        tarred({"a": b"", "a/b": b""}, type=tarfile.SYMTYPE, linkname="/"),
        tarred({"//a/b": b"1"})[:700],
        tarred(ONE)[:512],
        tarred({"a": b"1" * 600, "b": b""}).replace(b"b\0\0\0", b"c\0\0\0", 1),
        b"",
        b"x" * 1024,
    ],
    ids=["hidden", "two of one name", "below a link", "cut off", "no content", "checksum", "nothing", "no tar"],
)
def test_a_tar_that_cannot_be_vouched_for_stays_as_it_is(content: bytes) -> None:
    assert after("x.tar", content) is None


# gzip ------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_what_is_in_a_gz_counts_and_when_it_was_packed_does_not(one: bytes, other: bytes) -> None:
    assert after("x.gz", gzipped(one)) == after("x.gz", gzipped(one, mtime=9, level=0)) is not None
    assert (after("x.gz", gzipped(one)) == after("x.gz", gzipped(other))) == (one == other)


@pytest.mark.parametrize(
    "content",
    [
        gzipped(b"a") + b"x",
        gzipped(b"a")[:-1],
        gzipped(b"a")[:-8] + bytes(8),
        gzipped(b"a")[:5],
        b"",
        gzipped(b"a") + bytes(9),
        gzipped(b"a")[:3] + b"\x02" + gzipped(b"a")[4:10] + b"xx" + gzipped(b"a")[10:],
    ],
)
def test_a_broken_gz_stays_as_it_is(content: bytes) -> None:
    assert after("x.gz", content) is None


def test_the_name_in_a_gz_counts() -> None:
    assert None is not after("x.gz", gzipped(b"a", "one")) != after("x.gz", gzipped(b"a", "two")) is not None
    assert after("x.gz", gzipped(b"a") + gzipped(b"b")) == after("x.gz", gzipped(b"ab")) is not None


# Keras -----------------------------------------------------------------------------------------------------------


def keras(date: str = "2026-01-01@00:00:00", number: int = 7, other: int = 7, layer: str = "dense") -> bytes:
    def policy(which: int) -> dict[str, Any]:
        return {"class_name": "DTypePolicy", "shared_object_id": which}

    config = {"layers": [{"name": layer, "dtype": policy(number)}, {"name": "b", "dtype": policy(other)}]}
    metadata = {"keras_version": "3.15.1", "date_saved": date}
    return zipped({"metadata.json": json.dumps(metadata).encode(), "config.json": json.dumps(config).encode()})


def test_a_model_of_keras_is_the_same_whenever_and_at_whichever_address_it_was_saved() -> None:
    found = after("x.keras", keras())
    assert None is not found == after("x.keras", keras(date="2027-02-02@11:11:11"))
    assert found == after("x.keras", keras(number=140425309072656, other=140425309072656))


@pytest.mark.parametrize("other", [keras(layer="other"), keras(other=8)])
def test_a_layer_of_keras_counts_and_which_objects_are_one(other: bytes) -> None:
    assert None is not after("x.keras", keras()) != after("x.keras", other) is not None
    assert after("x.keras", keras(other=8)) == after("x.keras", keras(number=8, other=7))
