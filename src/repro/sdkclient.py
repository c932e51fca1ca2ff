"""The tracking client for every store that MLflow itself opens: databases, Databricks, plugins of the user's."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from repro.client import (
    METRICS,
    OTHERS,
    Artifact,
    TrackedExperiment,
    TrackedRun,
    TrackingError,
    UnreachableError,
    batches,
)
from repro.journal import Metric, Note
from repro.view import Dataset

CONNECTION = ("Connection refused", "Name or service not known", "timed out", "Max retries exceeded", "failed with")


class SdkClient:
    """MlflowClient behind our protocol; importing it takes seconds."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)

    def experiment(self, name: str) -> TrackedExperiment | None:
        """The experiment of this name, deleted ones included."""
        with _ours():
            found = self._client.get_experiment_by_name(name)
        return _experiment(found) if found else None

    def experiments(self, limit: int) -> list[TrackedExperiment]:
        """The active experiments, at most `limit`."""
        with _ours():
            return [_experiment(found) for found in self._client.search_experiments(max_results=limit)]

    def create_experiment(self, name: str, location: str | None, tags: Mapping[str, str]) -> str:
        """The id of a new experiment."""
        with _ours():
            return str(self._client.create_experiment(name, location, dict(tags)))

    def tag_experiment(self, experiment: str, key: str, value: str) -> None:
        """Set a tag of an experiment."""
        with _ours():
            self._client.set_experiment_tag(experiment, key, value)

    def create_run(self, experiment: str, *, name: str, started: int, tags: Mapping[str, str]) -> TrackedRun:
        """A new run."""
        with _ours():
            return _run(self._client.create_run(experiment, start_time=started, tags=dict(tags), run_name=name))

    def run(self, run: str) -> TrackedRun | None:
        """The run of this id, a deleted one too; None when there is none."""
        try:
            with _ours():
                return _run(self._client.get_run(run))
        except TrackingError as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def find_runs(
        self, experiments: Sequence[str], query: str, *, limit: int, deleted: bool = False
    ) -> list[TrackedRun]:
        """Runs by MLflow's query language, newest first."""
        from mlflow.entities import ViewType

        view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
        with _ours():
            return [_run(run) for run in self._client.search_runs(list(experiments), query, view, max_results=limit)]

    def log(
        self, run: str, *, metrics: Sequence[Metric] = (), params: Sequence[Note] = (), tags: Sequence[Note] = ()
    ) -> None:
        """Log any number of each."""
        from mlflow import entities

        with _ours():
            for points in batches(metrics, METRICS):
                them = [entities.Metric(point.key, point.value, point.timestamp, point.step) for point in points]
                self._client.log_batch(run, metrics=them, synchronous=True)
            for notes in batches(params, OTHERS):
                these = [entities.Param(note.key, note.value) for note in notes]
                self._client.log_batch(run, params=these, synchronous=True)
            for notes in batches(tags, OTHERS):
                those = [entities.RunTag(note.key, note.value) for note in notes]
                self._client.log_batch(run, tags=those, synchronous=True)

    def history(self, run: str, key: str) -> Iterator[Metric]:
        """Every point of a metric."""
        with _ours():
            points = self._client.get_metric_history(run, key)
        for point in points:
            yield Metric(key=key, value=point.value, timestamp=point.timestamp, step=point.step)

    def log_dataset(self, run: str, dataset: Dataset) -> None:
        """Note an input of a run."""
        from mlflow import entities

        what = entities.Dataset(
            dataset.name,
            dataset.digest,
            dataset.source_type,
            dataset.source,
            schema=dataset.schema or None,
            profile=dataset.profile or None,
        )
        with _ours():
            tag = entities.InputTag("mlflow.data.context", dataset.context)
            self._client.log_inputs(run, [entities.DatasetInput(what, [tag])])

    def terminate(self, run: str, status: str, ended: int) -> None:
        """Say how and when a run ended."""
        with _ours():
            self._client.set_terminated(run, status=status, end_time=ended)

    def delete_run(self, run: str) -> None:
        """Mark a run as deleted."""
        with _ours():
            self._client.delete_run(run)

    def artifacts(self, run: TrackedRun, path: str = "") -> list[Artifact]:
        """What is in a folder of a run's artifacts."""
        with _ours():
            entries = self._client.list_artifacts(run.id, path or None)
        return [Artifact(path=entry.path, folder=entry.is_dir, size=entry.file_size) for entry in entries]

    def upload(self, run: TrackedRun, file: Path, name: str, sent: Callable[[int], None]) -> None:
        """Store a file as an artifact."""
        with _ours():
            self._client.log_artifact(run.id, str(file), posixpath.dirname(name) or None)
        sent(file.stat().st_size)


@contextlib.contextmanager
def _ours() -> Iterator[None]:
    """MLflow's exceptions, as ours."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        text = str(error)
        kind = UnreachableError if any(sign in text for sign in CONNECTION) else TrackingError
        raise kind(text, code=error.error_code) from error


def _experiment(found: Any) -> TrackedExperiment:
    return TrackedExperiment(id=str(found.experiment_id), name=found.name, active=found.lifecycle_stage == "active")


def _run(found: Any) -> TrackedRun:
    info, inputs = found.info, found.inputs.dataset_inputs if found.inputs else []
    return TrackedRun(
        id=info.run_id,
        experiment_id=str(info.experiment_id),
        active=info.lifecycle_stage == "active",
        status=info.status,
        started=info.start_time or 0,
        ended=info.end_time,
        artifact_uri=info.artifact_uri or "",
        metrics=dict(found.data.metrics),
        params=dict(found.data.params),
        tags=dict(found.data.tags),
        datasets=tuple((each.dataset.name, each.dataset.digest) for each in inputs),
    )
