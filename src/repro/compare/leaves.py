"""The numbers in a file, each by its place, and all else that is in it; what cannot be read for sure is not read.

Two files may be called the same only by what was compared: a file with a key twice, with numbers beside its numbers,
or of a kind that is not known here has no leaves.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from repro.compare.tolerance import Margin
from repro.experiment import Value

# not with a zero in front: that is a name made of digits
NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE | re.ASCII)
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
TEXTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
ARRAYS = (".npz", ".npy")
LIMIT = 1 << 30  # bytes of a file that is read into memory

Leaf = tuple[str, Any]  # place, and a number or whatever stands there


class Distance(Value, frozen=True, kw_only=True):
    """What comparing the numbers of two files found."""

    same: bool  # everything else is equal, and every number is close enough
    remark: str


class UnreadableError(Exception):
    """There are no leaves to be compared; says why."""


def readable(name: str) -> bool:
    """Whether numbers can be read in files of this kind."""
    return name.lower().endswith(TEXTS + ARRAYS)


def is_text(name: str) -> bool:
    """Whether it is a report of numbers for people and programs, not a store of weights."""
    return name.lower().endswith(TEXTS)


def distance(name: str, before: bytes, after: bytes, margin: Margin) -> Distance:
    """Whether all numbers of two files are inside a margin and all else in them is equal."""
    try:
        if name.lower().endswith(ARRAYS):
            return _arrays_apart(_arrays(name, before), _arrays(name, after), margin)
        return _apart(texts(name, before), texts(name, after), margin)
    except UnreadableError as error:
        return Distance(same=False, remark=f"its numbers cannot be compared: {error}")


def _apart(before: list[Leaf], after: list[Leaf], margin: Margin) -> Distance:
    if [place for place, _ in before] != [place for place, _ in after]:
        odd = sorted({place for place, _ in before} ^ {place for place, _ in after})
        return Distance(same=False, remark=f"other structure{f', as at {odd[0]}' if odd else ''}")
    farthest = _Farthest()
    for (place, was), (_, now) in zip(before, after, strict=True):
        if is_number(was) and is_number(now):
            if not margin.holds(was, now):
                return Distance(same=False, remark=f"{place}: {was!r} -> {now!r} is outside the tolerance ({margin})")
            farthest.see(place, was, now)
        elif type(was) is not type(now) or was != now:
            return Distance(same=False, remark=f"{place}: {_short(was)} -> {_short(now)}")
    return Distance(same=True, remark=farthest.told(margin))


class _Farthest:
    """The two numbers that are farthest apart of all."""

    def __init__(self) -> None:
        self.most, self.place = 0.0, ""

    def see(self, place: str, before: float, after: float) -> None:
        if before != after and (apart := abs(before - after)) > self.most:
            self.most, self.place = apart, place

    def told(self, margin: Margin) -> str:
        where = f"largest difference {self.most:.3g} at {self.place}" if self.place else "equal numbers"
        return f"{where}; tolerance {margin}"


def is_number(value: Any) -> bool:
    """Whether a leaf is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# texts -----------------------------------------------------------------------------------------------------------


def texts(name: str, content: bytes) -> list[Leaf]:
    """The leaves of JSON, lines of JSON, or a table.

    Raises:
        UnreadableError: it is not what its name says, or says something twice.
    """
    kind = name.lower().rpartition(".")[2]
    try:
        text = content.decode()
        if kind == "json":
            return list(_walk("", _json(text)))
        if kind in ("jsonl", "ndjson"):
            lines = text.split("\n")
            return [leaf for number, line in enumerate(lines, 1) for leaf in _line(number, line)]
        return list(_cells(text, "\t" if kind == "tsv" else ","))
    except (ValueError, RecursionError) as error:
        raise UnreadableError(str(error)) from None


def _line(number: int, line: str) -> Iterator[Leaf]:
    if line.strip():
        yield from _walk(f"line {number}", _json(line))
    else:
        yield f"line {number}", ""


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _walk(place: str, value: Any) -> Iterator[Leaf]:
    """Containers are leaves too, so that an empty one is not the same as none."""
    if isinstance(value, dict):
        yield place, "{}"
        for key in sorted(value):
            yield from _walk(f"{place}.{json.dumps(key)}" if place else json.dumps(key), value[key])
    elif isinstance(value, list):
        yield place, f"[{len(value)}]"
        for index, each in enumerate(value):
            yield from _walk(f"{place}[{index}]", each)
    elif isinstance(value, str):
        yield place, ("text", value)  # a text may look like the mark of a container
    else:
        yield place, value


def _cells(text: str, delimiter: str) -> Iterator[Leaf]:
    import csv

    try:
        for number, row in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1):
            yield f"line {number}", f"{len(row)} columns"
            for column, cell in enumerate(row, 1):
                yield f"line {number} column {column}", _cell(cell)
    except csv.Error as error:
        raise UnreadableError(str(error)) from None


def _cell(text: str) -> Any:
    if not NUMBER.fullmatch(text):
        return text
    return int(text) if INTEGER.fullmatch(text) else float(text)


# arrays ----------------------------------------------------------------------------------------------------------


def _arrays(name: str, content: bytes) -> dict[str, Any]:
    import zipfile

    import numpy

    try:
        if name.lower().endswith(".npy"):
            file = io.BytesIO(content)
            found = {"": numpy.load(file, allow_pickle=False)}
            if file.read(1):
                raise UnreadableError("there is something after its array")
            return found
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if len(set(archive.namelist())) < len(archive.namelist()):
                raise UnreadableError("a member stands twice in it")
        with numpy.load(io.BytesIO(content), allow_pickle=False) as members:
            found = {member: members[member] for member in members.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UnreadableError(str(error)) from None
    if odd := [member for member, array in found.items() if not isinstance(array, numpy.ndarray)]:
        raise UnreadableError(f"{odd[0]} is no array")
    return found


def _arrays_apart(before: dict[str, Any], after: dict[str, Any], margin: Margin) -> Distance:
    if odd := sorted(before.keys() ^ after.keys()):
        return Distance(same=False, remark=f"{odd[0]} is there on one side alone")
    farthest = _Farthest()
    for member in sorted(before):
        was, now = before[member], after[member]
        if was.dtype.newbyteorder("=") != now.dtype.newbyteorder("=") or was.shape != now.shape:
            return Distance(
                same=False, remark=f"{member}: {was.dtype}{list(was.shape)} -> {now.dtype}{list(now.shape)}"
            )
        for index, one, other in _unequal(was, now):
            place = f"{member}[{index}]"
            if not is_number(one) or not margin.holds(one, other):
                return Distance(same=False, remark=f"{place}: {one!r} -> {other!r} is outside the tolerance ({margin})")
            farthest.see(place, one, other)
    return Distance(same=True, remark=farthest.told(margin))


def _unequal(before: Any, after: Any) -> Iterable[tuple[int, Any, Any]]:
    """The elements that are not equal, as Python's own numbers: those of NumPy wrap around and round."""
    import numpy

    if before.dtype.kind not in "fiub":  # complex numbers, texts, records: equal in their bytes or not
        one, other = before.tobytes(), after.tobytes()
        return [] if before.dtype == after.dtype and one == other else [(0, "its bytes", "other bytes")]
    one, other = before.ravel(), after.ravel()
    where = numpy.flatnonzero(~((one == other) | ((one != one) & (other != other))))  # noqa: PLR0124 - nan
    kind: Callable[[Any], Any] = bool if before.dtype.kind == "b" else lambda value: value.item()
    return ((int(index), kind(one[index]), kind(other[index])) for index in where)
