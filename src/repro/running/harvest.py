"""The journal of a run that is over -> metrics and trace for its record. Bounded, whatever was written."""

from __future__ import annotations

import fnmatch
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

import msgspec

from repro.experiment import Value
from repro.record import Fingerprint, RunFolder, Series
from repro.tracking import journal, story
from repro.tracking.journal import Metric, Moment

POINTS = 4_000_000  # of all metrics of a run, 16 bytes each while they are read
NAMES = 10_000  # of metrics, in one record
FIRST = 500  # of a trace: so many are kept from the beginning, and at most as many of the rest
SYSTEM = "system/*"  # MLflow's own metrics of the machine, which an experiment can ask for


class Harvest(Value, frozen=True, kw_only=True):
    """What a record keeps of a journal; with a remark, it is not all that there was to keep."""

    metrics: tuple[Series, ...] = ()
    trace: tuple[Fingerprint, ...] = ()
    remark: str = ""


class _Overflow(Exception):  # noqa: N818 - no error: it ends the reading
    """There is more than is kept."""


def of(folder: RunFolder, run: str, by_products: Sequence[str] = ()) -> Harvest:
    """All metrics of a run and of the runs nested in it, by name, and its trace; `by_products`: as in a shell."""
    points, traces, remark = _Points(), list[_Trace](), ""
    try:
        for path in journal.files(folder.journal):
            points.begin()
            traces.append(_Trace())
            for events in journal.whole(path, run=run):
                traces[-1].take(events.trace)
                points.take(story.ROOT, events.metrics)
                for part in events.parts:
                    if isinstance(part, story.Nested):
                        points.born.append((part.at, part.id))
                for nested, theirs in events.nested.items():
                    points.take(nested, theirs.metrics)
    except (_Overflow, OSError) as why:  # a disk that fails is no reason to lose the record
        remark = f"its metrics are in the journal and not in this record: {why}"
    metrics = () if remark else tuple(points.series([SYSTEM, *by_products]))
    return Harvest(metrics=metrics, trace=_merged(traces), remark=remark)


class _Points:
    """Steps and values of each metric, as each writer logged them."""

    def __init__(self) -> None:
        self.writers: list[dict[tuple[str, str], tuple[array[int], array[float]]]] = []
        self.names: set[tuple[str, str]] = set()
        self.born: list[tuple[int, str]] = []  # nested runs: time and id
        self.count = 0

    def begin(self) -> None:
        """Another writer's file."""
        self.writers.append({})

    def take(self, run: str, metrics: Iterable[Metric]) -> None:
        own = self.writers[-1]
        for point in metrics:
            key = run, point.key
            if key not in own:
                self.names.add(key)
                if len(self.names) > NAMES:
                    raise _Overflow(f"they have more than {NAMES:,} names")
                own[key] = array("q"), array("d")
            steps, values = own[key]
            steps.append(point.step)
            values.append(point.value)
            self.count += 1
        if self.count > POINTS:
            raise _Overflow(f"they have more than {POINTS:,} points")

    def series(self, by_products: Sequence[str]) -> Iterator[Series]:
        """One for each name; nested runs, whose ids are random, count in the order of their beginning."""
        born = dict.fromkeys(run for _at, run in sorted(self.born, key=itemgetter(0)))
        unknown = dict.fromkeys(run for run, _name in sorted(self.names) if run != story.ROOT)
        numbers = {run: number for number, run in enumerate({**born, **unknown}, 1)}
        named = {key: key[1] if key[0] == story.ROOT else f"nested/{numbers[key[0]]}/{key[1]}" for key in self.names}
        for key in sorted(self.names, key=lambda each: (named[each], each)):
            columns = [writer[key] for writer in self.writers if key in writer]
            by_product = any(fnmatch.fnmatchcase(named[key], pattern) for pattern in by_products)
            yield _series(named[key], _in_order(columns), "by-product" if by_product else "result")


def _in_order(columns: list[tuple[array[int], array[float]]]) -> Iterator[tuple[int, str]]:
    """Points by step; those of one step as they were logged, and those of several writers by value.

    Which of them was faster tells nothing of the result.
    """
    if len(columns) == 1:
        yield from _by_step(*columns[0])
        return
    together = []
    for column in columns:
        together += [(step, [text for _step, text in own]) for step, own in groupby(_by_step(*column), itemgetter(0))]
    for step, texts in sorted(together):
        yield from ((step, text) for text in texts)


def _by_step(steps: array[int], values: array[float]) -> Iterator[tuple[int, str]]:
    for index in sorted(range(len(steps)), key=steps.__getitem__):
        yield steps[index], values[index].hex()


def _series(name: str, points: Iterator[tuple[int, str]], role: str) -> Series:
    hasher, count, last = hashlib.sha256(), 0, ""
    for step, last in points:
        hasher.update(f"{step} {last}\n".encode())
        count += 1
    told = {"name": name, "count": count, "last": last, "sha256": hasher.hexdigest(), "role": role}
    return msgspec.convert(told, Series)


class _Trace:
    """The first fingerprints, then every second, fourth, ... one, and the last."""

    def __init__(self) -> None:
        self.first: list[Moment] = []
        self.later: list[Moment] = []
        self.stride, self.seen = 1, 0
        self.last: Moment | None = None

    def take(self, moments: Iterable[Moment]) -> _Trace:
        for moment in moments:
            self.seen += 1
            self.last = moment
            if len(self.first) < FIRST:
                self.first.append(moment)
            elif (self.seen - FIRST) % self.stride == 0:
                self.later.append(moment)
                if len(self.later) > FIRST:
                    self.later, self.stride = self.later[1::2], 2 * self.stride
        return self

    def kept(self) -> list[Moment]:
        found = self.first + self.later
        return found if self.last is None or found[-1] is self.last else [*found, self.last]


def _merged(traces: Iterable[_Trace]) -> tuple[Fingerprint, ...]:
    """Those of all writers in the order of their happening; a name that is there already gets a number."""
    moments = [moment for trace in traces for moment in trace.kept()]
    taken: set[str] = set()
    found = []
    for moment in _Trace().take(sorted(moments, key=lambda each: each.timestamp)).kept():
        name, number = moment.fingerprint.at, 1
        while name in taken:
            number += 1
            name = f"{moment.fingerprint.at} ({number})"
        taken.add(name)
        found.append(msgspec.structs.replace(moment.fingerprint, at=name))
    return tuple(found)
