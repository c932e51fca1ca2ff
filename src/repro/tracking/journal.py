"""Journal lines -> metrics, parameters, tags. The experiment appends them; what cannot be read is passed over."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from repro.experiment import Value
from repro.record import Fingerprint, RunFolder, shown
from repro.tracking import story

BLOCK = 1 << 20  # bytes taken from a file at once, and the longest line that is understood
ENDS = 16 << 20  # bytes at the beginning and at the end of a file, which are read for a summary
INT64 = 1 << 63
FINGERPRINT = 16 << 10  # characters of all that it says


class Metric(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One logged point. `timestamp` is milliseconds since the epoch."""

    key: str
    value: float
    timestamp: int
    step: int
    model_id: str = ""  # of the model that it was measured on


class Note(Value, frozen=True, kw_only=True):
    """A parameter or a tag that the experiment set by itself."""

    key: str
    value: str


class Moment(Value, frozen=True, kw_only=True):
    """A fingerprint, and when it was taken: milliseconds since the epoch."""

    timestamp: int
    fingerprint: Fingerprint


class Position(Value, frozen=True, kw_only=True):
    """How far a file has been read: always the beginning of a line."""

    bytes: int = 0
    lines: int = 0


class Events(Value, frozen=True, kw_only=True):
    """What some lines say. `nested` has those of nested runs by id, `unread` counts what says nothing we know."""

    metrics: tuple[Metric, ...] = ()
    params: tuple[Note, ...] = ()
    tags: tuple[Note, ...] = ()
    nested: dict[str, Events] = msgspec.field(default_factory=dict)
    parts: tuple[story.Part, ...] = ()
    trace: tuple[Moment, ...] = ()
    unread: int = 0


def files(folder: Path) -> list[Path]:
    """The journal's files, each with one writer; the container could have put anything else there."""
    found = (path for path in folder.glob("events-*.jsonl") if not path.is_symlink())
    return sorted(path for path in found if shown(path.name) == path.name)


def sources(folder: RunFolder) -> list[Path]:
    """All that is said of a run: the experiment's journal, and what the host saw it use."""
    return [*files(folder.journal), *([folder.resources] if folder.resources.is_file() else [])]


def read(path: Path, position: Position, *, run: str, started: int, ended: bool = False) -> tuple[Events, Position]:
    """The next whole lines of a file, at most one block of them, and where they end.

    A line that is still being written stays for the next time, or is the last one when the run has `ended`.
    `started` (ms) stands in for a missing time.
    """
    block = _block(path, position.bytes)
    end = block.rfind(b"\n") + 1
    if end == 0 and ended and 0 < len(block) < BLOCK:
        block, end = block + b"\n", len(block)
    if end == 0:
        if len(block) < BLOCK:
            return Events(), position
        return Events(unread=1), Position(bytes=position.bytes + len(block), lines=position.lines)
    lines = block[: block.rfind(b"\n")].split(b"\n")
    events = parse(lines, first=position.lines, run=run, started=started)
    return events, Position(bytes=position.bytes + end, lines=position.lines + len(lines))


def _block(path: Path, offset: int) -> bytes:
    try:  # never follow a link nor wait for a pipe: the container owns this folder
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b""
        return os.pread(descriptor, BLOCK, offset)
    finally:
        os.close(descriptor)


def parse(lines: list[bytes], *, first: int, run: str, started: int) -> Events:
    """What the lines say; `first` is the number of the first of them in its file, the step of a line without one."""
    found: dict[str, _Found] = {story.ROOT: _Found()}
    parts: list[story.Part] = []
    trace: list[Moment] = []
    unread = 0
    for number, line in enumerate(lines, first):
        event = _object(line)
        if event is None:
            unread += bool(line.strip())
            continue
        try:
            if event.get("t") == "fp":
                trace.append(_moment(event, started))
                continue
            part = story.part(event, run)
            if part is None:
                found.setdefault(story.run_id(event, run), _Found()).take(event, number, started)
            else:
                parts.append(part)
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError, RecursionError):
            unread += 1
    nested = {run: each.events() for run, each in found.items() if run != story.ROOT}
    own = found[story.ROOT].events()
    return msgspec.structs.replace(own, nested=nested, parts=tuple(parts), trace=tuple(trace), unread=unread)


class _Found:
    """What the lines of one run say."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []
        self.params: list[Note] = []
        self.tags: list[Note] = []

    def take(self, event: dict[str, Any], number: int, started: int) -> None:
        """One line's event; ValueError when it says nothing we know."""
        if event.get("t") == "m":
            point = _metric(event.get("k"), event.get("v"), event.get("ts"), event.get("s", 0), started)
            if point is None:
                raise ValueError(event)
            model = event.get("m")
            known = isinstance(model, str) and story.MODEL_ID.fullmatch(model)
            self.metrics.append(msgspec.structs.replace(point, model_id=model) if known else point)
        elif event.get("t") in ("p", "tag"):
            note = Note(key=str(event["k"]), value=_text(event["v"]))
            (self.params if event["t"] == "p" else self.tags).append(note)
        elif "t" not in event:
            points = list(_friendly(event, number, started))
            self.metrics += filter(None, points)
            if None in points:
                raise ValueError(event)
        else:
            raise ValueError(event)

    def events(self) -> Events:
        return Events(metrics=tuple(self.metrics), params=tuple(self.params), tags=tuple(self.tags))


def _moment(event: dict[str, Any], started: int) -> Moment:
    """A fingerprint; ValueError when it is too long to be one."""
    told = {name: {str(key): _text(value) for key, value in (event.get(name) or {}).items()} for name in ("d", "v")}
    texts = [event["at"], *(text for pairs in told.values() for pair in pairs.items() for text in pair)]
    at = _whole(event.get("ts"))
    if not isinstance(event["at"], str) or sum(map(len, texts)) > FINGERPRINT:
        raise ValueError(event)
    fingerprint = Fingerprint(at=event["at"], digests=told["d"], values=told["v"])
    return Moment(timestamp=started if at is None else at, fingerprint=fingerprint)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        try:
            value = msgspec.json.decode(line)
        except (ValueError, RecursionError):  # Python's own json writes NaN and Infinity, which are not JSON
            value = _clean(json.loads(line))
        if b"\\u0000" in line:
            value = _clean(value)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _clean(value: Any) -> Any:
    """Without what can neither be noted nor sent: half a surrogate pair, which msgspec does not decode, and NUL."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode().replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_clean(each) for each in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(each) for key, each in value.items()}
    return value


def _friendly(event: dict[str, Any], number: int, started: int) -> Iterator[Metric | None]:
    """{"step": 3, "loss": 0.5}: each numeric member is a metric; None is one at no step or time that there is."""
    for key, value in event.items():
        if key not in ("step", "ts", "r") and _number(value) is not None:
            yield _metric(key, value, event.get("ts"), event.get("step", number), started)


def _metric(key: Any, value: Any, timestamp: Any, step: Any, started: int) -> Metric | None:
    number = _number(value)
    when = started if timestamp is None else _whole(timestamp)
    at = _whole(step)
    if not isinstance(key, str) or number is None or when is None or at is None:
        return None
    return Metric(key=key, value=number, timestamp=when, step=at)


def _number(value: Any) -> float | None:
    """A number, also the ones that JSON has no form for: "nan", "inf", "-inf"."""
    if isinstance(value, (int, float)) or value in ("nan", "inf", "-inf", "NaN", "Infinity", "-Infinity"):
        try:
            return float(value)
        except OverflowError:
            return None
    return None


def _whole(value: Any) -> int | None:
    number = _number(value)
    if number is None or not math.isfinite(number) or abs(number) >= INT64:
        return None
    return int(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def whole(path: Path, *, run: str, ended: bool = True, ends: bool = False) -> Iterator[Events]:
    """What one file says, block by block; with `ends`, of a flood how it begins and how it ends."""
    position = Position()
    size = path.stat().st_size if ends else 0
    while True:
        if ends and position.bytes > ENDS and size - ENDS > position.bytes:
            position = Position(bytes=size - ENDS, lines=position.lines)
        events, then = read(path, position, run=run, started=0, ended=ended)
        if then == position:
            break
        yield events
        position = then


def everything(folder: RunFolder) -> Iterator[Events]:
    """What the journal of a run says, block by block; of a flood, how it begins and how it ends."""
    record = folder.read()
    for path in files(folder.journal):
        yield from whole(path, run=record.planned.run, ended=record.ended is not None, ends=True)


def latest(folder: RunFolder) -> dict[str, float]:
    """The last value of each metric, by step and then by time, in the order of their first appearance."""
    last: dict[str, Metric] = {}
    for events in everything(folder):
        for point in events.metrics:
            known = last.get(point.key)
            if known is None or (point.step, point.timestamp) >= (known.step, known.timestamp):
                last[point.key] = point
    return {key: point.value for key, point in last.items()}


def tags(folder: RunFolder) -> dict[str, str]:
    """What the experiment, or our module in it, said of itself."""
    return {tag.key: tag.value for events in everything(folder) for tag in events.tags}
