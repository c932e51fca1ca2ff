"""MLflow's tracking store over the journal of a run; the base class is mixed in by `repro_mlflow`.

Ids of nested runs and models are ours: the host makes runs and models of MLflow's of them. The run itself ends when
the container does, whatever is said here.
"""

import json
import os
import re
import threading
import time
from pathlib import Path

from repro_memory import Memory
from repro_mlflow import made, new_id, refusal, root_id, spared, warn_once
from repro_run import _journal, _number

EXPERIMENT = "0"  # the id that MLflow takes where none is chosen
CONTINUED = "REPRO_MLFLOW_RUN"  # set where the run has been started: the next one below this process is a nested one
_starting = threading.Lock()
HOSTS_OWN = re.compile(r"mlflow\.(user|runName|source\.|project\.|parentRunId|note\.)")  # MLflow sets them unasked


class Store:
    """What the experiment's MLflow sees: one experiment, one run, and those that it nests below it."""

    def __init__(self):
        super().__init__()
        self.root = root_id()
        self.folder = Path(os.environ["REPRO_OUTPUTS"]) / "mlflow"
        self.memory = Memory(os.environ["REPRO_JOURNAL"], self.root, _now())

    # experiments: there is one ------------------------------------------------------------------------------------

    def get_experiment(self, experiment_id=EXPERIMENT, *_more):
        from mlflow.entities import Experiment

        location = self.folder.as_uri()
        return made(
            Experiment,
            experiment_id=EXPERIMENT,
            name=_experiment_name(),
            artifact_location=location,
            lifecycle_stage="active",
            creation_time=self.memory.runs[self.root].start,
            last_update_time=self.memory.runs[self.root].start,
            tags=[],
        )

    def get_experiment_by_name(self, experiment_name, *_more):
        if experiment_name != _experiment_name():
            warn_once(
                f"the experiment stays {_experiment_name()!r}, not {experiment_name!r}: "
                "`tracking.experiment` in the run's configuration chooses it"
            )
        return self.get_experiment()

    def search_experiments(self, *_filter, **_named):
        return _paged([self.get_experiment()])

    list_experiments = search_experiments

    def create_experiment(self, name, *_more, **_named):
        return self.get_experiment_by_name(name).experiment_id

    def set_experiment_tag(self, experiment_id, tag):
        warn_once(f"tag {tag.key} of the experiment is not set: it is not this run's own")

    def delete_experiment(self, *_arguments):
        raise refusal("experiments are the host's")

    restore_experiment = rename_experiment = delete_experiment

    # runs ---------------------------------------------------------------------------------------------------------

    def get_run(self, run_id):
        from mlflow import entities

        run = self._known(run_id, fresh=True)
        info = made(
            entities.RunInfo,
            run_id=run_id,
            run_uuid=run_id,
            experiment_id=EXPERIMENT,
            user_id=os.environ.get("USER", ""),
            status=run.status,
            start_time=run.start,
            end_time=run.end,
            lifecycle_stage="active",
            artifact_uri=self._artifacts(run_id),
            run_name=run.tags.get("mlflow.runName", run.name),
        )
        metrics = [entities.Metric(key, *point) for key, point in run.metrics.items()]
        params = [entities.Param(key, value) for key, value in run.params.items()]
        tags = [entities.RunTag(key, value) for key, value in run.tags.items()]
        data = entities.RunData(metrics, params, tags)
        return made(entities.Run, run_info=info, run_data=data, **_inputs(run), **_outputs(run))

    def create_run(self, experiment_id, user_id, start_time, tags, run_name=None):
        tags = {tag.key: tag.value for tag in tags or []}
        parent = tags.get("mlflow.parentRunId")
        with _starting:
            if parent is None and CONTINUED not in os.environ:
                os.environ[CONTINUED] = self.root
                return self._continue(tags, run_name or tags.get("mlflow.runName"))
        if parent is not None:
            self._known(parent)
        run = new_id()
        tags["mlflow.parentRunId"] = parent or self.root
        event = {"t": "run", "r": run, "k": run_name or tags.get("mlflow.runName") or f"run-{run[:8]}"}
        self._write({**event, "ts": start_time or _now(), "parent": tags["mlflow.parentRunId"], "tags": tags})
        return self.get_run(run)

    def _continue(self, tags, name):
        """The run that this container is."""
        own = {key: value for key, value in tags.items() if not HOSTS_OWN.match(key)}
        if "mlflow.note.content" in tags:
            own["note"] = tags["mlflow.note.content"]  # the description is the host's
        self._rename(name)
        self._write(*({"t": "tag", "k": key, "v": str(value)} for key, value in own.items()))
        return self.get_run(self.root)

    def _rename(self, name):
        """The run keeps its id as its name; the experiment's own name for it is a tag."""
        if name and name != self._known(self.root).tags.get("run_name"):
            self._write({"t": "tag", "k": "run_name", "v": name})

    def update_run_info(self, run_id, run_status=None, end_time=None, run_name=None, **_more):
        from mlflow.entities import RunStatus

        run = self._known(run_id)
        status = RunStatus.to_string(run_status) if isinstance(run_status, int) else run_status
        if run_id == self.root:
            self._rename(run_name)
            run.status, run.end = status or run.status, end_time  # for who asks in here; it ends when the program does
        else:
            events = [{"t": "end", "r": run_id, "v": status, "ts": end_time}] if status else []
            events += [{"t": "tag", "r": run_id, "k": "mlflow.runName", "v": run_name}] if run_name else []
            self._write(*events)
        return self.get_run(run_id).info

    def delete_run(self, run_id):
        self._known(run_id)
        warn_once(f"run {run_id} is not deleted: a record stays")

    restore_run = delete_run

    def _search_runs(self, experiment_ids, filter_string, run_view_type, max_results, order_by, page_token):
        from mlflow.utils.search_utils import SearchUtils

        self.memory.refresh()
        found = SearchUtils.filter([self.get_run(run) for run in list(self.memory.runs)], filter_string)
        return SearchUtils.paginate(SearchUtils.sort(found, order_by), page_token, max_results)

    def get_metric_history(self, run_id, metric_key, max_results=None, page_token=None):
        from mlflow.entities import Metric

        self._known(run_id)
        return _paged([Metric(metric_key, *point) for point in self.memory.history(run_id, metric_key)])

    # what is logged -----------------------------------------------------------------------------------------------

    @spared
    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        known = self._known(run_id, fresh=bool(params)).params
        changed = [param.key for param in params if known.get(param.key, str(param.value)) != str(param.value)]
        events = [_metric(metric) for metric in metrics]
        events += [{"t": "p", "k": param.key, "v": str(param.value)} for param in params if param.key not in changed]
        events += [{"t": "tag", "k": tag.key, "v": str(tag.value)} for tag in tags]
        self._write(*(self._of(run_id, event) for event in events))
        if changed:
            raise refusal(f"Changing param values is not allowed: {', '.join(changed)} of run {run_id}")

    @spared
    def log_inputs(self, run_id, datasets=None, models=None):
        self._known(run_id)
        events = []
        for each in datasets or []:
            names = ("name", "digest", "source_type", "source", "schema", "profile")
            dataset = {name: getattr(each.dataset, name) for name in names}
            events.append({"t": "input", "ds": dataset, "tags": {tag.key: tag.value for tag in each.tags or []}})
        events += [{"t": "used", "m": each.model_id} for each in models or []]
        self._write(*(self._of(run_id, event) for event in events))

    @spared
    def log_outputs(self, run_id, models):
        self._known(run_id)
        self._write(*(self._of(run_id, {"t": "output", "m": each.model_id, "s": each.step}) for each in models))

    @spared
    def record_logged_model(self, run_id, mlflow_model):
        described = getattr(mlflow_model, "get_tags_dict", mlflow_model.to_dict)()
        key = "mlflow.log-model.history"
        before = json.loads(self._known(run_id, fresh=True).tags.get(key, "[]"))
        self._write(self._of(run_id, {"t": "tag", "k": key, "v": json.dumps([*before, described])}))

    def delete_tag(self, run_id, key):
        self._known(run_id)
        warn_once(f"tag {key} is not deleted: what is in the journal stays")

    # models -------------------------------------------------------------------------------------------------------

    def create_logged_model(
        self, experiment_id=EXPERIMENT, name=None, source_run_id=None, tags=None, params=None, model_type=None, **_more
    ):
        model = f"m-{new_id()}"
        source = source_run_id or self.root
        self._known(source)
        event = {"t": "model", "m": model, "k": name or f"model-{model[2:10]}", "type": model_type, "ts": _now()}
        self._write(self._of(source, {**event, "tags": _dictionary(tags), "params": _dictionary(params)}))
        return self.get_logged_model(model)

    def get_logged_model(self, model_id, *_more, **_named):
        from mlflow.entities import LoggedModel, LoggedModelStatus, Metric

        known = self._known_model(model_id)
        where = {"run_id": known.run or self.root, "model_id": model_id}
        metrics = [made(Metric, key=key, **_named_point(point), **where) for key, point, _run in known.metrics]
        return made(
            LoggedModel,
            experiment_id=EXPERIMENT,
            model_id=model_id,
            name=known.name,
            artifact_location=(self.folder / "models" / model_id / "artifacts").as_uri(),
            creation_timestamp=known.start,
            last_updated_timestamp=known.end or known.start,
            model_type=known.kind,
            source_run_id=where["run_id"],
            status=LoggedModelStatus(known.status),
            tags=dict(known.tags),
            params=dict(known.params),
            metrics=metrics,
        )

    def search_logged_models(
        self, experiment_ids, filter_string=None, datasets=None, max_results=None, order_by=None, page_token=None
    ):
        from mlflow.utils.search_utils import SearchLoggedModelsUtils as Search

        self.memory.refresh()
        models = [self.get_logged_model(model) for model in list(self.memory.models)]
        asked = [filter_string, datasets] if datasets else [filter_string]  # 3.0 knows no datasets
        found = Search.sort(Search.filter_logged_models(models, *asked), order_by)
        return _paged(*Search.paginate(found, page_token, max_results or 100))

    def finalize_logged_model(self, model_id, status):
        self._known_model(model_id)
        self._write({"t": "end", "m": model_id, "v": str(getattr(status, "value", status)), "ts": _now()})
        return self.get_logged_model(model_id)

    @spared
    def set_logged_model_tags(self, model_id, tags):
        self._known_model(model_id)
        self._write(*({"t": "tag", "m": model_id, "k": tag.key, "v": str(tag.value)} for tag in tags))

    @spared
    def log_logged_model_params(self, model_id, params):
        self._known_model(model_id)
        self._write(*({"t": "p", "m": model_id, "k": param.key, "v": str(param.value)} for param in params))

    def delete_logged_model(self, model_id):
        self._known_model(model_id)
        warn_once(f"model {model_id} is not deleted: a record stays")

    def delete_logged_model_tag(self, model_id, key):
        self._known_model(model_id)
        warn_once(f"tag {key} is not deleted: what is in the journal stays")

    def set_model_versions_tags(self, *_arguments, **_named):
        """Versions are the registry's, which is the host's."""

    def search_traces(self, *_filter, **_named):
        return [], None  # and no next page

    # the journal --------------------------------------------------------------------------------------------------

    def _known(self, run_id, fresh=False):
        if fresh or run_id not in self.memory.runs:
            self.memory.refresh()
        if run_id not in self.memory.runs:
            own = f"it sees its own run, {self.root}, and those nested in it"
            raise refusal(f"Run '{run_id}' not found: {own}", "RESOURCE_DOES_NOT_EXIST")
        return self.memory.runs[run_id]

    def _known_model(self, model_id):
        self.memory.refresh()
        if model_id not in self.memory.models:
            raise refusal(f"Logged model '{model_id}' not found: it sees its own alone", "RESOURCE_DOES_NOT_EXIST")
        return self.memory.models[model_id]

    def _artifacts(self, run_id):
        where = self.folder if run_id == self.root else self.folder / "runs" / run_id
        return (where / "artifacts").as_uri()

    def _of(self, run_id, event):
        return event if run_id == self.root else {**event, "r": run_id}

    def _write(self, *events):
        if events:
            _journal.append(events)


def _now():
    return int(time.time() * 1000)


def _experiment_name():
    try:
        config = json.loads(Path(os.environ["REPRO_CONFIG"]).read_text(encoding="utf-8"))
        return (config.get("tracking") or {}).get("experiment") or config["name"]
    except (OSError, KeyError, ValueError, AttributeError):
        return "Default"


def _metric(metric):
    event = {"t": "m", "k": metric.key, "v": _number(metric.key, metric.value), "ts": metric.timestamp}
    event["s"] = metric.step or 0
    if getattr(metric, "model_id", None):
        event["m"] = metric.model_id
    return event


def _named_point(point):
    return dict(zip(("value", "timestamp", "step"), point))


def _dictionary(items):
    return items if isinstance(items, dict) else {item.key: str(item.value) for item in items or []}


def _paged(items, token=None):
    from mlflow.store.entities.paged_list import PagedList

    return PagedList(items, token)


def _inputs(run):
    from mlflow import entities

    if not hasattr(entities, "RunInputs"):  # before 2.4
        return {}
    used = [
        entities.DatasetInput(entities.Dataset(**dataset), [entities.InputTag(*tag) for tag in tags.items()])
        for dataset, tags in run.inputs
    ]
    models = [entities.LoggedModelInput(model) for model in run.used] if run.used else []
    return {"run_inputs": made(entities.RunInputs, dataset_inputs=used, model_inputs=models)}


def _outputs(run):
    from mlflow import entities

    if not hasattr(entities, "RunOutputs"):  # before 3
        return {}
    return {"run_outputs": entities.RunOutputs([entities.LoggedModelOutput(*output) for output in run.outputs])}
