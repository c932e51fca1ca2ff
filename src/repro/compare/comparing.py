"""Two runs -> what their results have in common: file by file, metric by metric, and how they ended.

The level of a run is the lowest of its results. What was not compared is never the same: a result that is missing, a
run that did not finish, a file that could not be listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from repro import identity
from repro.compare import filing, metrics, points, trace
from repro.compare import tolerance as tolerance_file
from repro.compare.sides import Side
from repro.compare.tolerance import Tolerance
from repro.record import End, OutputFile, Record
from repro.stabilize import pairing
from repro.stabilize.apart import Apart
from repro.verdict import Compared, Level, Verdict

__all__ = ["Side", "compare", "pairs"]

# what the reason of a run's end says of outputs that nobody could read, and of metrics that were too many
UNTOLD = ("are not listed", "not in this record")


def compare(before: Side, after: Side, tolerance: Tolerance | None = None, others: Sequence[Side] = ()) -> Verdict:
    """What came out of two runs, compared; `others` are further runs of exactly what `before` was, for level 2."""
    margins = tolerance or Tolerance()
    repeats = (before, *_repeats(before, after, others))
    measured = list(metrics.compare(before, after, margins, repeats))
    with Apart() as apart:
        files = list(_files(before, after, margins, repeats, filing.Means(apart=apart, carried=_carry(measured))))
    compared = (_end(before.record, after.record), *_unlisted(before.record, after.record), *measured, *files)
    results = [each.level for each in compared if each.role == "result" and each.kind != "exit"]
    ends = [each.level for each in compared if each.kind == "exit"]
    traces = (side.record.ended.trace if side.record.ended else () for side in (before, after))
    parted = trace.first(*traces)
    # with by-products alone there is nothing that could be the same
    return Verdict(
        before=before.record.planned.run,
        after=after.record.planned.run,
        level=min([*results, *ends]) if results else min(Level.MISSING, *ends),
        compared=compared,
        explanation="" if results else "neither run has a result: no file that is not a by-product, no metric",
        divergence=str(parted) if parted else "",
    )


def check(margins: Tolerance, *sides: Side) -> None:
    """Refuse a tolerance that names what none of the runs has.

    Raises:
        BadInputError: it does.
    """
    measured = [name for side in sides for name in points.series(side.record, side.folder)]
    files = [file.path for side in sides if side.record.ended for file in side.record.ended.outputs]
    tolerance_file.check(margins, measured, files)


def _carry(measured: Iterable[Compared]) -> bool:
    """Whether metrics can speak for files that never come again."""
    levels = [each.level for each in measured if each.role == "result"]
    return bool(levels) and min(levels) >= Level.STATISTICAL


def _repeats(before: Side, after: Side, others: Sequence[Side]) -> list[Side]:
    """Of the other runs those that are what the original was, each once: any other would widen the interval."""
    seen = {before.record.planned.run, after.record.planned.run}
    key, found = before.record.planned.run_key, []
    for side in others:
        planned, ended = side.record.planned, side.record.ended
        alike = planned.run not in seen and key and planned.run_key == key
        if alike and ended and ended.end is End.FINISHED and not _edited(side.record):
            seen.add(planned.run)
            found.append(side)
    return found


def _edited(record: Record) -> bool:
    """Whether what came out, as the record has it, is not what it says itself that it is."""
    ended = record.ended
    return ended is not None and bool(ended.result) and identity.result(ended) != ended.result


def _end(before: Record, after: Record) -> Compared:
    """Two failures are not the same: what a failed run left behind is not its result."""
    told = [
        f"{record.ended.end.value}, exit code {record.ended.exit_code}" if record.ended else ""
        for record in (before, after)
    ]
    if not (before.ended and after.ended):
        level, remark = Level.MISSING, "a run that is not over has no result yet"
    elif before.ended.end is after.ended.end is End.FINISHED:
        same = before.ended.exit_code == after.ended.exit_code
        level, remark = (Level.BYTES if same else Level.DIFFERENT), ""
    else:
        level, remark = Level.DIFFERENT, "what a run that did not finish leaves behind is no result"
    return Compared(kind="exit", name="end", level=level, before=told[0], after=told[1], remark=remark)


def _unlisted(before: Record, after: Record) -> Iterator[Compared]:
    """Results that nobody could read may be anything, and so may those of a record that was changed."""
    changed = ["not what came out, by its own name for it" if _edited(each) else "" for each in (before, after)]
    if any(changed):
        yield Compared(
            kind="file",
            name="record.json",
            level=Level.DIFFERENT,
            before=changed[0],
            after=changed[1],
            remark="a record was changed after its run, so nothing in it counts",
        )
    reasons = [
        record.ended.reason if record.ended and any(words in record.ended.reason for words in UNTOLD) else ""
        for record in (before, after)
    ]
    if any(reasons):
        remark = "there is more than the record could hold, so nobody can compare it"
        yield Compared(
            kind="file",
            name="what is not in the record",
            level=Level.DIFFERENT,
            before=reasons[0],
            after=reasons[1],
            remark=remark,
        )


# files -----------------------------------------------------------------------------------------------------------


def _files(
    before: Side, after: Side, margins: Tolerance, repeats: Sequence[Side], means: filing.Means
) -> Iterator[Compared]:
    listed = [side.record.ended.outputs if side.record.ended else () for side in (before, after)]
    repeated = [_by_name(side) for side in repeats]
    for was, now in pairs(*listed):
        if was is None or now is None:
            yield from (filing.alone(each, was, now) for each in (was, now) if each)
            continue
        pair = filing.Pair(before=was, after=now, folders=(before.folder.outputs, after.folder.outputs))
        same = [
            (side.folder.outputs, files[was.path])
            for side, files in zip(repeats, repeated, strict=True)
            if was.path in files
        ]
        yield filing.compare(pair, margins.file(was.path), same if len(same) == len(repeats) else [], means)


def _by_name(side: Side) -> dict[str, OutputFile]:
    return {file.path: file for file in side.record.ended.outputs} if side.record.ended else {}


def pairs(
    before: Iterable[OutputFile], after: Iterable[OutputFile]
) -> Iterator[tuple[OutputFile | None, OutputFile | None]]:
    """The same file on both sides, sorted by name; event files, whose names never come again, by their time."""
    was, now = (_by_pairing_name(list(files)) for files in (before, after))
    for name in sorted({*was, *now}):
        yield was.get(name), now.get(name)


def _by_pairing_name(files: Sequence[OutputFile]) -> dict[str, OutputFile]:
    names = pairing.pairing_names(file.path for file in files)
    return {names[file.path]: file for file in files}
