"""One run folder -> its run in MLflow, in steps that can be repeated after any accident."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from repro import journal, ledger, manifest, store, view
from repro.errors import ReproError
from repro.journal import Events, Position
from repro.project import ignored_folder
from repro.record import Record, RunFolder, write_atomic
from repro.tracking import State, state

SAVE_SECONDS = 2.0  # points sent since the last save would be sent again after a crash, which MLflow does not mind
REJECTED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
COLLISION = re.compile("unique|duplicate", re.IGNORECASE)  # in the words of sqlite, PostgreSQL and MySQL
REMARKS = 20
EXPERIMENTS = 200  # in which other runs of an image are looked for
NO_RUN = "no run took place"


class Gone(Exception):  # noqa: N818 - no error: nothing is left to do
    """The run was discarded here, or deleted in MLflow on purpose."""


class Publication:
    """The way of one run into MLflow. What is there already is never sent twice, or is the same when it is."""

    def __init__(self, folder: RunFolder, uri: str, client: Any) -> None:
        self.folder, self.uri, self.client = folder, uri, client
        known = state(folder)
        self.state = known if known and known.uri == uri else State(uri=uri)
        self.artifact_uri: str | None = None  # known once the run is open
        self._saved = 0.0
        self._unsaved = False

    def advance(self, *, last: bool) -> bool:
        """One step nearer; True when the run is over and all of it is in MLflow. `last`: all that is there now.

        Raises:
            Gone: there is nothing to show, or MLflow's user does not want it.
        """
        record = self._read()
        if self.artifact_uri is None:
            self._open(record)
        self._describe(record)
        while self._drain(record) and (last or record.ended):
            pass
        if record.ended is None:
            return False
        if not self.state.ended:
            self._end(record)
        if not self.state.artifacts:
            self._artifacts()
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
        if run.info.lifecycle_stage != "active":
            raise Gone("deleted in MLflow, and left so")
        if run.info.run_id != self.state.run:
            self.state = State(uri=self.uri, experiment_id=experiment, run=run.info.run_id)
            self.save()
        self.artifact_uri = run.info.artifact_uri

    def _known_run(self) -> Any:
        from mlflow.exceptions import MlflowException

        if not self.state.run:
            return None
        try:
            return self.client.get_run(self.state.run)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # the store was thrown away: fill the new one

    def _find(self, experiment: str, record: Record) -> Any:
        from mlflow.entities import ViewType

        wanted = f"tags.`run` = '{record.planned.run}'"
        return next(iter(self.client.search_runs([experiment], wanted, ViewType.ALL, max_results=1)), None)

    def _create(self, experiment: str, record: Record) -> Any:
        started = record.started.at if record.started else record.planned.created
        return self.client.create_run(
            experiment, start_time=_ms(started), tags=view.tags(record), run_name=record.planned.run
        )

    def _experiment(self, record: Record) -> str:
        from mlflow.exceptions import MlflowException

        name = record.planned.tracking_experiment
        found = self.client.get_experiment_by_name(name)
        if found is None:
            tags = {"mlflow.experimentKind": "custom_model_development"}
            tags[f"mlflow.sharedViewState.{view.VIEW}"] = view.saved_view((), _ms(record.planned.created))
            try:
                return str(self.client.create_experiment(name, self._location(record), tags))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self.client.get_experiment_by_name(name)  # another process was faster
        if found.lifecycle_stage != "active":
            raise ReproError(
                f"the experiment {name!r} is deleted in MLflow",
                hints=[f"MLFLOW_TRACKING_URI={self.uri} mlflow experiments restore -x {found.experiment_id}"],
            )
        return str(found.experiment_id)

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
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        self._send("tags", [RunTag(key, value) for key, value in view.tags(record).items()])
        if not self.state.described:
            self._send("params", [Param(key, value) for key, value in view.params(record.planned.config).items()])
            for used in map(view.dataset, record.planned.data):
                dataset = Dataset(
                    used.name, used.digest, used.source_type, used.source, schema=None, profile=used.profile
                )
                self._input(DatasetInput(dataset, [InputTag("mlflow.data.context", used.context)]))
        if not self.state.compared:
            self._compare(record)
        self._note(described=record.state)
        self.save()

    def _compare(self, record: Record) -> None:
        """Look for a run in this store, of any machine, whose image has the same spec and other content."""
        image = record.planned.image
        if image.content and not image.drift:  # else this machine has told already, and knows better what differs
            with contextlib.suppress(Exception):  # a store may keep other people's experiments from us
                experiments = self.client.search_experiments(max_results=EXPERIMENTS)
                wanted = f"tags.`image_spec` = '{image.spec}' and tags.`image_content` != '{image.content}'"
                ids = [each.experiment_id for each in experiments]
                for other in self.client.search_runs(ids, wanted, max_results=1):
                    tags = other.data.tags
                    self.client.set_tag(self.state.run, "drift", view.drift(tags, image))
                    self._remark(f"drift: {view.drift(tags, image)}")
                    at = datetime.fromtimestamp(other.info.start_time / 1000, timezone.utc)
                    known = {"content": tags["image_content"], "image": tags["image_id"], "run": tags["run"]}
                    ledger.hear(image.spec, **known, at=at)
        self._note(compared=True)

    def _input(self, dataset: Any) -> None:
        """Log a dataset. MLflow looks for it first and inserts it later: runs that begin together collide, once."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.log_inputs(self.state.run, [dataset])
        except MlflowException as error:
            if not COLLISION.search(str(error)):
                raise
            self.client.log_inputs(self.state.run, [dataset])  # now it finds the other run's

    # the journal ------------------------------------------------------------------------------------------------

    def _drain(self, record: Record) -> bool:
        """Send the next block of each journal file; False when there was nothing new."""
        started = _ms(record.started.at if record.started else record.planned.created)
        moved = False
        for path in journal.sources(self.folder):
            position = self.state.positions.get(path.name, Position())
            events, then = journal.read(path, position, run=record.planned.run, started=started)
            if then == position:
                continue
            self._ingest(events)
            self._note(
                positions={**self.state.positions, path.name: then},
                nested=self.state.nested + events.nested,
                unread=self.state.unread + events.unread,
            )
            moved = True
        if self._unsaved and time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()
        return moved

    def _ingest(self, events: Events) -> None:
        from mlflow.entities import Metric, Param, RunTag

        refused = sorted({tag.key for tag in events.tags if not view.settable(view.key(tag.key))})
        for name in refused:
            self._remark(f"tag {name}: it says what repro knows, an experiment cannot set it")
        self._rename_remarks([*events.metrics, *events.params, *events.tags])
        points = events.metrics
        self._send("metrics", [Metric(view.key(p.key), p.value, p.timestamp, p.step) for p in points])
        self._send("params", [Param(view.key(p.key), view.cut(p.value, view.PARAM_LIMIT)) for p in events.params])
        tags = [tag for tag in events.tags if tag.key not in refused]
        self._send("tags", [RunTag(view.key(tag.key), view.cut(tag.value, view.TAG_LIMIT)) for tag in tags])

    def _rename_remarks(self, items: Sequence[Any]) -> None:
        for name in sorted({item.key for item in items}):
            if view.key(name) != name:
                self._remark(
                    f"{view.cut(name, 60)!r} is {view.cut(view.key(name), 60)!r} there, which has stricter names"
                )

    def _send(self, kind: str, items: list[Any]) -> None:
        """Log items; what MLflow refuses for its own sake is singled out and remarked, the rest arrives."""
        from mlflow.exceptions import MlflowException

        if not items:
            return
        try:
            self.client.log_batch(self.state.run, **{kind: items}, synchronous=True)
        except MlflowException as error:
            if error.error_code not in REJECTED:
                raise
            if self.client.get_run(self.state.run).info.lifecycle_stage != "active":
                raise Gone("deleted in MLflow, and left so") from error
            if len(items) == 1:
                changed = "Changing param values" in str(error)
                why = "it has another value there, and MLflow keeps the first" if changed else _first_line(error)
                self._remark(f"{kind[:-1]} {view.cut(items[0].key, 60)}: {why}")
                return
            half = len(items) // 2
            self._send(kind, items[:half])
            self._send(kind, items[half:])

    # the end ----------------------------------------------------------------------------------------------------

    def _end(self, record: Record) -> None:
        ended = record.ended
        assert ended is not None  # noqa: S101 - `advance` has looked
        if self.state.nested:
            self._remark(f"{self.state.nested} journal lines of nested runs stay in the journal")
        if self.state.unread:
            self._remark(f"{self.state.unread} journal lines could not be read")
        self.client.set_terminated(self.state.run, status=view.status(ended.end), end_time=_ms(ended.at))
        self._note(ended=True)
        self.save()
        with contextlib.suppress(Exception):  # columns of a list: MLflow's own format, worth no failure
            shown = view.saved_view(self.client.get_run(self.state.run).data.metrics, _ms(ended.at))
            self.client.set_experiment_tag(self.state.experiment_id, f"mlflow.sharedViewState.{view.VIEW}", shown)

    def _artifacts(self) -> None:
        """Link the run's files into a local store, upload them to any other."""
        uri = self.artifact_uri or ""
        target = self._local_target(uri)
        if target is None:
            for path, name in artifacts(self.folder):
                self.client.log_artifact(self.state.run, str(path), os.path.dirname(name) or None)  # noqa: PTH120
        elif self.uri.startswith("http") and not _here(self.uri):
            self._remark(f"no artifacts: the server keeps them in {uri}, a folder of its own machine")
        else:
            if file := store.sqlite_file(self.uri):
                ignored_folder(store.artifacts(file))  # else the next snapshot of the code would hold these outputs
            for path, name in artifacts(self.folder):
                link(path, target / name)
        self._note(artifacts=True)
        self.save()

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
    ignored = manifest.matcher(manifest.wanted(folder.read().planned).ignore)
    for path, name in sorted(manifest.walk(folder.outputs)):
        if not ignored(name):
            yield path, f"outputs/{name}"
    for top in (folder.logs, folder.path / "inputs"):
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
    for sign in ("Connection refused", "Name or service not known", "timed out", "Max retries exceeded"):
        if sign in str(error):
            return f"the tracking server {uri} does not answer ({sign})", ("start it, or name another: tracking.uri=…",)
    if re.search(r"\b(401|403)\b", text):
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
