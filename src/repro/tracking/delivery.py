"""What an experiment logged -> a run of MLflow's: in names that it takes, no point twice, and told what it refuses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from repro.tracking import view
from repro.tracking.client import TrackedRun, TrackingClient, TrackingError, UnreachableError
from repro.tracking.journal import Metric, Note

LARGEST = 1.7976931348623157e308  # what MLflow's databases keep in the place of infinity
PASSING = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED")
PASSING_STATUS = (401, 403, 408, 429, 502, 503, 504)
TRIES = 3  # of what the server fails at for no reason that it can name, before the value that does it is looked for
Renamed = dict[str, dict[str, str]]  # kind -> the experiment's name -> MLflow's, where they differ


class Gone(Exception):  # noqa: N818 - no error: nothing is left to do
    """The run was discarded here, or deleted in MLflow on purpose."""


class AgainError(TrackingError):
    """The server failed at something, and does other things: it may do this the next time."""


class Names:
    """Names as MLflow takes them. Two that fall together stay apart, and each keeps its own for the whole run.

    `taken` are the names that MLflow's run has already, by kind; `complete` says whether `renamed` accounts for them.
    """

    def __init__(
        self, renamed: Mapping[str, Mapping[str, str]], taken: Mapping[str, Collection[str]], *, complete: bool
    ):
        self.renamed: Renamed = {kind: dict(names) for kind, names in renamed.items()}
        self._owners = {kind: {name: raw for raw, name in names.items()} for kind, names in renamed.items()}
        self._taken = {kind: frozenset(names) for kind, names in taken.items()}
        self._complete = complete
        self.fresh = False  # whether `renamed` has grown
        self._known: Renamed = {}

    def reserve(self, kind: str, owners: Mapping[str, str]) -> None:
        """These names (each with what it is the name of) are given already."""
        self._owners.setdefault(kind, {}).update(owners)

    def of(self, kind: str, raw: str) -> str:
        """MLflow's name for what the experiment calls `raw`."""
        known = self._known.setdefault(kind, {})
        if raw not in known:
            known[raw] = self._choose(kind, raw)
        return known[raw]

    def _choose(self, kind: str, raw: str) -> str:
        said = raw.encode(errors="backslashreplace").decode()  # half a surrogate pair cannot be noted
        renamed, owners = self.renamed.setdefault(kind, {}), self._owners.setdefault(kind, {})
        if said in renamed:
            return renamed[said]
        plain, apart = view.key(raw), view.key_apart(raw)
        taken = self._taken.get(kind, frozenset())
        other = owners.get(plain, said) != said or (plain != said and self._complete and plain in taken)
        name = apart if other or apart in taken else plain
        owners[name] = said
        if name != said:
            renamed[said] = name
            self.fresh = True
        return name


class Delivery:
    """The way of metrics, parameters and tags into one run. `odd` hears of each kind of trouble, and with what.

    `keep` is to note the names for good: it is called before anything goes out under a new one.
    """

    def __init__(
        self,
        client: TrackingClient,
        run: TrackedRun,
        names: Names,
        odd: Callable[[str, str], None],
        keep: Callable[[], None],
    ) -> None:
        self.client, self.run, self.names, self.odd, self.keep = client, run, names, odd, keep
        self.repair = False
        self.sent: Counter[str] = Counter()
        self.found = 0  # points that were there already
        self._params = dict(run.params)
        self._failures: Counter[tuple[str, str]] = Counter()
        self._history: dict[str, set[tuple[int, int, float | str]]] | None = None

    def begin_repair(self, run: TrackedRun) -> None:
        """From now on, send only what is not in `run`; a tag that somebody changed in MLflow stays changed."""
        self.run, self.repair, self._params = run, True, dict(run.params)
        self.doubt()

    def doubt(self) -> None:
        """What comes next may be there already, in part: look before sending. Not every store refuses a doublet."""
        self._history = {}

    def trust(self) -> None:
        """What comes next is new."""
        self._history = None

    def metrics(self, points: Iterable[Metric]) -> None:
        """Log points."""
        wanted = []
        for point in points:
            name = self._name("metric", point.key)
            if point.timestamp < 0:
                self.odd("time", name)
                continue
            if math.isinf(point.value):
                self.odd("infinite", name)
            if self._history is None or self._new(name, point):
                wanted.append(point if name == point.key else msgspec.structs.replace(point, key=name))
        self._send("metrics", wanted)

    def settings(self, values: Mapping[str, str], long: Mapping[str, int]) -> None:
        """Log the configuration: value by path, cut already; and how many characters the cut ones had."""
        for path, length in long.items():
            self.odd("cut", f"param {path} ({length:,} characters)")
        notes = [Note(key=self.names.of("param", path), value=value) for path, value in values.items()]
        self._params_once(notes)

    def params(self, notes: Iterable[Note]) -> None:
        """Log what the experiment calls its parameters."""
        wanted = []
        for note in notes:
            name = self._name("param", note.key)
            if len(note.value) > view.PARAM_LIMIT:
                self.odd("cut", f"param {name} ({len(note.value):,} characters)")
            wanted.append(Note(key=name, value=view.cut(note.value, view.PARAM_LIMIT, "journal/")))
        self._params_once(wanted)

    def _params_once(self, notes: Iterable[Note]) -> None:
        """MLflow lets nobody change a parameter, so none is sent twice."""
        wanted = []
        for note in notes:
            if self._params.setdefault(note.key, note.value) != note.value:
                self.odd("changed", note.key)
            elif note.key not in self.run.params:
                wanted.append(note)
        self._send("params", wanted)

    def tags(self, notes: Iterable[Note]) -> None:
        """Set tags; of several values the last one stays."""
        wanted: dict[str, str] = {}
        for note in notes:
            name = self._name("tag", note.key)
            if len(note.value) > view.TAG_LIMIT:
                self.odd("cut", f"tag {name} ({len(note.value):,} characters)")
            if not self.repair or name not in self.run.tags:
                wanted[name] = view.cut(note.value, view.TAG_LIMIT, "journal/")
        self._send("tags", [Note(key=name, value=value) for name, value in wanted.items()])

    def _name(self, kind: str, raw: str) -> str:
        name = self.names.of(kind, raw)
        if name != raw:
            self.odd("renamed", f"{view.cut(raw, 60)!r} is {view.cut(name, 60)!r} there")
        return name

    def _new(self, name: str, point: Metric) -> bool:
        assert self._history is not None  # noqa: S101 - `metrics` has looked
        if name not in self._history:
            there = self.client.history(self.run.id, name) if name in self._there() else ()
            self._history[name] = {_identity(each) for each in there}
        identity = _identity(point)
        if identity in self._history[name]:
            self.found += 1
            return False
        self._history[name].add(identity)
        return True

    def _there(self) -> Collection[str]:
        """Metrics that MLflow has points of."""
        assert self._history is not None  # noqa: S101 - `metrics` has looked
        if not self._history:  # since when we know of them, there may be more
            self.run = self._look()
        return self.run.metrics

    def _look(self) -> TrackedRun:
        now = self.client.run(self.run.id)
        if now is None or not now.active:
            raise Gone("deleted in MLflow, and left so")
        return now

    def _send(self, kind: str, items: Sequence[Any], *, apart: bool = False) -> None:
        """Log items; what MLflow refuses for its own sake is singled out and told, the rest arrives.

        Raises:
            AgainError: nothing says that it is for what was sent, and this may pass. `apart`: it has not.
        """
        if not items:
            return
        if self.names.fresh:
            self.keep()
            self.names.fresh = False
        try:
            self.client.log(self.run.id, **{kind: items})
        except TrackingError as error:
            if not error.rejected and _passing(error):
                raise
            refusal = error
        else:
            self.sent[kind] += len(items)
            if self._failures:
                self._failures.pop((kind, repr(items[0])), None)
            return
        self._look()
        if not refusal.rejected:
            apart = self._singles_out(kind, items[0], refusal, apart=apart)
        if len(items) == 1:
            self._refused(kind, items[0], refusal)
            return
        half = len(items) // 2
        self._send(kind, items[:half], apart=apart)
        self._send(kind, items[half:], apart=apart)

    def _singles_out(self, kind: str, first: Any, error: TrackingError, *, apart: bool) -> bool:
        """After an error of the server's own, which is down if it cannot do the least: not before the same has failed
        a few times, but in a repair, which its user can repeat."""
        mine = [Note(key=key, value=value) for key, value in self.run.tags.items() if not key.startswith("mlflow.")]
        self.client.log(self.run.id, tags=mine[:1])
        if not apart and not self.repair:
            sent = (kind, repr(first))
            self._failures[sent] += 1
            if self._failures[sent] < TRIES:
                raise AgainError(str(error), code=error.code, status=error.status) from error
            del self._failures[sent]
        return True

    def _refused(self, kind: str, item: Any, refusal: TrackingError) -> None:
        if "Changing param values" in str(refusal):
            self.odd("changed", item.key)
        else:
            self.odd("refused", f"{kind[:-1]} {view.cut(item.key, 60)} ({first_line(refusal)})")


def first_line(error: Exception) -> str:
    """What an exception says first, at a length for people."""
    return view.cut((str(error).strip() or type(error).__name__).splitlines()[0], 300)


def _passing(error: TrackingError) -> bool:
    """Whether an error is of the moment or of the store, not of what was sent."""
    return isinstance(error, UnreachableError) or error.code in PASSING or error.status in PASSING_STATUS


def _identity(point: Metric) -> tuple[int, int, float | str]:
    value: float | str = max(-LARGEST, min(LARGEST, point.value))
    return point.timestamp, point.step, "nan" if math.isnan(point.value) else value
