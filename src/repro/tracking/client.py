"""What we ask of MLflow, in our own words: one protocol, so that nobody else knows how a store is reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from repro.experiment import Value
from repro.tracking.journal import Metric, Note
from repro.tracking.view import Dataset

METRICS, OTHERS, BYTES = 1000, 100, 900_000  # what a server takes in one request; its own limit is 1 MB
REJECTED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
Item = TypeVar("Item", Metric, Note)


class TrackingError(Exception):
    """MLflow would not, or could not. `code` is MLflow's word for why; `status` is of HTTP, 0 elsewhere."""

    def __init__(self, message: str, *, code: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.code, self.status = code, status

    @property
    def rejected(self) -> bool:
        """Whether it is for what was sent: the same would be refused again."""
        return self.code in REJECTED


class UnreachableError(TrackingError):
    """No answer: what was sent may have arrived all the same."""


class TrackedExperiment(Value, frozen=True, kw_only=True):
    """An experiment of MLflow's."""

    id: str
    name: str
    active: bool


class TrackedRun(Value, frozen=True, kw_only=True):
    """A run as MLflow has it; `metrics` has the last value of each. Times are milliseconds since the epoch."""

    id: str
    experiment_id: str
    active: bool  # False: deleted
    status: str
    started: int
    ended: int | None = None
    artifact_uri: str = ""
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    params: dict[str, str] = msgspec.field(default_factory=dict)
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    datasets: tuple[tuple[str, str], ...] = ()  # (name, digest)


class TrackedModel(Value, frozen=True, kw_only=True):
    """A logged model as MLflow has it."""

    id: str
    artifact_uri: str
    status: str  # PENDING, READY or FAILED
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    params: dict[str, str] = msgspec.field(default_factory=dict)


class Artifact(Value, frozen=True, kw_only=True):
    """An entry of a folder of artifacts; `path` is below the run's artifacts."""

    path: str
    folder: bool
    size: int | None = None


class TrackingClient(Protocol):
    """A store of MLflow's.

    Every method may raise TrackingError, an UnreachableError where nobody answered within seconds.
    """

    def experiment(self, name: str) -> TrackedExperiment | None:
        """The experiment of this name, deleted ones included."""

    def experiments(self, limit: int) -> list[TrackedExperiment]:
        """The active experiments, at most `limit`."""

    def create_experiment(self, name: str, location: str | None, tags: Mapping[str, str]) -> str:
        """The id of a new experiment; with the code RESOURCE_ALREADY_EXISTS when there is one of this name."""

    def tag_experiment(self, experiment: str, key: str, value: str) -> None:
        """Set a tag of an experiment."""

    def create_run(self, experiment: str, *, name: str, started: int, tags: Mapping[str, str]) -> TrackedRun:
        """A new run."""

    def run(self, run: str) -> TrackedRun | None:
        """The run of this id, a deleted one too; None when there is none."""

    def find_runs(
        self, experiments: Sequence[str], query: str, *, limit: int, deleted: bool = False
    ) -> list[TrackedRun]:
        """Runs by MLflow's query language, newest first; `deleted` includes deleted ones."""

    def log(
        self, run: str, *, metrics: Sequence[Metric] = (), params: Sequence[Note] = (), tags: Sequence[Note] = ()
    ) -> None:
        """Log any number of each, in as many requests as that takes."""

    def history(self, run: str, key: str) -> Iterator[Metric]:
        """Every point of a metric."""

    def log_dataset(self, run: str, dataset: Dataset) -> None:
        """Note an input of a run."""

    def terminate(self, run: str, status: str, ended: int) -> None:
        """Say how and when a run ended; again, if need be."""

    def delete_run(self, run: str) -> None:
        """Mark a run as deleted."""

    def artifacts(self, place: TrackedRun | TrackedModel, path: str = "") -> list[Artifact]:
        """What is in a folder of a run's or a model's artifacts."""

    def upload(self, place: TrackedRun | TrackedModel, file: Path, name: str, sent: Callable[[int], None]) -> None:
        """Store a file as the artifact `name` of a run or a model; `sent` hears of each part's bytes."""

    def create_model(self, experiment: str, *, name: str, run: str, kind: str, tags: Mapping[str, str]) -> TrackedModel:
        """A new logged model, made by a run; with HTTP's status 404 from a server that knows no models."""

    def model(self, model: str) -> TrackedModel:
        """The logged model of this id."""

    def find_models(self, experiment: str, query: str) -> list[TrackedModel]:
        """Logged models by MLflow's query language."""

    def note_model(self, model: str, *, tags: Mapping[str, str], params: Mapping[str, str]) -> None:
        """Tag a logged model, and add parameters that it does not have yet."""

    def finish_model(self, model: str, status: str) -> None:
        """Say that all of a logged model is there (READY), or that it FAILED."""

    def log_model_input(self, run: str, model: str) -> None:
        """Note that a run uses a logged model."""

    def log_model_output(self, run: str, model: str, step: int) -> None:
        """Note that a run has made a logged model."""


def batches(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """Items in portions that a server takes."""
    batch: list[Item] = []
    size = 0
    for item in items:
        more = 4 * len(item.key) + (4 * len(item.value) if isinstance(item, Note) else 100)  # as UTF-8, at worst
        if batch and (len(batch) == most or size + more > BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += more
    if batch:
        yield batch


def every_artifact(client: TrackingClient, place: TrackedRun | TrackedModel, path: str = "") -> Iterator[Any]:
    """Every file among a run's or a model's artifacts below `path`."""
    for entry in client.artifacts(place, path):
        if entry.folder:
            yield from every_artifact(client, place, entry.path)
        else:
            yield entry
