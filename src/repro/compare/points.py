"""The journal of a run -> all points of its metrics, exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from repro.record import Record, RunFolder, Series
from repro.tracking import journal

LIMIT = 256 << 20  # bytes of a journal that is read whole

Point = tuple[int, float]  # step, value


def series(record: Record, folder: RunFolder) -> dict[str, Series]:
    """The metrics of a run by name: those that were recorded, or what the journal of an older run says."""
    if record.ended is None:
        return {}
    if record.ended.metrics or record.ended.result:
        return {each.name: each for each in record.ended.metrics}
    if _flood(folder):  # which is compared with nothing
        name = "metrics of a journal that is too long to be compared"
        return {name: Series(name=name, count=0, last="nan", sha256=record.planned.run)}
    return {name: _series(name, points) for name, points in read(record, folder).items()}


def of(record: Record, folder: RunFolder, series: Series) -> list[Point]:
    """The points of a metric, sorted by step; none when the journal is gone, or says something else by now."""
    points = read(record, folder).get(series.name, [])
    return points if _series(series.name, points).sha256 == series.sha256 else []


def read(record: Record, folder: RunFolder) -> dict[str, list[Point]]:
    """All points by metric, those of one step in the order of logging; nothing where the journal is a flood."""
    if _flood(folder):
        return {}
    found: dict[str, list[tuple[int, int, float]]] = {}
    for path in journal.files(folder.journal):
        position = journal.Position()
        while True:
            events, then = journal.read(path, position, run=record.planned.run, started=0, ended=True)
            if then == position:
                break
            position = then
            for point in events.metrics:
                found.setdefault(point.key, []).append((point.step, point.timestamp, point.value))
    return {
        name: [(step, value) for step, _, value in sorted(points, key=lambda point: point[:2])]
        for name, points in found.items()
    }


def _flood(folder: RunFolder) -> bool:
    return sum(path.stat().st_size for path in journal.files(folder.journal)) > LIMIT


def _series(name: str, points: Iterable[Point]) -> Series:
    lines = [f"{step} {value.hex()}\n" for step, value in points]
    last = lines[-1].split()[1] if lines else (0.0).hex()
    return Series(name=name, count=len(lines), last=last, sha256=hashlib.sha256("".join(lines).encode()).hexdigest())
