"""JSON, and tables of cells: written otherwise, but of the same values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from repro.stabilize.form import TEXT_LIMIT, Stabilizer, UnreadableError, decimal, line


class _Number:
    """A number as it was written, so that nothing of it is lost."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def canonical_json(content: bytes) -> bytes:
    """Keys sorted, no spaces, numbers by their exact value; 1 and 1.0 stay two things, as in most languages."""
    return written(parsed(content))


def parsed(content: bytes) -> Any:
    """A JSON document; its numbers stay text.

    Raises:
        UnreadableError: it is none, or it names a key twice, of which each reader makes something else.
    """
    try:
        return _DECODER.decode(content.decode())
    except (ValueError, RecursionError) as error:
        raise UnreadableError(str(error)) from error


def written(document: Any) -> bytes:
    """The canonical form of a parsed document."""
    return _written(document).encode("ascii")


def renumbered(document: Any, key: str) -> Any:
    """The document with the whole numbers under a key replaced by 0, 1, ... in the order of their first appearance.

    Equal ones stay equal: for numbers that say which things are one, and nothing else.
    """
    known: dict[str, int] = {}

    def visit(value: Any, under: str = "") -> Any:
        if isinstance(value, dict):
            return {name: visit(value[name], name) for name in sorted(value)}
        if isinstance(value, list):
            return [visit(each) for each in value]
        if under == key and isinstance(value, _Number) and value.text.isdigit():
            return _Number(str(known.setdefault(value.text, len(known))))
        return value

    return visit(document)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UnreadableError("a key is there twice")
    return found


def _float(text: str) -> _Number:
    found = decimal(text)
    if found is None:  # an exponent beyond all measure
        raise UnreadableError("a number is beyond all measure")
    return _Number(found)


# NaN and the infinities are no JSON, but Python's own writer writes them
_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_float=_float, parse_int=_Number, parse_constant=_Number)


def _written(value: Any) -> str:
    if isinstance(value, _Number):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{_written(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return json.dumps(value)  # text, true, false, null


def canonical_json_lines(content: bytes) -> bytes:
    """Each line as `json` has it; empty lines stay."""
    return b"".join((canonical_json(each) if each.strip() else b"") + b"\n" for each in _lines(content))


def _lines(content: bytes) -> Iterator[bytes]:
    """Of a text, however they end; whether the last one does is no matter."""
    lines = content.replace(b"\r\n", b"\n").split(b"\n")
    yield from lines[:-1] if not lines[-1] else lines


def table(content: bytes, *, separator: str) -> bytes:
    """A row a line: `n` a number with a point or an exponent by its exact value, `t` other text, `q` what was quoted.

    A number in quotes is text, and so is one without a point: 007 is a name.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UnreadableError("not UTF-8") from error
    return b"".join(line(row) for row in _rows(text, separator))


def _rows(text: str, separator: str) -> Iterator[list[str]]:
    cell = re.compile(rf'(?:"([^"]*(?:""[^"]*)*)"|([^"{separator}\r\n]*))({separator}|\r\n|\n|\Z)')
    place, row = 0, list[str]()
    while place < len(text) or row:
        match = cell.match(text, place)
        if not match:
            raise UnreadableError("a quote or an end of line is where none may be")
        if match[1] is not None:
            row.append("q" + match[1].replace('""', '"'))
        else:
            number = decimal(match[2])
            row.append("t" + match[2] if number is None else "n" + number)
        place = match.end()
        if match[3] != separator:
            yield row
            row = []


JSON = Stabilizer(
    name="json",
    version=1,
    patterns=("*.json",),
    function=canonical_json,
    reason="the order of keys, spaces, and how a number is written do not belong to a document's values",
    limit=TEXT_LIMIT,
)
JSON_LINES = Stabilizer(
    name="jsonl",
    version=1,
    patterns=("*.jsonl", "*.ndjson"),
    function=canonical_json_lines,
    reason="as json, line for line",
    limit=TEXT_LIMIT,
)
CSV = Stabilizer(
    name="csv-float",
    version=1,
    patterns=("*.csv",),
    function=partial(table, separator=","),
    reason="1.0, 1.00 and 1e0 are one number",
    limit=TEXT_LIMIT,
)
TSV = Stabilizer(
    name="tsv-float",
    version=1,
    patterns=("*.tsv",),
    function=partial(table, separator="\t"),
    reason="1.0, 1.00 and 1e0 are one number",
    limit=TEXT_LIMIT,
)
