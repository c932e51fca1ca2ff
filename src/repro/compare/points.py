"""The journal of a run -> all points of its metrics, exactly."""

from __future__ import annotations

import hashlib
from itertools import groupby
from operator import itemgetter

from repro import manifest
from repro.record import Record, RunFolder, Series
from repro.running import harvest
from repro.tracking import journal

LIMIT = 256 << 20  # bytes of a journal that is read whole

Point = tuple[int, float]  # step, value


def series(record: Record, folder: RunFolder) -> dict[str, Series]:
    """The metrics of a run by name: those that were recorded, or what the journal of an older run says."""
    if record.ended is None:
        return {}
    if record.ended.metrics or record.ended.result:
        return {each.name: each for each in record.ended.metrics}
    found = harvest.of(folder, record.planned.run, manifest.wanted(record.planned).by_product_metrics)
    if found.remark:  # there are too many, which are compared with nothing
        return {found.remark: Series(name=found.remark, count=0, last="nan", sha256=record.planned.run)}
    return {each.name: each for each in found.metrics}


def of(record: Record, folder: RunFolder, series: Series) -> list[Point]:
    """The points of a metric, sorted by step; none when the journal is gone, or says something else by now."""
    points = read(record, folder).get(series.name, [])
    lines = "".join(f"{step} {value.hex()}\n" for step, value in points)
    return points if hashlib.sha256(lines.encode()).hexdigest() == series.sha256 else []


def read(record: Record, folder: RunFolder) -> dict[str, list[Point]]:
    """All points by metric in the order of `Series`; nothing where the journal is a flood."""
    if _flood(folder):
        return {}
    writers: list[dict[str, list[Point]]] = []
    for path in journal.files(folder.journal):
        writers.append({})
        for events in journal.whole(path, run=record.planned.run):
            for point in events.metrics:
                writers[-1].setdefault(point.key, []).append((point.step, point.value))
    names = {name for own in writers for name in own}
    return {name: _in_order([own[name] for own in writers if name in own]) for name in sorted(names)}


def _in_order(columns: list[list[Point]]) -> list[Point]:
    """By step; those of one step as they were logged, and those of several writers by value."""
    if len(columns) == 1:
        return sorted(columns[0], key=itemgetter(0))
    steps: dict[int, list[list[str]]] = {}
    for column in columns:
        for step, own in groupby(sorted(column, key=itemgetter(0)), itemgetter(0)):
            steps.setdefault(step, []).append([value.hex() for _, value in own])
    return [(step, float.fromhex(text)) for step in sorted(steps) for texts in sorted(steps[step]) for text in texts]


def _flood(folder: RunFolder) -> bool:
    return sum(path.stat().st_size for path in journal.files(folder.journal)) > LIMIT
