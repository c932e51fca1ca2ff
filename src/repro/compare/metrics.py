"""The metrics of two runs -> how much of each is the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from repro.compare import intervals, points
from repro.compare.sides import Side
from repro.compare.tolerance import Margin, Tolerance
from repro.record import Series
from repro.verdict import Compared, Level


def compare(before: Side, after: Side, margins: Tolerance, repeats: Sequence[Side]) -> Iterator[Compared]:
    """Every metric of either run; `repeats` has the original first."""
    was, now, *rest = (points.series(side.record, side.folder) for side in (before, after, *repeats[1:]))
    for name in sorted({*was, *now}):
        one, other = was.get(name), now.get(name)
        if one is None or other is None:
            there = [each for each in (one, other) if each]
            yield from (_found(each, Level.MISSING, one, other, "it is there on one side alone") for each in there)
            continue
        level, remark = _level(one, other)
        if level is not Level.BYTES and (margin := margins.metric(name)):
            level, remark = _tolerated(one, other, margin, before, after)
        if level is Level.DIFFERENT:
            values = [_value(each[name]) for each in (was, *rest) if name in each]
            expected = intervals.interval(values) if len(values) == len(repeats) else None
            if expected and expected.holds(_value(other)):
                level, remark = Level.STATISTICAL, f"its last value is inside the {expected}"
            elif expected:
                remark = "; ".join(filter(None, [remark, f"its last value is outside the {expected}"]))
        yield _found(one if one.role == "result" else other, level, one, other, remark)


def _found(shown: Series, level: Level, one: Series | None, other: Series | None, remark: str) -> Compared:
    told = [_told(each, f"{_value(each):.9g}") if each else "" for each in (one, other)]
    if one and other and told[0] == told[1] and one.last != other.last:  # the difference is beyond what is shown
        told = [_told(each, repr(_value(each))) for each in (one, other)]
    return Compared(
        kind="metric", name=shown.name, level=level, role=shown.role, before=told[0], after=told[1], remark=remark
    )


def _value(series: Series) -> float:
    """The last value; what a foreign record says that is no number is inside of nothing."""
    try:
        return float.fromhex(series.last)
    except (ValueError, OverflowError):
        return math.nan


def _told(series: Series, last: str) -> str:
    return f"{last} ({series.count:,} point{'' if series.count == 1 else 's'})"


def _level(one: Series, other: Series) -> tuple[Level, str]:
    if (one.sha256, one.count, one.last) == (other.sha256, other.count, other.last):
        return Level.BYTES, ""
    if one.count != other.count:
        return Level.DIFFERENT, f"{one.count:,} points -> {other.count:,}"
    was, now = _value(one), _value(other)
    if one.last == other.last:
        return Level.DIFFERENT, "the last value is the same, earlier ones are not"
    return Level.DIFFERENT, f"last value {now - was:+.3g}" if math.isfinite(now - was) else ""


def _tolerated(one: Series, other: Series, margin: Margin, before: Side, after: Side) -> tuple[Level, str]:
    """Every point has to be inside the margin, or the last one where that alone was asked for."""
    if margin.last:
        was, now = [(0, _value(one))], [(0, _value(other))]
    else:
        was, now = (points.of(side.record, side.folder, series) for side, series in ((before, one), (after, other)))
    if not was or not now:
        return Level.DIFFERENT, "its points cannot be compared: the journal is gone, or not what was recorded any more"
    if [step for step, _ in was] != [step for step, _ in now]:
        return Level.DIFFERENT, "other steps"
    for (step, value), (_, then) in zip(was, now, strict=True):
        if not margin.holds(value, then):
            return Level.DIFFERENT, f"step {step}: {value!r} -> {then!r} is outside the tolerance ({margin})"
    return Level.TOLERANCE, f"inside the tolerance ({margin})"
