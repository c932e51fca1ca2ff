"""Nested runs and models of a run -> MLflow, in steps that can be repeated: each is looked for before it is made.

The container names them by ids of its own invention; MLflow's are known here alone, so that no line of a journal can
reach any other run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from repro.record import Record
from repro.tracking import story, view
from repro.tracking.client import TrackedModel, TrackedRun, TrackingError
from repro.tracking.delivery import Delivery, Gone
from repro.tracking.journal import Events, Metric, Note
from repro.tracking.story import Child

MOST = 10_000  # nested runs and models of one run
TAG = "nested"  # RUN/ID: how they are found again
INHERITED = re.compile(r"(image|commit|dirty|mlflow\.(user|(source|docker|project)\..*))$")
OWN = ("mlflow.note.content", "mlflow.runName")  # of a nested run these are the experiment's to set
COLLISION = re.compile("unique|duplicate", re.IGNORECASE)  # in the words of sqlite, PostgreSQL and MySQL
GONE = "RESOURCE_DOES_NOT_EXIST"
NO_MODELS = ("ENDPOINT_NOT_FOUND", GONE)  # MLflow's own client's words for a 404
HISTORY = "mlflow.log-model.history"  # a tag with ids in it
ID = re.compile(r"m-[0-9a-f]{32}|(?<![0-9a-f-])[0-9a-f]{32}(?![0-9a-f])")  # of a model or a run
DESCRIPTION, LARGEST = "MLmodel", 1 << 20  # of a model: a file with ids in it; bytes
PLACE = re.compile(r"outputs/mlflow/(?:runs/([0-9a-f]{32})/|models/(m-[0-9a-f]{32})/|)artifacts/(.+)", re.DOTALL)
TAKEN = re.compile(r"(outputs|logs|inputs|config\.yaml|record\.json|uncommitted\.diff\.txt)(/|\Z)")  # at the root: ours
OPEN = ("RUNNING", "SCHEDULED", "PENDING")

Place = TrackedRun | TrackedModel  # what artifacts belong to


class Nested:
    """What hangs below one run. `deliver` logs numbers and notes of the run itself; users hear each `remark`."""

    def __init__(
        self,
        root: Delivery,
        record: Record,
        known: dict[str, Child],
        deliver: Callable[[Events], None],
        remark: Callable[[str], None],
    ) -> None:
        self.client, self.root, self.run = root.client, root.run, record.planned.run
        self.known = dict(known)  # by the container's id
        self.deliver, self.remark = deliver, remark
        self.inherited = {key: value for key, value in view.tags(record).items() if INHERITED.match(key)}
        self._root = root
        self._deliveries: dict[str, Delivery] = {}  # by the container's id
        self._doubtful = self._repair = False
        self._found: dict[str, Child] | None = None
        self._places: dict[str, Place | None] = {}

    def doubt(self) -> None:
        """What comes next may be there already, in part."""
        self._doubtful = True
        self._found = None  # something may have been made since
        for each in (self._root, *self._deliveries.values()):
            each.doubt()

    def trust(self) -> None:
        """What comes next is new."""
        self._doubtful = False
        for each in (self._root, *self._deliveries.values()):
            each.trust()

    def begin_repair(self) -> None:
        """From now on, send only what is not there; the run itself has been told."""
        self._repair = True
        self._deliveries.clear()

    # the journal --------------------------------------------------------------------------------------------------

    def lacks(self, events: Events) -> bool:
        """Whether these lines are of a run or a model that no line so far has begun: another process's file has it."""
        begun = {part.id for part in events.parts if isinstance(part, story.Nested | story.Model)}
        named = set(events.nested)
        for part in events.parts:
            named |= {getattr(part, "run", ""), getattr(part, "model", ""), getattr(part, "parent", "")}
        named |= {point.model_id for each in (events, *events.nested.values()) for point in each.metrics}
        return bool(named - begun - set(self.known) - {story.ROOT})

    def take(self, events: Events) -> int:
        """Bring a block of lines to MLflow; how many of them belong to nothing that ever began."""
        for part in events.parts:
            if isinstance(part, story.Nested):
                self._begin(part)
            elif isinstance(part, story.Model):
                self._begin_model(part)
        lost = 0
        for run, theirs in ((story.ROOT, events), *events.nested.items()):
            if run != story.ROOT and run not in self.known:
                lost += len(theirs.metrics) + len(theirs.params) + len(theirs.tags)
            elif run == story.ROOT:
                self.deliver(self._translated(run, theirs))
            elif self._mlflow(run):
                self._deliver(run, self._translated(run, theirs))
        for part in events.parts:
            lost += not self._tell(part)
        return lost

    def _deliver(self, own: str, events: Events) -> None:
        try:
            delivery = self._deliveries.get(own) or self._delivery(own, self._there_now(own))
            delivery.metrics(events.metrics)
            delivery.params(events.params)
            delivery.tags(events.tags)
        except Gone:
            self.remark(f"nested run {self._mlflow(own)} was deleted in MLflow, and is left so")
            self.known[own] = Child(id="", status="FAILED")

    def _there_now(self, own: str) -> TrackedRun:
        found = self.client.run(self._mlflow(own))
        if found is None or not found.active:
            raise Gone
        return found

    def _delivery(self, own: str, run: TrackedRun) -> Delivery:
        """The way into one nested run; its names are the whole family's, so that what is alike is called alike."""
        made = Delivery(self.client, run, self._root.names, self._root.odd, self._root.keep)
        made.sent = self._root.sent
        if self._repair:
            made.begin_repair(run)
        elif self._doubtful:
            made.doubt()
        self._deliveries[own] = made
        return made

    def _begin(self, new: story.Nested) -> None:
        if new.id in self.known or self._full():
            return
        found = self._there().get(new.id)
        if found is None:
            tags = {**self.inherited, **_notes(new.tags), TAG: f"{self.run}/{new.id}"}
            tags["mlflow.parentRunId"] = self._mlflow(new.parent) or self.root.id
            name = view.cut(new.name, view.KEY_LIMIT)
            made = self.client.create_run(self.root.experiment_id, name=name, started=new.at, tags=tags)
            found = Child(id=made.id, status="RUNNING")
            self._delivery(new.id, made)
        self.known[new.id] = found

    def _begin_model(self, new: story.Model) -> None:
        if new.id in self.known or self._full():
            return
        found = self._there().get(new.id)
        if found is None:
            tags = {**_notes(new.tags), TAG: f"{self.run}/{new.id}"}
            run = self._mlflow(new.run) or self.root.id
            name = re.sub(r"[/:.%\"']", "_", view.cut(new.name, view.KEY_LIMIT)) or "model"
            try:
                made = self.client.create_model(self.root.experiment_id, name=name, run=run, kind=new.kind, tags=tags)
                found = Child(id=made.id, status="PENDING")
            except TrackingError as error:
                if error.status != 404 and not error.rejected:
                    raise
                why = "the server knows no models" if error.status == 404 else str(error)
                self.remark(f"model {new.name}: its files are among the outputs alone ({why})")
                found = Child(id="", status="FAILED")
        self.known[new.id] = found
        if found.id:
            self._note_model(found.id, {}, new.params)

    def _full(self) -> bool:
        if len(self.known) >= MOST:
            self.remark(f"more than {MOST:,} nested runs and models: the others stay in the journal")
        return len(self.known) >= MOST

    def _there(self) -> dict[str, Child]:
        """Those that MLflow has, by our ids: made by a publisher that ended before it could write down that it did."""
        if self._found is None:
            found: dict[str, Child] = {}
            query = f"tags.`{TAG}` LIKE '{self.run}/%'"
            for run in self.client.find_runs([self.root.experiment_id], query, limit=MOST, deleted=True):
                gone = Child(id="", status="FAILED")  # deleted by somebody, and left so
                found[_named(run.tags)] = Child(id=run.id, status="RUNNING") if run.active else gone
            for model in self._models(query):
                found[_named(model.tags)] = Child(id=model.id, status=model.status)
            self._found = found
        return self._found

    def _models(self, query: str) -> list[TrackedModel]:
        try:
            return self.client.find_models(self.root.experiment_id, query)
        except TrackingError as error:
            if error.status != 404 and error.code not in NO_MODELS:
                raise
            return []  # a server that knows none

    def _mlflow(self, own: str) -> str:
        """MLflow's id of a run or a model; "" where it has none."""
        if own == story.ROOT:
            return self.root.id
        known = self.known.get(own)
        return known.id if known else ""

    def _translated(self, run: str, events: Events) -> Events:
        """With MLflow's ids in the place of the container's, and without tags that are not the experiment's to set."""
        metrics: list[Metric] = [
            msgspec.structs.replace(point, model_id=self._mlflow(point.model_id)) if point.model_id else point
            for point in events.metrics
        ]
        tags = [
            Note(key=tag.key, value=self.translate(tag.value)) if tag.key == HISTORY else tag for tag in events.tags
        ]
        if run != story.ROOT:
            tags = [tag for tag in tags if tag.key in OWN or view.settable(view.key(tag.key))]
        return Events(metrics=tuple(metrics), params=events.params, tags=tuple(tags))

    def translate(self, text: str) -> str:
        """Ids of the container's, as MLflow's."""
        text = ID.sub(lambda own: self._mlflow(own[0]) or own[0], text)
        return text.replace(re.sub(r"[^\w-]", "_", self.run), self.root.id)

    def _tell(self, part: story.Part) -> bool:
        """Whether what a line says is about something that began."""
        ids = [getattr(part, "run", story.ROOT), getattr(part, "model", "")]
        if any(own and own not in self.known for own in ids):
            return False
        try:
            self._do(part)
        except TrackingError as error:
            if COLLISION.search(str(error)):  # it is there already
                return True
            if not error.rejected and error.code != GONE:
                raise
            self.remark(f"{type(part).__name__} {getattr(part, 'name', '')}: {view.cut(str(error), 200)}")
        return True

    def _do(self, part: story.Part) -> None:
        run, of = self._mlflow(getattr(part, "run", story.ROOT)), getattr(part, "model", "")
        model = self._mlflow(of) if of else ""
        if not run or (of and not model):
            return  # not in MLflow, which has been said
        if isinstance(part, story.RunStatus) and part.run != story.ROOT:  # the run itself ends when its container does
            if part.status in OPEN:
                self.known[part.run] = Child(id=run, status=part.status)
            else:
                self.client.terminate(run, part.status, part.at or self.root.started)
                self.known[part.run] = Child(id=run, status=part.status)
        elif isinstance(part, story.DatasetInput):
            names = ("name", "digest", "source_type", "source", "schema", "profile", "context")
            self.client.log_dataset(run, view.Dataset(**{name: getattr(part, name) for name in names}))
        elif isinstance(part, story.ModelInput):
            self.client.log_model_input(run, model)
        elif isinstance(part, story.ModelOutput):
            self.client.log_model_output(run, model, part.step)
        elif isinstance(part, story.ModelNotes):
            self._note_model(model, part.tags, part.params)
        elif isinstance(part, story.ModelStatus):
            self._finish_model(part.model, model, part.status)
        elif isinstance(part, story.Registration):
            source = f"models:/{model}" if model else f"runs:/{run}/{part.source.rpartition('/artifacts/')[2]}"
            self.remark(f"to register {part.name}: mlflow.register_model({source!r}, {part.name!r})")

    def _note_model(self, model: str, tags: dict[str, str], params: dict[str, str]) -> None:
        noted = {view.key(key): view.cut(value, view.PARAM_LIMIT) for key, value in params.items()}
        if tags or noted:
            self.client.note_model(model, tags=_notes(tags), params=noted)

    def _finish_model(self, own: str, model: str, status: str) -> None:
        if status != "PENDING":
            self.client.finish_model(model, status)
        self.known[own] = Child(id=model, status=status)

    # the end ------------------------------------------------------------------------------------------------------

    def end(self, status: str, at: int) -> None:
        """The run ended: what is below it and still goes on ends with it."""
        for own, child in self.known.items():
            if child.id and child.status in OPEN:
                try:
                    self._end(own, child, status, at)
                except TrackingError as error:  # deleted in MLflow, say: the run itself ends all the same
                    if not error.rejected and error.code != GONE:
                        raise
                    what = "model" if story.MODEL_ID.fullmatch(own) else "nested run"
                    self.remark(f"{what} {child.id} was not ended: {view.cut(str(error), 200)}")
                    self.known[own] = Child(id="", status="FAILED")

    def _end(self, own: str, child: Child, status: str, at: int) -> None:
        if story.MODEL_ID.fullmatch(own):
            self._finish_model(own, child.id, "FAILED")
        else:
            self.client.terminate(child.id, status, at)
            self.known[own] = Child(id=child.id, status=status)

    def place(self, name: str) -> tuple[Place, str]:
        """Where an artifact of the run belongs, and its name there; `name` is below the run folder."""
        found = PLACE.fullmatch(name)
        if found is None:
            return self.root, name
        own = found[1] or found[2] or story.ROOT
        if (own == story.ROOT and TAKEN.match(found[3])) or not self._mlflow(own):
            return self.root, name
        there = self._place(own)
        return (there, found[3]) if there else (self.root, name)

    def _place(self, own: str) -> Place | None:
        if own == story.ROOT:
            return self.root
        if own not in self._places:
            self._places[own] = self._model(own) if story.MODEL_ID.fullmatch(own) else self._run(own)
        return self._places[own]

    def _run(self, own: str) -> TrackedRun | None:
        found = self.client.run(self._mlflow(own))
        return found if found and found.active else None

    def _model(self, own: str) -> TrackedModel | None:
        try:
            return self.client.model(self._mlflow(own))
        except TrackingError as error:
            if error.code != GONE:
                raise
            return None

    def content(self, file: Path, name: str) -> bytes | None:
        """What MLflow gets in the place of a file that names ids of the container's; None: the file as it is."""
        if PLACE.fullmatch(name) is None or file.name != DESCRIPTION or file.stat().st_size > LARGEST:
            return None
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
        return self.translate(text).encode(errors="surrogateescape")


def _notes(tags: dict[str, str]) -> dict[str, str]:
    allowed = {key: value for key, value in tags.items() if key in OWN or view.settable(view.key(key))}
    return {view.key(key): view.cut(value, view.TAG_LIMIT) for key, value in allowed.items()}


def _named(tags: dict[str, str]) -> str:
    return tags.get(TAG, "").rpartition("/")[2]
