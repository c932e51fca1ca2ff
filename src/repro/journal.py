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
from repro.record import RunFolder

BLOCK = 1 << 20  # bytes taken from a file at once, and the longest line that is understood
INT64 = 1 << 63


class Metric(Value, frozen=True, kw_only=True):
    """One logged point. `timestamp` is milliseconds since the epoch."""

    key: str
    value: float
    timestamp: int
    step: int


class Note(Value, frozen=True, kw_only=True):
    """A parameter or a tag that the experiment set by itself."""

    key: str
    value: str


class Position(Value, frozen=True, kw_only=True):
    """How far a file has been read: always the beginning of a line."""

    bytes: int = 0
    lines: int = 0


class Events(Value, frozen=True, kw_only=True):
    """What some lines say. `nested` counts lines of nested runs, `unread` those that say nothing we know."""

    metrics: tuple[Metric, ...] = ()
    params: tuple[Note, ...] = ()
    tags: tuple[Note, ...] = ()
    nested: int = 0
    unread: int = 0


def files(folder: Path) -> list[Path]:
    """The journal's files, each with one writer; the container could have put anything else there."""
    return sorted(path for path in folder.glob("events-*.jsonl") if not path.is_symlink())


def read(path: Path, position: Position, *, run: str, started: int) -> tuple[Events, Position]:
    """The next whole lines of a file, at most one block of them, and where they end.

    A line that is still being written stays for the next time. `started` (ms) stands in for a missing time.
    """
    block = _block(path, position.bytes)
    end = block.rfind(b"\n") + 1
    if end == 0:
        if len(block) < BLOCK:
            return Events(), position
        return Events(unread=1), Position(bytes=position.bytes + len(block), lines=position.lines)
    lines = block[:end].split(b"\n")[:-1]
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
    metrics: list[Metric] = []
    params: list[Note] = []
    tags: list[Note] = []
    nested = unread = 0
    for number, line in enumerate(lines, first):
        event = _object(line)
        if event is None:
            unread += bool(line.strip())
        elif event.get("r") not in (None, run):
            nested += 1
        elif event.get("t") == "m":
            point = _metric(event.get("k"), event.get("v"), event.get("ts"), event.get("s", 0), started)
            if point:
                metrics.append(point)
            unread += point is None
        elif event.get("t") in ("p", "tag") and "k" in event and "v" in event:
            (params if event["t"] == "p" else tags).append(Note(key=str(event["k"]), value=_text(event["v"])))
        elif "t" not in event:
            points = list(_friendly(event, number, started))
            metrics += filter(None, points)
            unread += None in points
        else:
            unread += 1
    return Events(metrics=tuple(metrics), params=tuple(params), tags=tuple(tags), nested=nested, unread=unread)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        try:  # Python's own json writes NaN and Infinity, which are not JSON
            value = json.loads(line)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


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


def everything(folder: RunFolder) -> Iterator[Events]:
    """All that the journal of a run says, block by block."""
    run = folder.read().planned.run
    for path in files(folder.journal):
        position = Position()
        while True:
            events, then = read(path, position, run=run, started=0)
            if then == position:
                break
            yield events
            position = then


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
