"""What each stabilizer keeps and what it takes out: no two files of a different meaning become one."""

from __future__ import annotations

import base64
import io
import json
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, PngImagePlugin

from repro.stabilize import registry
from repro.stabilize.form import decimal


def after(name: str, content: bytes) -> bytes | None:
    """What is left of a file."""
    found = registry.stabilized(name, content)
    return found[0] if found else None


# numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.0", "1e0"),
        ("1.00", "1e0"),
        ("1e0", "1e0"),
        ("0.1e1", "1e0"),
        ("100.0", "1e2"),
        ("-0.0", "-0e0"),
        ("0.000", "0e0"),
        ("1.5e-3", "15e-4"),
        ("0.1000000000000000055", "1000000000000000055e-19"),  # 0.1 as a double, and not written so
        ("1e400", "1e400"),  # no double holds it
        ("1", None),
        ("007.5", None),
        ("+1.5", None),
        (".", None),
        ("e5", None),
        ("1.5.2", None),
        ("١.٥", None),
        ("1_0.5", None),
    ],
)
def test_a_number_is_its_exact_value(text: str, value: str | None) -> None:
    assert decimal(text) == value


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 5))
def test_a_number_written_with_more_zeros_is_the_same(number: float, zeros: int) -> None:
    text = repr(number)
    mantissa, mark, exponent = text.partition("e")
    longer = mantissa + ("" if "." in mantissa else ".") + "0" * zeros + mark + exponent
    if "." in longer or mark:
        assert decimal(longer) == decimal(text if "." in text or mark else f"{text}.0")


# JSON ------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def exact(value: Any) -> Any:
    """A value so that `==` tells 1 from 1.0 and from True, and -0.0 from 0.0."""
    if isinstance(value, dict):
        return "dict", {key: exact(each) for key, each in value.items()}
    if isinstance(value, list):
        return "list", [exact(each) for each in value]
    return type(value).__name__, repr(value)


@given(JSON, JSON)
def test_two_json_documents_are_one_only_if_they_hold_the_same(one: Any, other: Any) -> None:
    left, right = (after("x.json", json.dumps(each).encode()) for each in (one, other))
    assert (left == right) == (exact(one) == exact(other))


@given(JSON)
def test_spaces_and_escapes_and_the_order_of_keys_do_not_matter_to_json(document: Any) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(each) for each in value] if isinstance(value, list) else value

    written = json.dumps(turned(document), indent=3, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert after("x.json", written) == after("x.json", json.dumps(document).encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("0", "-0"),
        ("0.0", "-0.0"),
        ("1e400", "1e500"),
        ("NaN", "null"),
        ("NaN", '"NaN"'),
        ("Infinity", "-Infinity"),
        ("12345678901234567890123", "12345678901234567890124"),
        ("0.1", "0.10000000000000001"),
        ('"é"', '"e\\u0301"'),
        ('"\\ud800"', '"\\ud801"'),
        ("[1,2]", "[2,1]"),
        ('{"a":1}', '{"a":1,"b":null}'),
        ("[]", "{}"),
    ],
)
def test_json_that_means_another_thing_stays_another(one: str, other: str) -> None:
    assert None is not after("x.json", one.encode()) != after("x.json", other.encode()) is not None


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":1,"a":1}',
        b"",
        b"{",
        b"[1,]",
        b"\xff",
        b"\xef\xbb\xbf1",
        b'"\xed\xa0\x80"',
        b"1 2",
        b"01",
        b"[" * 100_000 + b"]" * 100_000,
        b"1e" + b"9" * 400,
        b'"a\nb"',
    ],
)
def test_what_is_no_plain_json_stays_as_it_is(content: bytes) -> None:
    assert after("x.json", content) is None


def test_numbers_of_any_length_cost_no_more_than_their_text() -> None:
    """Python's own int() refuses above 4,300 digits, and takes the square of the time below that."""
    assert after("x.json", b"9" * 1_000_000) == b"9" * 1_000_000
    assert after("x.json", b"0." + b"9" * 1_000_000) is not None


def test_json_lines_are_compared_line_by_line() -> None:
    assert after("x.jsonl", b'{"b":1.0, "a":2}\r\n\n3') == b'{"a":2,"b":1e0}\n\n3\n'
    assert after("x.jsonl", b"1\n2") != after("x.jsonl", b"2\n1")
    assert after("x.jsonl", b"1\n2\n") != after("x.jsonl", b"12\n")


# CSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a,b\n1.0,2\n", "a,b\n1.00,2\n"),
        ("x\n1e3\n", "x\n1000.0\n"),
        ("x\n.5", "x\r\n0.50\r\n"),
    ],
)
def test_a_number_written_otherwise_is_the_same_in_a_table(one: str, other: str) -> None:
    assert None is not after("x.csv", one.encode()) == after("x.csv", other.encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("007", "7"),
        ("1.10", '"1.10"'),
        ("a,b", '"a,b"'),
        ("a\nb", "a,b"),
        ("", '""'),
        ("1.0", "-1.0"),
        ("0.0", "-0.0"),
        ("0.1", "0.10000000000000001"),
        ("nan", "NaN"),
        ("1.0", "1.0 "),
        ("a,", "a"),
        ("a\n\n", "a\n"),
        ('"a""b"', '"ab"'),
        ("n1e0", "1.0"),
        ("1.5;2", "1.50;2"),
    ],
)
def test_a_table_that_says_another_thing_stays_another(one: str, other: str) -> None:
    assert None is not after("x.csv", one.encode()) != after("x.csv", other.encode()) is not None


@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])), min_size=1)))
def test_no_two_tables_of_text_become_one(rows: list[list[str]]) -> None:
    """All in quotes, so that nothing is a number: what is left tells everything that was there."""
    content = "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows).encode()
    found = after("x.csv", content)
    assert found is not None
    assert [[cell[1:] for cell in json.loads(line)] for line in found.splitlines()] == rows


@pytest.mark.parametrize("content", [b'a"b', b'"a"b', b'"a', b"\xff", b"a\rb"])
def test_a_table_with_a_stray_quote_or_in_another_encoding_stays_as_it_is(content: bytes) -> None:
    assert after("x.csv", content) is None


# arrays ----------------------------------------------------------------------------------------------------------

SIMPLE = (
    arrays.boolean_dtypes()
    | arrays.integer_dtypes()
    | arrays.floating_dtypes(sizes=(16, 32, 64))
    | arrays.complex_number_dtypes(sizes=(64, 128))
    | arrays.unicode_string_dtypes(max_len=4)
    | arrays.byte_string_dtypes(max_len=4)
    | arrays.datetime64_dtypes()
)
ARRAYS = arrays.arrays(dtype=SIMPLE, shape=arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))


def npy(array: np.ndarray[Any, Any], version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a later version of the format is used
        np.lib.format.write_array(file, array, version=version, allow_pickle=False)
    return file.getvalue()


@given(ARRAYS)
def test_the_layout_of_an_array_does_not_matter(array: np.ndarray[Any, Any]) -> None:
    found = after("x.npy", npy(array))
    assert found is not None
    assert found == after("x.npy", npy(np.array(array, order="F"), (3, 0)))
    assert found == after("x.npy", npy(array.astype(array.dtype.newbyteorder())))


@pytest.mark.parametrize(
    "kind", ["?", "i1", "i8", "f2", "f8", "c8", "c16", "U1", "U3", "S1", "S3", "M8[ns]", "m8[D]", "V3"]
)
def test_the_layout_of_an_array_of_each_type_does_not_matter(kind: str) -> None:
    little = np.dtype(kind).newbyteorder("<")
    array = np.frombuffer(bytes(range(6)) * little.itemsize, "V1").view(f"V{little.itemsize}").reshape(2, 3)
    if little.kind == "U":
        array = np.array([["a", "é", ""], ["b", "c", "d"]], little)
    if little.kind == "b":
        array = np.array([[True, False, True], [False, False, True]])
    array = array.view(little)
    found = after("x.npy", npy(array))
    assert None is not found == after("x.npy", npy(np.array(array, order="F")))
    assert found == after("x.npy", npy(array.astype(little.newbyteorder(">"))))
    assert found == after("x.npy", npy(np.array(array.astype(little.newbyteorder(">")), order="F")))


@given(ARRAYS, ARRAYS)
def test_two_arrays_are_one_only_if_type_shape_and_bits_are(
    one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]
) -> None:
    little = [each.astype(each.dtype.newbyteorder("<")) for each in (one, other)]
    same = little[0].dtype == little[1].dtype and one.shape == other.shape
    same = same and little[0].tobytes("C") == little[1].tobytes("C")
    assert (after("x.npy", npy(one)) == after("x.npy", npy(other))) == same


@given(arrays.arrays(np.float32, (2, 3)), st.integers(0, 5), st.integers(0, 31))
def test_each_bit_of_an_array_counts(array: np.ndarray[Any, Any], place: int, bit: int) -> None:
    """Also those of a NaN, and the sign of zero."""
    other = array.copy()
    other.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
    assert after("x.npy", npy(array)) != after("x.npy", npy(other))


def test_arrays_of_objects_and_records_are_not_opened() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    assert after("x.npy", file.getvalue()) is None
    assert after("x.npy", npy(np.zeros(2, dtype=[("a", "i1"), ("b", "f8")]))) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: raw[:6] + b"\7" + raw[7:],
        lambda raw: raw.replace(b"(3,)", b"(9,)"),
        lambda raw: raw.replace(b"False", b"Falze"),
        lambda raw: raw.replace(b"<f8", b"=f8"),
        lambda raw: raw[:8] + b"\xff\xff" + raw[10:],
    ],
)
def test_a_broken_array_stays_as_it_is(change: Any) -> None:
    assert after("x.npy", change(npy(np.arange(3.0)))) is None


# PNG -------------------------------------------------------------------------------------------------------------


def png(image: Image.Image, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **how)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def with_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
    """After the header."""
    return content[:33] + chunk(kind, data) + content[33:]


def picture(mode: str = "RGB", size: tuple[int, int] = (5, 4)) -> Image.Image:
    image = Image.new(mode, size)
    image.putpixel((1, 1), 1)
    return image


PICTURE = png(picture())


def note(**texts: str) -> PngImagePlugin.PngInfo:
    found = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        found.add_text(key.replace("_", " "), text)
    return found


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_how_and_when_and_by_what_a_picture_was_saved_does_not_matter(mode: str) -> None:
    image = picture(mode)
    found = after("x.png", png(image))
    assert found is not None
    assert found == after("x.png", png(image, compress_level=0, pnginfo=note(Software="other", Creation_Time="now")))
    assert found == after("x.png", with_chunk(png(image), b"tIME", bytes(7)))


@given(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]), st.data())
def test_each_pixel_counts(mode: str, data: st.DataObject) -> None:
    size = len(picture(mode, (8, 2)).tobytes())
    raw = data.draw(st.binary(min_size=size, max_size=size))
    place, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7))
    other = bytes([*raw[:place], raw[place] ^ 1 << bit, *raw[place + 1 :]])
    one, two = (Image.frombytes(mode, (8, 2), each) for each in (raw, other))
    if mode == "P":
        one.putpalette(bytes(range(256)) * 3)  # else the writer thinks that fewer bits are enough
        two.putpalette(bytes(range(256)) * 3)
    assert None is not after("x.png", png(one)) != after("x.png", png(two)) is not None


@pytest.mark.parametrize(
    "other",
    [
        png(picture("RGBA")),
        png(picture("P")),
        png(picture(size=(4, 5))),
        png(picture(), dpi=(72, 72)),
        png(picture(), transparency=(0, 0, 0)),
        png(picture(), icc_profile=b"profile"),
        png(picture(), pnginfo=note(parameters="seed 1")),
        with_chunk(PICTURE, b"gAMA", struct.pack(">I", 45455)),
        with_chunk(PICTURE, b"sRGB", b"\0"),
        with_chunk(PICTURE, b"prVt", b"of another's"),
    ],
)
def test_what_decides_how_a_picture_looks_counts_as_its_pixels_do(other: bytes) -> None:
    assert None is not after("x.png", PICTURE) != after("x.png", other) is not None


def test_the_colours_of_a_palette_count() -> None:
    one, other = picture("P"), picture("P")
    one.putpalette([1, 2, 3, 4, 5, 6])
    other.putpalette([1, 2, 3, 4, 5, 7])
    assert one.tobytes() == other.tobytes()
    assert after("x.png", png(one)) != after("x.png", png(other))


def header(width: int, height: int, depth: int, colour: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def sixteen_bits(value: int) -> bytes:
    """One pixel of 3 x 16 bits, of which Pillow reads the upper half."""
    data = zlib.compress(b"\0" + struct.pack(">HHH", value, 0, 0))
    return header(1, 1, 16, 2) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        sixteen_bits(1),
        with_chunk(PICTURE, b"acTL", struct.pack(">II", 1, 0)),
        with_chunk(PICTURE, b"NEWC", b""),
        PICTURE[:-1],
        PICTURE + b"x",
        PICTURE[:40] + b"\xff" + PICTURE[41:],
        header(60_000, 60_000, 8, 2) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""),
        header(5, 4, 8, 2) + chunk(b"IEND", b""),
        header(1, 1, 8, 0) + chunk(b"IDAT", zlib.compress(bytes(2))[:-1] + b"x") + chunk(b"IEND", b""),
        header(1, 1, 8, 0) + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b""),
        header(0, 0, 8, 2) + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        b"",
        b"GIF89a",
    ],
)
def test_a_picture_that_cannot_be_vouched_for_stays_as_it_is(content: bytes) -> None:
    assert after("x.png", content) is None


# HTML ------------------------------------------------------------------------------------------------------------


def page(*pictures: bytes) -> bytes:
    images = "".join(f'<img src="data:image/png;base64,{base64.b64encode(each).decode()}">\n' for each in pictures)
    return f"<html>\n<p>text</p>\n{images}</html>".encode()


def test_the_pictures_of_a_page_are_compared_by_their_pixels() -> None:
    other = png(picture(), compress_level=0, pnginfo=note(Software="other"))
    found = after("x.html", page(PICTURE, PICTURE))
    assert (
        found == after("x.html", page(other, PICTURE)) == after("x.html", page(PICTURE, other).replace(b"\n", b"\r\n"))
    )
    assert found != after("x.html", page(PICTURE, png(picture("P"))))
    assert found != after("x.html", page(PICTURE))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"<pre>a b</pre>", b"<pre>a  b</pre>"),
        (b"<p a=1 b=2>", b"<p b=2 a=1>"),
        (b"data:image/png;base64,AAAA", b"data:image/png;base64,AAAB"),
        (page(PICTURE[:-1] + b"x"), page(PICTURE[:-1] + b"y")),  # no picture: text
        (b"caf\xe9", b"caf\xe8"),
    ],
)
def test_all_else_of_a_page_counts_as_it_is_written(one: bytes, other: bytes) -> None:
    assert None is not after("x.html", one) != after("x.html", other) is not None


def test_a_page_in_an_encoding_without_ascii_stays_as_it_is() -> None:
    assert after("x.html", "<p>".encode("utf-16")) is None


def test_the_name_of_a_file_decides_which_stabilizer_it_gets() -> None:
    names = ("a/model.weights.h5", "X.PNG", "x.keras", "x.tar.gz", "x.json.gz", "saved_model.pb", "x.txt", "json", "")
    found = [registry.applicable(name) for name in names]
    assert found == ["h5@1", "png-pixels@1", "keras-zip@1", "gzip@1", "gzip@1", "saved-model@1", None, None, None]
    assert registry.reason("png-pixels@1").startswith("how a picture was compressed")
    assert registry.reason("png-pixels@9") == ""
