"""The tracking client for every store that MLflow itself opens: databases, Databricks, plugins of the user's."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from repro.tracking.client import (
    METRICS,
    OTHERS,
    Artifact,
    TrackedExperiment,
    TrackedModel,
    TrackedRun,
    TrackingError,
    UnreachableError,
    batches,
)
from repro.tracking.journal import Metric, Note
from repro.tracking.view import Dataset

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
                them = [_point(point) for point in points]
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
        tags = [entities.InputTag("mlflow.data.context", dataset.context)] if dataset.context else []
        with _ours():
            self._client.log_inputs(run, [entities.DatasetInput(what, tags)])

    def terminate(self, run: str, status: str, ended: int) -> None:
        """Say how and when a run ended."""
        with _ours():
            self._client.set_terminated(run, status=status, end_time=ended)

    def delete_run(self, run: str) -> None:
        """Mark a run as deleted."""
        with _ours():
            self._client.delete_run(run)

    def artifacts(self, place: TrackedRun | TrackedModel, path: str = "") -> list[Artifact]:
        """What is in a folder of a run's or a model's artifacts."""
        listed = self._client.list_artifacts
        if isinstance(place, TrackedModel):
            listed = self._client.list_logged_model_artifacts
        with _ours():
            entries = listed(place.id, path or None)
        return [Artifact(path=entry.path, folder=entry.is_dir, size=entry.file_size) for entry in entries]

    def upload(self, place: TrackedRun | TrackedModel, file: Path, name: str, sent: Callable[[int], None]) -> None:
        """Store a file as an artifact of a run or a model."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        folder = posixpath.dirname(name) or None
        with _ours():
            if isinstance(place, TrackedRun):
                self._client.log_artifact(place.id, str(file), folder)
            else:
                get_artifact_repository(place.artifact_uri, self._client.tracking_uri).log_artifact(str(file), folder)
        sent(file.stat().st_size)

    def create_model(self, experiment: str, *, name: str, run: str, kind: str, tags: Mapping[str, str]) -> TrackedModel:
        """A new logged model."""
        with _ours():
            return _model(self._client.create_logged_model(experiment, name, run, dict(tags), None, kind or None))

    def model(self, model: str) -> TrackedModel:
        """The logged model of this id."""
        with _ours():
            return _model(self._client.get_logged_model(model))

    def find_models(self, experiment: str, query: str) -> list[TrackedModel]:
        """Logged models by MLflow's query language."""
        found: list[TrackedModel] = []
        token = None
        with _ours():
            while True:
                page = self._client.search_logged_models([experiment], query, page_token=token)
                found += map(_model, page)
                token = page.token
                if not token:
                    return found

    def note_model(self, model: str, *, tags: Mapping[str, str], params: Mapping[str, str]) -> None:
        """Tag a logged model, and add parameters that it does not have yet."""
        missing = {key: value for key, value in params.items() if key not in self.model(model).params} if params else {}
        with _ours():
            if tags:
                self._client.set_logged_model_tags(model, dict(tags))
            if missing:
                self._client.log_model_params(model, missing)

    def finish_model(self, model: str, status: str) -> None:
        """Say that all of a logged model is there, or that it failed."""
        with _ours():
            self._client.finalize_logged_model(model, status)

    def log_model_input(self, run: str, model: str) -> None:
        """Note that a run uses a logged model."""
        from mlflow.entities import LoggedModelInput

        with _ours():
            self._client.log_inputs(run, models=[LoggedModelInput(model)])

    def log_model_output(self, run: str, model: str, step: int) -> None:
        """Note that a run has made a logged model."""
        from mlflow.entities import LoggedModelOutput

        with _ours():
            self._client.log_outputs(run, [LoggedModelOutput(model, step)])


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


def _model(found: Any) -> TrackedModel:
    return TrackedModel(
        id=found.model_id,
        artifact_uri=found.artifact_location,
        status=str(found.status.value),
        tags=dict(found.tags),
        params=dict(found.params),
    )


def _point(point: Metric) -> Any:
    from mlflow.entities import Metric as Point

    return Point(point.key, point.value, point.timestamp, point.step, model_id=point.model_id or None)
