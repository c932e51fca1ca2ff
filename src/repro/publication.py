"""One run folder -> its run in MLflow, in steps that can be repeated after any accident."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from repro import journal, ledger, store, view
from repro.client import TrackedModel, TrackedRun, TrackingClient, TrackingError, UnreachableError
from repro.errors import ReproError
from repro.journal import Events, Note, Position
from repro.nested import Nested
from repro.project import ignored_folder
from repro.record import Record, RunFolder, write_atomic
from repro.tracking import State, state

SAVE_SECONDS = 2.0  # points sent since the last save would be sent again after a crash, which MLflow does not mind
COLLISION = re.compile("unique|duplicate", re.IGNORECASE)  # in the words of sqlite, PostgreSQL and MySQL
REMARKS = 20
EXPERIMENTS = 200  # in which other runs of an image are looked for
NO_RUN = "no run took place"


class Gone(Exception):  # noqa: N818 - no error: nothing is left to do
    """The run was discarded here, or deleted in MLflow on purpose."""


class Publication:
    """The way of one run into MLflow. What is there already is never sent twice, or is the same when it is."""

    def __init__(self, folder: RunFolder, uri: str, client: TrackingClient) -> None:
        self.folder, self.uri, self.client = folder, uri, client
        known = state(folder)
        self.state = known if known and known.uri == uri else State(uri=uri)
        self.run: TrackedRun | None = None  # known once it is open
        self._nested: Nested | None = None
        self._stalled = False  # lines of what no other file has begun
        self._saved = 0.0
        self._unsaved = False

    def advance(self, *, last: bool) -> bool:
        """One step nearer; True when the run is over and all of it is in MLflow. `last`: all that is there now.

        Raises:
            Gone: there is nothing to show, or MLflow's user does not want it.
        """
        record = self._read()
        if self.run is None:
            self._open(record)
        self._describe(record)
        while self._drain(record) and (last or record.ended):
            pass
        if record.ended is None:
            return False
        if not self.state.ended:
            self._end(record)
        if not self.state.artifacts:
            self._artifacts(record)
        return True

    def _read(self) -> Record:
        if not self.folder.record.exists():  # the command was not found, say
            if self.state.run:
                self.client.delete_run(self.state.run)
            self.folder.tracking.unlink(missing_ok=True)
            raise Gone(NO_RUN)
        return self.folder.read()

    # the run in MLflow ------------------------------------------------------------------------------------------

    def _open(self, record: Record) -> None:
        """Find the run, or create it: a crash between its creation and our note of it must not make a second one."""
        experiment = self._experiment(record)
        run = self._known_run() or self._find(experiment, record) or self._create(experiment, record)
        if not run.active:
            raise Gone("deleted in MLflow, and left so")
        if run.id != self.state.run:
            self.state = State(uri=self.uri, experiment_id=experiment, run=run.id)
            self._nested = None
            self.save()
        self.run = run

    def _known_run(self) -> TrackedRun | None:
        return self.client.run(self.state.run) if self.state.run else None  # None: the store was thrown away

    def _find(self, experiment: str, record: Record) -> TrackedRun | None:
        wanted = f"tags.`run` = '{record.planned.run}'"
        return next(iter(self.client.find_runs([experiment], wanted, limit=1, deleted=True)), None)

    def _create(self, experiment: str, record: Record) -> TrackedRun:
        return self.client.create_run(
            experiment, name=record.planned.run, started=_began(record), tags=view.tags(record)
        )

    def _experiment(self, record: Record) -> str:
        name = record.planned.tracking_experiment
        found = self.client.experiment(name)
        if found is None:
            tags = {"mlflow.experimentKind": "custom_model_development"}
            tags[f"mlflow.sharedViewState.{view.VIEW}"] = view.saved_view((), _ms(record.planned.created))
            try:
                return self.client.create_experiment(name, self._location(record), tags)
            except TrackingError as error:
                if error.code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self.client.experiment(name)  # another process was faster
        if found is None or not found.active:
            raise ReproError(
                f"the experiment {name!r} is deleted in MLflow",
                hints=[f"MLFLOW_TRACKING_URI={self.uri} mlflow experiments restore -x {found.id if found else name}"],
            )
        return found.id

    def _location(self, record: Record) -> str | None:
        """Artifacts of a sqlite store lie beside it, wherever this process runs; others choose by themselves."""
        file = store.sqlite_file(self.uri)
        if file is None:
            return None
        return (store.artifacts(file) / re.sub(r"[^\w.-]", "-", record.planned.tracking_experiment)).as_uri()

    # what the record says ---------------------------------------------------------------------------------------

    def _describe(self, record: Record) -> None:
        """Tags as far as they are known; parameters and datasets, which never change, once."""
        if self.state.described == record.state:
            return
        self._send("tags", _notes(view.tags(record)))
        if not self.state.described:
            self._send("params", _notes(view.params(record.planned.config)))
            for used in map(view.dataset, record.planned.data):
                self._input(used)
        if not self.state.compared:
            self._compare(record)
        self._note(described=record.state)
        self.save()

    def _compare(self, record: Record) -> None:
        """Look for a run in this store, of any machine, whose image has the same spec and other content."""
        image = record.planned.image
        if image.content and not image.drift:  # else this machine has told already, and knows better what differs
            with contextlib.suppress(Exception):  # a store may keep other people's experiments from us
                experiments = self.client.experiments(EXPERIMENTS)
                wanted = f"tags.`image_spec` = '{image.spec}' and tags.`image_content` != '{image.content}'"
                for other in self.client.find_runs([each.id for each in experiments], wanted, limit=1):
                    tags = other.tags
                    self.client.log(self.state.run, tags=_notes({"drift": view.drift(tags, image)}))
                    self._remark(f"drift: {view.drift(tags, image)}")
                    at = datetime.fromtimestamp(other.started / 1000, timezone.utc)
                    known = {"content": tags["image_content"], "image": tags["image_id"], "run": tags["run"]}
                    ledger.hear(image.spec, **known, at=at)
        self._note(compared=True)

    def _input(self, dataset: view.Dataset) -> None:
        """Log a dataset. MLflow looks for it first and inserts it later: runs that begin together collide, once."""
        try:
            self.client.log_dataset(self.state.run, dataset)
        except TrackingError as error:
            if not COLLISION.search(str(error)):
                raise
            self.client.log_dataset(self.state.run, dataset)  # now it finds the other run's

    # the journal ------------------------------------------------------------------------------------------------

    def _drain(self, record: Record) -> bool:
        """Send the next block of each journal file; False when there was nothing new."""
        started = _began(record)
        moved = False
        below = self._below(record)
        waiting = False
        for path in journal.files(self.folder.journal):
            position = self.state.positions.get(path.name, Position())
            events, then = journal.read(path, position, run=record.planned.run, started=started)
            if then == position:
                continue
            if below.lacks(events) and not self._stalled:
                waiting = True
                continue
            lost = below.take(events)
            self._note(
                positions={**self.state.positions, path.name: then},
                below=dict(below.known),
                unread=self.state.unread + events.unread + lost,
            )
            moved = True
        self._stalled = waiting and not moved  # twice: no other file will ever say more
        if self._unsaved and time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()
        return moved or waiting

    def _below(self, record: Record) -> Nested:
        if self._nested is None:
            assert self.run is not None  # noqa: S101 - `advance` has opened it
            self._nested = Nested(self.client, self.run, record, self.state.below, self._ingest, self._remark)
        return self._nested

    def _ingest(self, run: str, events: Events) -> None:
        own = run == self.state.run
        refused = sorted({tag.key for tag in events.tags if own and not view.settable(view.key(tag.key))})
        for name in refused:
            self._remark(f"tag {name}: it says what repro knows, an experiment cannot set it")
        self._rename_remarks([*events.metrics, *events.params, *events.tags])
        points = events.metrics
        self._send("metrics", [msgspec.structs.replace(point, key=view.key(point.key)) for point in points], run)
        self._send("params", [_note(each, view.PARAM_LIMIT) for each in events.params], run)
        self._send("tags", [_note(tag, view.TAG_LIMIT) for tag in events.tags if tag.key not in refused], run)

    def _rename_remarks(self, items: Sequence[Any]) -> None:
        for name in sorted({item.key for item in items}):
            if view.key(name) != name:
                self._remark(
                    f"{view.cut(name, 60)!r} is {view.cut(view.key(name), 60)!r} there, which has stricter names"
                )

    def _send(self, kind: str, items: list[Any], run: str = "") -> None:
        """Log items; what MLflow refuses for its own sake is singled out and remarked, the rest arrives."""
        run = run or self.state.run
        if not items:
            return
        try:
            self.client.log(run, **{kind: items})
        except TrackingError as error:
            if not error.rejected:
                raise
            now = self.client.run(run)
            if (now is None or not now.active) and run != self.state.run:
                self._remark(f"nested run {run}: deleted in MLflow, and left so")
                return
            if now is None or not now.active:
                raise Gone("deleted in MLflow, and left so") from error
            if len(items) == 1:
                changed = "Changing param values" in str(error)
                why = "it has another value there, and MLflow keeps the first" if changed else _first_line(error)
                self._remark(f"{kind[:-1]} {view.cut(items[0].key, 60)}: {why}")
                return
            half = len(items) // 2
            self._send(kind, items[:half], run)
            self._send(kind, items[half:], run)

    # the end ----------------------------------------------------------------------------------------------------

    def _end(self, record: Record) -> None:
        ended = record.ended
        assert ended is not None  # noqa: S101 - `advance` has looked
        self._below(record).end(view.status(ended.end), _ms(ended.at))
        self._note(below=dict(self._below(record).known))
        if self.state.unread:
            self._remark(f"{self.state.unread} journal lines could not be read")
        self.client.terminate(self.state.run, view.status(ended.end), _ms(ended.at))
        self._note(ended=True)
        self.save()
        with contextlib.suppress(Exception):  # columns of a list: MLflow's own format, worth no failure
            now = self.client.run(self.state.run)
            shown = view.saved_view(now.metrics if now else (), _ms(ended.at))
            self.client.tag_experiment(self.state.experiment_id, f"mlflow.sharedViewState.{view.VIEW}", shown)

    def _artifacts(self, record: Record) -> None:
        """Link the run's files into a local store, upload them to any other."""
        if file := store.sqlite_file(self.uri):
            ignored_folder(store.artifacts(file))  # else the next snapshot of the code would hold these outputs
        for path, name in artifacts(self.folder):
            place, there = self._below(record).place(name)
            content = self._below(record).content(path, name)
            target = self._local_target(place.artifact_uri)
            if target is None:
                self._upload(place, path, there, content)
            elif self.uri.startswith("http") and not _here(self.uri):
                self._remark(
                    f"no artifacts: the server keeps them in {place.artifact_uri}, a folder of its own machine"
                )
                break
            elif content is None:
                link(path, target / there)
            else:
                (target / there).parent.mkdir(parents=True, exist_ok=True)
                write_atomic(target / there, content)
        self._note(artifacts=True)
        self.save()

    def _upload(self, place: TrackedRun | TrackedModel, path: Path, name: str, content: bytes | None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if content is not None:
                path = Path(folder) / path.name
                path.write_bytes(content)
            self.client.upload(place, path, name, lambda _count: None)

    def _local_target(self, uri: str) -> Path | None:
        """The folder for the artifacts of this run, if it is one of this machine's."""
        parts, file = urlsplit(uri), store.sqlite_file(self.uri)
        if parts.scheme == "mlflow-artifacts" and file is not None:  # the experiment was made in `mlflow ui`
            return store.artifacts(file) / unquote(parts.path).lstrip("/")
        if parts.scheme not in ("", "file"):
            return None
        target = Path(unquote(parts.path))
        place = target.parent.parent
        if file is not None and file.parent not in target.parents and not place.exists():
            raise ReproError(
                f"the store keeps artifacts of this experiment in {place}, which is not there",
                hints=[f"was the project moved? `rm {file}`, then `repro sync` fills a new one", f"mkdir -p {place}"],
            )
        return target

    # tracking.json ----------------------------------------------------------------------------------------------

    def _note(self, **changes: Any) -> None:
        self.state = msgspec.structs.replace(self.state, **changes)
        self._unsaved = True

    def _remark(self, text: str) -> None:
        if text not in self.state.remarks and len(self.state.remarks) < REMARKS:
            self._note(remarks=(*self.state.remarks, text))

    def save(self) -> None:
        """Write tracking.json."""
        write_atomic(self.folder.tracking, msgspec.json.format(msgspec.json.encode(self.state), indent=2) + b"\n")
        self._saved, self._unsaved = time.monotonic(), False


def artifacts(folder: RunFolder) -> Iterator[tuple[Path, str]]:
    """The files of a run that MLflow shows, with their names there. No links: the container made the outputs."""
    for path in (folder.config_yaml, folder.record, folder.diff):
        if path.is_file():
            yield path, path.name
    for top in (folder.logs, folder.path / "inputs", folder.outputs):
        for parent, _folders, names in os.walk(top):
            for name in sorted(names):
                path = Path(parent) / name
                if path.is_file() and not path.is_symlink():
                    yield path, path.relative_to(folder.path).as_posix()


def link(source: Path, target: Path) -> None:
    """The same bytes under a second name; a copy where the file systems differ."""
    target.parent.mkdir(parents=True, exist_ok=True)
    short = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]  # names may be as long as the disk allows
    temporary = target.with_name(f".{short}.repro")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, temporary, follow_symlinks=False)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # a rename between two names of one file does nothing


def explain(error: Exception, uri: str) -> tuple[str, tuple[str, ...]]:
    """What a failure of MLflow's means, in one line, and what to try."""
    if isinstance(error, ReproError):
        return " · ".join([error.what, *error.evidence]), error.hints
    text = _first_line(error)
    if "Invalid Host header" in str(error):
        host = urlsplit(uri).netloc
        return (
            f"the tracking server refuses the name {host} (403 Invalid Host header)",
            (f"start it with `mlflow server --allowed-hosts {host}`", "or name it by its IP address"),
        )
    if isinstance(error, UnreachableError):
        return f"the tracking server {uri} does not answer ({text})", ("start it, or name another: tracking.uri=…",)
    if re.search(r"\b(401|403)\b", text) or (isinstance(error, TrackingError) and error.status in (401, 403)):
        return f"the tracking server {uri} refuses us: {text}", ("MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN",)
    return text, ()


def _first_line(error: Exception) -> str:
    return view.cut((str(error).strip() or type(error).__name__).splitlines()[0], 300)


def _here(uri: str) -> bool:
    """Whether a server is on this machine, as far as its address tells."""
    host = urlsplit(uri).hostname or ""
    with contextlib.suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _ms(when: datetime) -> int:
    return int(when.timestamp() * 1000)


def _began(record: Record) -> int:
    return _ms(record.started.at if record.started else record.planned.created)


def _notes(texts: Mapping[str, str]) -> list[Note]:
    return [Note(key=key, value=value) for key, value in texts.items()]


def _note(note: Note, limit: int) -> Note:
    return Note(key=view.key(note.key), value=view.cut(note.value, limit))
