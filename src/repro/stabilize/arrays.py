"""One array of NumPy's, as `.npy`: its type, its shape and its values."""

from __future__ import annotations

import ast
import math
import re

from repro.stabilize.form import Stabilizer, UnreadableError, digest, line

MAGIC = b"\x93NUMPY"
HEADER = 64 << 10  # bytes; it is a Python literal, and NumPy itself reads none above 10,000 unasked
SIMPLE = re.compile(r"([<>|])([biufcSUVmM])([0-9]{1,6})(\[[^\]]*\])?")


def array(content: bytes) -> bytes:
    """Values in C order and with the low byte first, bit for bit: -0.0 is not 0.0, and no two NaNs are alike."""
    if content[:6] != MAGIC or len(content) < 12 or content[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise UnreadableError("no array of NumPy's")
    width = 2 if content[6] == 1 else 4
    begin = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    kind, columns, shape = _header(content[8 + width : begin], "utf-8" if content[6] == 3 else "latin-1")
    order, letter, size, unit = kind
    itemsize = size * 4 if letter == "U" else size
    values = memoryview(content)[begin:]
    if math.prod(shape) * itemsize != len(values):
        raise UnreadableError("not as many values as its shape says")
    if len(values) and ((columns and len(shape) > 1) or order == ">"):
        values = memoryview(_arranged(values, columns, shape, kind))
    return line({"type": f"{letter}{size}{unit}", "shape": shape, "values": digest(values)})


def _header(raw: bytes, encoding: str) -> tuple[tuple[str, str, int, str], bool, tuple[int, ...]]:
    if len(raw) > HEADER:
        raise UnreadableError("the description of the array is too long")
    try:
        header = ast.literal_eval(raw.decode(encoding).strip())
        descr, columns, shape = (header.pop(key) for key in ("descr", "fortran_order", "shape"))
    except (ValueError, SyntaxError, RecursionError, MemoryError, LookupError, AttributeError, TypeError) as error:
        raise UnreadableError("the description of the array cannot be read") from error
    match = SIMPLE.fullmatch(descr) if isinstance(descr, str) else None
    if not match:
        raise UnreadableError("an array of Python objects or of records")
    if (match[1] == "|" and match[2] not in "bSV" and match[3] != "1") or (match[2] == "c" and int(match[3]) % 2):
        raise UnreadableError("a type that NumPy does not write")
    if header or not isinstance(columns, bool) or not isinstance(shape, tuple):
        raise UnreadableError("the description of the array is not one of NumPy's")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise UnreadableError("the array has no shape")
    return (match[1], match[2], int(match[3]), match[4] or ""), columns, shape


def _arranged(values: memoryview, columns: bool, shape: tuple[int, ...], kind: tuple[str, str, int, str]) -> bytes:
    """The same values in C order, low byte first; their bits stay as they are."""
    import numpy

    order, letter, size, _unit = kind
    if letter in "SVb":
        found = numpy.frombuffer(values, f"V{size}")
    else:
        word = {"U": 4, "c": size // 2}.get(letter, size)
        words = numpy.frombuffer(values, numpy.uint8).reshape(-1, word)
        swapped = numpy.ascontiguousarray(words[:, ::-1] if order == ">" else words)
        found = swapped.reshape(-1).view(f"V{size * 4 if letter == 'U' else size}")
    return found.reshape(shape[::-1]).T.tobytes("C") if columns else found.tobytes()


NPY = Stabilizer(
    name="npy",
    version=1,
    patterns=("*.npy",),
    function=array,
    reason="the order of bytes and of axes in memory, and the format's version, do not belong to an array's values",
)
