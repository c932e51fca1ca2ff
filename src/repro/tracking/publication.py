"""One run folder -> its run in MLflow, in steps that can be repeated after any accident."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from datetime import datetime, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from repro import scratch
from repro.errors import ReproError
from repro.images import ledger
from repro.project import ignored_folder
from repro.record import Record, RunFolder, write_atomic
from repro.tracking import journal, store, view
from repro.tracking.client import TrackedRun, TrackingClient, TrackingError
from repro.tracking.delivery import Delivery, Gone, Names
from repro.tracking.journal import Events, Note, Position
from repro.tracking.nested import TAG, Nested, Place
from repro.tracking.tracking import State, outcome, state
from repro.tracking.upload import Amount, Item, Shipment, artifacts

SAVE_SECONDS = 2.0  # points sent since the last save are looked for in MLflow after a crash
TURN_SECONDS = 2.0  # of one run, after its end, before the others have theirs
RESTS = 60  # times the processor time that sending took, before the next sending while a run goes on
REST_SECONDS = 0.6  # at most: a point is to be readable within a second
COLLISION = re.compile("unique|duplicate", re.IGNORECASE)  # in the words of sqlite, PostgreSQL and MySQL
REMARKS = 20
SUBJECTS = 1000  # of one kind of oddity, noted by name
NAMESAKES = 1000  # runs that may claim to be the same
EXPERIMENTS = 200  # in which other runs of an image are looked for
NO_RUN = "no run took place"
Say = Callable[[Amount, Amount], None]  # files and bytes that are there, of how many


class Publication:
    """The way of one run into MLflow. What is there already is never sent twice, or is the same when it is."""

    def __init__(self, folder: RunFolder, uri: str, client: TrackingClient) -> None:
        self.folder, self.uri, self.client = folder, uri, client
        known = state(folder)
        self.state = known if known and known.uri == uri else State(uri=uri)
        self.run: TrackedRun | None = None  # known once it is open, as is `delivery`
        self.delivery: Delivery
        self.nested: Nested
        self.repaired: tuple[str, ...] = ()
        self._record: tuple[tuple[int, ...], Record] | None = None
        self._stalled = False  # there are lines of a nested run that no other file has begun
        self._doubtful: dict[str, int] = {}  # journal file -> up to where points may have been sent before
        self._saved = 0.0
        self._unsaved = False
        self._rests_until = 0.0

    def advance(self, *, last: bool) -> bool:
        """One step nearer; True when the run is over and all but its files is in MLflow. `last`: all that is there now.

        Raises:
            Gone: there is nothing to show, or MLflow's user does not want it.
        """
        record = self._read()
        if self.run is None:
            self._open(record)
        self._describe(record)
        more = self._catch_up(record, last=last)
        if self.state.failure:
            self._note(failure="")
            self.save()
        if record.ended is None or more:
            return False
        if not self.state.ended:
            self._end(record)
        return True

    @property
    def reached(self) -> object:
        """How far it is: a value that differs when it is further."""
        known = self.state
        sent = (dict(self.delivery.sent), self.delivery.found) if self.run else None
        return known.run, known.described, known.positions, known.ended, sent

    def _read(self) -> Record:
        try:
            found = self.folder.record.stat()
        except FileNotFoundError:  # the command was not found, say
            if self.state.run:
                self.client.delete_run(self.state.run)
            self.folder.tracking.unlink(missing_ok=True)
            raise Gone(NO_RUN) from None
        signature = (found.st_mtime_ns, found.st_ino, found.st_size)
        if self._record is None or self._record[0] != signature:
            self._record = signature, self.folder.read()
        return self._record[1]

    # the run in MLflow ------------------------------------------------------------------------------------------

    def _open(self, record: Record) -> None:
        """Find the run, or create it: a crash between its creation and our note of it must not make a second one."""
        experiment = self._experiment(record)
        found = self._known_run() or self._find(experiment, record)
        run = found or self._create(experiment, record)
        if not run.active:
            raise Gone("deleted in MLflow, and left so")
        known = run.id == self.state.run
        if not known:
            self.state = State(uri=self.uri, experiment_id=experiment, run=run.id)
            self.save()
        taken: dict[str, Collection[str]] = {"metric": run.metrics, "param": run.params, "tag": run.tags}
        names = Names(self.state.names, taken, complete=known)
        names.reserve("param", view.param_names(record.planned.config))
        self.delivery = Delivery(self.client, run, names, self._odd, self._keep)
        self.nested = Nested(self.delivery, record, self.state.below, self._deliver, self._remark)
        if found:
            self._doubt()
        self.run = run

    def _known_run(self) -> TrackedRun | None:
        return self.client.run(self.state.run) if self.state.run else None  # None: the store was thrown away

    def _find(self, experiment: str, record: Record) -> TrackedRun | None:
        wanted = f"tags.`run` = '{record.planned.run}'"
        found = self.client.find_runs([experiment], wanted, limit=NAMESAKES, deleted=True)
        return next((run for run in found if TAG not in run.tags), None)  # no nested one, whatever it calls itself

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
        known = outcome(self.folder)
        if (self.state.described, self.state.verdict) == (record.state, known):
            return
        self.delivery.tags(_notes(view.tags(record, known)))
        if not self.state.described:
            self._inputs(record, there=())
        if not self.state.compared:
            self._compare(record)
        late = self.state.verdict != known  # it comes after the end, and so does its file
        self._note(described=record.state, **({"verdict": known, "artifacts": False, "shipping": True} if late else {}))
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

    def _inputs(self, record: Record, there: Container[tuple[str, str]]) -> int:
        """Parameters and datasets; how many datasets were not `there`."""
        config = record.planned.config
        paths = view.param_names(config)
        values = {paths[name]: value for name, value in view.params(config).items()}
        self.delivery.settings(values, {paths[name]: length for name, length in view.long_params(config).items()})
        wanted = [used for used in map(view.dataset, record.planned.data) if (used.name, used.digest) not in there]
        for used in wanted:
            self._input(used)
        return len(wanted)

    def _input(self, dataset: view.Dataset) -> None:
        """Log a dataset. MLflow looks for it first and inserts it later: runs that begin together collide, once."""
        try:
            self.client.log_dataset(self.state.run, dataset)
        except TrackingError as error:
            if not COLLISION.search(str(error)):
                raise
            self.client.log_dataset(self.state.run, dataset)  # now it finds the other run's

    # the journal ------------------------------------------------------------------------------------------------

    def _catch_up(self, record: Record, *, last: bool) -> bool:
        """Send what is new; True when that was enough for one turn, and there may be more."""
        begun = time.monotonic()
        if not last and not record.ended and begun < self._rests_until:
            return False
        while self._drain(record):
            if not last and (not record.ended or time.monotonic() - begun > TURN_SECONDS):
                return True
        return False

    def _drain(self, record: Record) -> bool:
        """Send the next block of each journal file; False when there was nothing new."""
        begun = time.thread_time()
        moved = waiting = False
        for path in journal.sources(self.folder):
            position = self.state.positions.get(path.name, Position())
            if _size(path) == position.bytes:
                continue
            events, then = _read(path, position, record)
            if then == position:
                continue
            if self.nested.lacks(events) and not self._stalled:
                waiting = True
                continue
            self._ingest(events, path.name, then)
            moved = True
        self._stalled = waiting and not moved  # twice: no other file will say more of it
        if moved:
            rest = min(REST_SECONDS, RESTS * (time.thread_time() - begun))
            self._rests_until = time.monotonic() + rest
        if self._unsaved and time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()
        return moved or waiting

    def _doubt(self) -> None:
        """All that is in the journal now may have been sent: an answer was lost, or whoever sent it died."""
        self._doubtful = {path.name: _size(path) for path in journal.sources(self.folder)}
        self.nested.doubt()
        self._trust()

    def _trust(self) -> None:
        """Where nothing doubtful is left, MLflow need not be asked what it has."""
        known = self.state.positions
        left = {name: end for name, end in self._doubtful.items() if known.get(name, Position()).bytes < end}
        if not left:
            self.nested.trust()
        self._doubtful = left

    def _ingest(self, events: Events, name: str, then: Position) -> None:
        before = self.state
        try:
            lost = self.nested.take(events)
        except Exception:
            self.state = msgspec.structs.replace(before, names=self.state.names, below=dict(self.nested.known))
            self._doubt()
            raise
        self._note(
            positions={**self.state.positions, name: then},
            below=dict(self.nested.known),
            unread=self.state.unread + events.unread + lost,
        )
        self._trust()

    def _deliver(self, events: Events) -> None:
        refused = sorted({tag.key for tag in events.tags if not view.settable(view.key(tag.key))})
        for name in refused:
            self._odd("ours", name)
        self.delivery.metrics(events.metrics)
        self.delivery.params(events.params)
        self.delivery.tags([tag for tag in events.tags if tag.key not in refused])

    # the end ----------------------------------------------------------------------------------------------------

    def _end(self, record: Record) -> None:
        ended = record.ended
        assert ended is not None  # noqa: S101 - `advance` has looked
        if self.state.unread:
            self._remark(f"{self.state.unread} journal lines could not be read")
        self.nested.end(view.status(ended.end), _ms(ended.at))
        self.client.terminate(self.state.run, view.status(ended.end), _ms(ended.at))
        self._note(ended=True, below=dict(self.nested.known))
        self.save()
        with contextlib.suppress(Exception):  # columns of a list: MLflow's own format, worth no failure
            now = self.client.run(self.state.run)
            shown = view.saved_view(now.metrics if now else (), _ms(ended.at))
            self.client.tag_experiment(self.state.experiment_id, f"mlflow.sharedViewState.{view.VIEW}", shown)

    def ship(self, say: Say) -> None:
        """Link the run's files into a local store, upload them to any other. It may take hours, so it may be called
        in a thread of its own, when `advance` has said that the rest is there."""
        if self.state.artifacts:
            return
        sent = self._ship(say, fresh=not self.state.shipping)
        self._note(artifacts=True, shipping=False, failure="")
        self.save()
        if sent.files and self.delivery.repair:
            self.repaired += (f"{sent.files:,} artifacts",)

    def _ship(self, say: Say, *, fresh: bool) -> Amount:
        with scratch.folder("repro-mlflow-") as folder:
            shipment = Shipment(self._files(folder), say, self._odd, fresh=fresh)
            assert self.run is not None  # noqa: S101 - `advance` has opened it
            if self._local_target(self.run) is None:
                self._note(shipping=True)
                self.save()
                shipment.upload(self.client)
            elif self.uri.startswith("http") and not _here(self.uri):
                place = self.run.artifact_uri
                self._remark(f"no artifacts: the server keeps them in {place}, a folder of its own machine")
            else:
                if file := store.sqlite_file(self.uri):
                    ignored_folder(store.artifacts(file))  # else the next snapshot of the code would hold these outputs
                shipment.link(self._local_target)
        return shipment.sent

    def _files(self, folder: Path) -> Iterator[Item]:
        for number, (path, name) in enumerate(artifacts(self.folder)):
            place, there = self.nested.place(name)
            content = self.nested.content(path, name)
            if content is not None:
                path = folder / str(number)  # noqa: PLW2901 - what is sent in its place
                path.write_bytes(content)
            yield Item(path=path, name=there, place=place, edited=content is not None)

    # all over again ---------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Compare all that should be in MLflow with what is there, and send what is missing; files are for `ship`.

        What somebody changed in MLflow (a description, a tag) stays as it is.
        """
        record, run = self._read(), self.client.run(self.state.run)
        if run is None or not run.active:
            raise Gone("deleted in MLflow, and left so")
        sent = self.delivery.sent
        sent.clear()
        self.delivery.begin_repair(run)
        self.nested.begin_repair()
        self.delivery.tags(_notes(view.tags(record, outcome(self.folder))))
        if datasets := self._inputs(record, there=run.datasets):
            sent["datasets"] = datasets
        for path in journal.sources(self.folder):
            position, end = Position(), self.state.positions.get(path.name, Position())
            while position.bytes < end.bytes:
                events, then = _read(path, position, record)
                if then == position:  # the file is shorter than it was
                    break
                self.nested.take(events)
                position = then
        if record.ended:
            self.nested.end(view.status(record.ended.end), _ms(record.ended.at))
            self._note(artifacts=False, shipping=True)
            if (run.status, run.ended) != (view.status(record.ended.end), _ms(record.ended.at)):
                self.client.terminate(run.id, view.status(record.ended.end), _ms(record.ended.at))
                sent["status"] = 1
        self.repaired = tuple("the status" if what == "status" else f"{sent[what]:,} {what}" for what in sent)

    def _local_target(self, place: Place) -> Path | None:
        """The folder for the artifacts of a run or a model, if it is one of this machine's."""
        parts, file = urlsplit(place.artifact_uri), store.sqlite_file(self.uri)
        if parts.scheme == "mlflow-artifacts" and file is not None:  # the experiment was made in `mlflow ui`
            return store.artifacts(file) / unquote(parts.path).lstrip("/")
        if parts.scheme not in ("", "file"):
            return None
        target = Path(unquote(parts.path))
        folder = target.parent.parent
        if file is not None and file.parent not in target.parents and not folder.exists():
            raise ReproError(
                f"the store keeps artifacts of this experiment in {folder}, which is not there",
                hints=[f"was the project moved? `rm {file}`, then `repro sync` fills a new one", f"mkdir -p {folder}"],
            )
        return target

    # tracking.json ----------------------------------------------------------------------------------------------

    def _note(self, **changes: Any) -> None:
        self.state = msgspec.structs.replace(self.state, **changes)
        self._unsaved = True

    def _remark(self, text: str) -> None:
        if text not in self.state.remarks and len(self.state.remarks) < REMARKS:
            self._note(remarks=(*self.state.remarks, text))

    def _odd(self, kind: str, subject: str) -> None:
        """MLflow could not take something as it was: told once, when the run is over."""
        known = self.state.oddities.get(kind, ())
        if subject not in known and len(known) < SUBJECTS:
            self._note(oddities={**self.state.oddities, kind: (*known, subject)})

    def _keep(self) -> None:
        """The names that the next request uses must be known to whoever comes after us."""
        self._note(names={kind: dict(names) for kind, names in self.delivery.names.renamed.items()})
        self.save()

    def save(self) -> None:
        """Write tracking.json."""
        save(self.folder, self.state)
        self._saved, self._unsaved = time.monotonic(), False


def save(folder: RunFolder, known: State) -> None:
    """Write the tracking.json of a run."""
    write_atomic(folder.tracking, msgspec.json.format(msgspec.json.encode(known), indent=2) + b"\n")


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


def _read(path: Path, position: Position, record: Record) -> tuple[Events, Position]:
    ended = record.ended is not None
    return journal.read(path, position, run=record.planned.run, started=_began(record), ended=ended)


def _notes(texts: Mapping[str, str]) -> list[Note]:
    return [Note(key=key, value=value) for key, value in texts.items()]


def _size(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_size
    except OSError:
        return 0
