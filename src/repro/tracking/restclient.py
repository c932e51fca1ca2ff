"""The tracking client for http(s) servers: MLflow's REST interface, spoken directly; nothing of MLflow is imported."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import msgspec

from repro.tracking.client import (
    METRICS,
    OTHERS,
    Artifact,
    TrackedExperiment,
    TrackedModel,
    TrackedRun,
    TrackingClient,
    TrackingError,
    UnreachableError,
    batches,
)
from repro.tracking.journal import Metric, Note
from repro.tracking.view import Dataset

if TYPE_CHECKING:
    from requests import Response, Session

API = "/api/2.0/mlflow/"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
CONNECT_SECONDS, ANSWER_SECONDS = 2.0, 5.0
WORK_SECONDS = 30.0  # for a thousand points, to or from a busy server
WORK = ("runs/log-batch", "runs/create", "metrics/get-history", "logged-models")
UPLOAD_SECONDS, UPLOAD_RATE = 60.0, 1e6  # a server may write a whole file elsewhere before it answers; bytes/second
MODELS = "logged-models"
MODEL_WORDS = {"LOGGED_MODEL_PENDING": "PENDING", "LOGGED_MODEL_READY": "READY", "LOGGED_MODEL_UPLOAD_FAILED": "FAILED"}
PAGE = 25_000  # points
ESCAPED = re.compile("%[0-9a-fA-F]{2}")  # servers decode a path more than once
SHOWN = 300  # characters of an answer that is none of MLflow's
WORDS = {math.inf: "Infinity", -math.inf: "-Infinity"}  # for what JSON has no numbers


def speaks(uri: str, environ: Mapping[str, str]) -> bool:
    """Whether a store is a server that needs nothing but what this client knows."""
    special = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")  # MLflow's plugins sign the requests
    return uri.startswith(("http://", "https://")) and not any(environ.get(name) for name in special)


class RestClient:
    """An MLflow server. Credentials and certificates are found where MLflow's own client finds them."""

    def __init__(self, uri: str, environ: Mapping[str, str] = os.environ) -> None:
        import requests

        self._uri = uri.rstrip("/")
        self._session: Session = requests.Session()
        self._session.auth = _credentials(environ)
        self._verify = _verify(environ)
        self._session.cert = environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")
        if workspace := environ.get("MLFLOW_WORKSPACE"):
            self._session.headers["X-MLFLOW-WORKSPACE"] = workspace
        self._sdk: TrackingClient | None = None

    def experiment(self, name: str) -> TrackedExperiment | None:
        """The experiment of this name, deleted ones included."""
        found = self._find("experiments/get-by-name", experiment_name=name)
        return _experiment(found["experiment"]) if found else None

    def experiments(self, limit: int) -> list[TrackedExperiment]:
        """The active experiments, at most `limit`."""
        answer = self._post("experiments/search", {"max_results": limit})
        return [_experiment(found) for found in answer.get("experiments", [])]

    def create_experiment(self, name: str, location: str | None, tags: Mapping[str, str]) -> str:
        """The id of a new experiment."""
        wanted: dict[str, Any] = {"name": name, "tags": _pairs(tags)}
        if location:
            wanted["artifact_location"] = location
        return str(self._post("experiments/create", wanted)["experiment_id"])

    def tag_experiment(self, experiment: str, key: str, value: str) -> None:
        """Set a tag of an experiment."""
        self._post("experiments/set-experiment-tag", {"experiment_id": experiment, "key": key, "value": value})

    def create_run(self, experiment: str, *, name: str, started: int, tags: Mapping[str, str]) -> TrackedRun:
        """A new run."""
        wanted = {"experiment_id": experiment, "run_name": name, "start_time": started, "tags": _pairs(tags)}
        if user := tags.get("mlflow.user"):
            wanted["user_id"] = user
        return _run(self._post("runs/create", wanted)["run"])

    def run(self, run: str) -> TrackedRun | None:
        """The run of this id, a deleted one too; None when there is none."""
        found = self._find("runs/get", run_id=run)
        return _run(found["run"]) if found else None

    def find_runs(
        self, experiments: Sequence[str], query: str, *, limit: int, deleted: bool = False
    ) -> list[TrackedRun]:
        """Runs by MLflow's query language, newest first."""
        wanted = {
            "experiment_ids": list(experiments),
            "filter": query,
            "run_view_type": "ALL" if deleted else "ACTIVE_ONLY",
            "max_results": limit,
        }
        return [_run(found) for found in self._post("runs/search", wanted).get("runs", [])]

    def log(
        self, run: str, *, metrics: Sequence[Metric] = (), params: Sequence[Note] = (), tags: Sequence[Note] = ()
    ) -> None:
        """Log any number of each."""
        for points in batches(metrics, METRICS):
            self._post("runs/log-batch", {"run_id": run, "metrics": [_point(point) for point in points]})
        for notes in batches(params, OTHERS):
            self._post("runs/log-batch", {"run_id": run, "params": notes})
        for notes in batches(tags, OTHERS):
            self._post("runs/log-batch", {"run_id": run, "tags": notes})

    def history(self, run: str, key: str) -> Iterator[Metric]:
        """Every point of a metric."""
        asked = {"run_id": run, "metric_key": key, "max_results": str(PAGE)}
        while True:
            answer = self._get("metrics/get-history", **asked)
            for point in answer.get("metrics", []):
                value = float(point.get("value", 0.0))
                when, step = int(point.get("timestamp", 0)), int(point.get("step", 0))
                yield Metric(key=key, value=value, timestamp=when, step=step)
            if not answer.get("next_page_token"):
                return
            asked["page_token"] = answer["next_page_token"]

    def log_dataset(self, run: str, dataset: Dataset) -> None:
        """Note an input of a run."""
        names = ("name", "digest", "source_type", "source", "schema", "profile")
        what = {name: getattr(dataset, name) for name in names if getattr(dataset, name)}
        tags = _pairs({"mlflow.data.context": dataset.context} if dataset.context else {})
        self._post("runs/log-inputs", {"run_id": run, "datasets": [{"dataset": what, "tags": tags}]})

    def terminate(self, run: str, status: str, ended: int) -> None:
        """Say how and when a run ended."""
        self._post("runs/update", {"run_id": run, "status": status, "end_time": ended})

    def delete_run(self, run: str) -> None:
        """Mark a run as deleted."""
        self._post("runs/delete", {"run_id": run})

    def artifacts(self, place: TrackedRun | TrackedModel, path: str = "") -> list[Artifact]:
        """What is in a folder of a run's or a model's artifacts."""
        if isinstance(place, TrackedModel):
            below = {"artifact_directory_path": path} if path else {}
            answer = self._get(f"{MODELS}/{place.id}/artifacts/directories", **below)
        else:
            answer = self._get("artifacts/list", run_id=place.id, **({"path": path} if path else {}))
        return [
            Artifact(
                path=entry["path"],
                folder=bool(entry.get("is_dir")),
                size=int(entry["file_size"]) if "file_size" in entry else None,
            )
            for entry in answer.get("files", [])
        ]

    def upload(self, place: TrackedRun | TrackedModel, file: Path, name: str, sent: Callable[[int], None]) -> None:
        """Store a file as an artifact: through the server where it offers that, else with MLflow's own client."""
        proxy = self._proxy(place.artifact_uri)
        if proxy is None:
            self._with_sdk().upload(place, file, name, sent)
            return
        if ESCAPED.search(name):
            raise TrackingError("the server would take its name for another one", code="INVALID_PARAMETER_VALUE")
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            body = _Body(stream, size, sent) if size else b""  # requests would send an empty stream in chunks
            self._ask(
                "PUT",
                f"{proxy}/{quote(os.fsencode(name), safe='/')}",
                data=body,
                headers={"Content-Type": "application/octet-stream"},
                timeout=(CONNECT_SECONDS, UPLOAD_SECONDS + size / UPLOAD_RATE),
            )

    def create_model(self, experiment: str, *, name: str, run: str, kind: str, tags: Mapping[str, str]) -> TrackedModel:
        """A new logged model."""
        wanted = {"experiment_id": experiment, "name": name, "source_run_id": run, "tags": _pairs(tags)}
        return _model(self._post(MODELS, {**wanted, **({"model_type": kind} if kind else {})})["model"])

    def model(self, model: str) -> TrackedModel:
        """The logged model of this id."""
        return _model(self._get(f"{MODELS}/{model}")["model"])

    def find_models(self, experiment: str, query: str) -> list[TrackedModel]:
        """Logged models by MLflow's query language."""
        found: list[TrackedModel] = []
        asked: dict[str, Any] = {"experiment_ids": [experiment], "filter": query}
        while True:
            answer = self._post(f"{MODELS}/search", asked)
            found += map(_model, answer.get("models", []))
            if not answer.get("next_page_token"):
                return found
            asked["page_token"] = answer["next_page_token"]

    def note_model(self, model: str, *, tags: Mapping[str, str], params: Mapping[str, str]) -> None:
        """Tag a logged model, and add parameters that it does not have yet."""
        if tags:
            self._send("PATCH", f"{MODELS}/{model}/tags", {"model_id": model, "tags": _pairs(tags)})
        missing = {key: value for key, value in params.items() if key not in self.model(model).params} if params else {}
        if missing:
            self._post(f"{MODELS}/{model}/params", {"model_id": model, "params": _pairs(missing)})

    def finish_model(self, model: str, status: str) -> None:
        """Say that all of a logged model is there, or that it failed."""
        word = {word: name for name, word in MODEL_WORDS.items()}[status]
        self._send("PATCH", f"{MODELS}/{model}", {"model_id": model, "status": word})

    def log_model_input(self, run: str, model: str) -> None:
        """Note that a run uses a logged model."""
        self._post("runs/log-inputs", {"run_id": run, "models": [{"model_id": model}]})

    def log_model_output(self, run: str, model: str, step: int) -> None:
        """Note that a run has made a logged model."""
        self._post("runs/outputs", {"run_id": run, "models": [{"model_id": model, "step": step}]})

    def _proxy(self, artifact_uri: str) -> str | None:
        """Where the server itself takes artifacts; None when they go elsewhere (s3:, say)."""
        parts, server = urlsplit(artifact_uri), urlsplit(self._uri)
        if parts.scheme == "mlflow-artifacts":
            path = parts.path.lstrip("/")
            prefix = server.path.rstrip("/")
            return f"{server.scheme}://{parts.netloc or server.netloc}{prefix}{PROXY}/{quote(path)}".rstrip("/")
        return artifact_uri.rstrip("/") if parts.scheme in ("http", "https") else None

    def _with_sdk(self) -> TrackingClient:
        if self._sdk is None:
            from repro.tracking.sdkclient import SdkClient

            self._sdk = SdkClient(self._uri)
        return self._sdk

    def _find(self, what: str, **asked: str) -> Any:
        try:
            return self._get(what, **asked)
        except TrackingError as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _get(self, what: str, **asked: str) -> Any:
        return _json(self._ask("GET", f"{self._uri}{API}{what}", params=asked, timeout=_patience(what)))

    def _post(self, what: str, wanted: Any) -> Any:
        return self._send("POST", what, wanted)

    def _send(self, method: str, what: str, wanted: Any) -> Any:
        content = msgspec.json.encode(wanted)
        headers = {"Content-Type": "application/json"}
        address = f"{self._uri}{API}{what}"
        return _json(self._ask(method, address, data=content, headers=headers, timeout=_patience(what)))

    def _ask(self, method: str, address: str, **how: Any) -> Response:
        from requests import RequestException

        how["verify"] = self._verify  # the session's own would yield to REQUESTS_CA_BUNDLE
        try:  # a redirection would turn POST into GET, and send a password elsewhere
            answer = self._session.request(method, address, allow_redirects=False, **how)
        except RequestException as error:
            raise UnreachableError(_cause(error)) from error
        if answer.ok and not answer.is_redirect:
            return answer
        raise _refusal(answer)


def _patience(what: str) -> tuple[float, float]:
    return CONNECT_SECONDS, WORK_SECONDS if what in WORK else ANSWER_SECONDS


class _Body:
    """A file on its way, of the length that it had at first; requests streams what has a length and `read`."""

    def __init__(self, stream: Any, size: int, sent: Callable[[int], None]) -> None:
        self.stream, self.size, self.left, self.sent = stream, size, size, sent

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(1 << 16), b"")

    def read(self, count: int = -1) -> bytes:
        part: bytes = self.stream.read(self.left if count < 0 else min(count, self.left))
        self.left -= len(part)
        self.sent(len(part))
        return part


def _credentials(environ: Mapping[str, str]) -> Callable[[Any], Any] | None:
    """Who we are, as MLflow's own client would say it; None: whoever ~/.netrc says."""
    import base64

    user, password = (environ.get(f"MLFLOW_TRACKING_{name}") or _noted(name) for name in ("USERNAME", "PASSWORD"))
    token = environ.get("MLFLOW_TRACKING_TOKEN")
    if user and password:
        said = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    elif token:
        said = f"Bearer {token}"
    else:
        return None

    def sign(request: Any) -> Any:
        request.headers["Authorization"] = said
        return request

    return sign


def _noted(name: str) -> str:
    """A line of ~/.mlflow/credentials."""
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, RuntimeError, configparser.Error, UnicodeDecodeError):
        parser.read(Path.home() / ".mlflow" / "credentials")
    return parser.get("mlflow", f"mlflow_tracking_{name.lower()}", fallback="")


def _verify(environ: Mapping[str, str]) -> bool | str:
    if environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        return False
    return environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True


def _cause(error: BaseException) -> str:
    """The innermost words of a failure: those of the system, not of three libraries."""
    inner: BaseException = error
    while True:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        if "timed out" in str(inner):
            return "timed out"
        nested = [each for each in (getattr(inner, "reason", None), *inner.args) if isinstance(each, BaseException)]
        below = next(iter(nested), inner.__cause__ or inner.__context__)
        if below is None:
            return str(inner)
        inner = below


def _refusal(answer: Response) -> TrackingError:
    if answer.is_redirect:
        return TrackingError(
            f"it sends us on to {answer.headers.get('Location')}: name that address", status=answer.status_code
        )
    try:
        said = answer.json()
        return TrackingError(
            str(said.get("message") or said), code=str(said.get("error_code", "")), status=answer.status_code
        )
    except (ValueError, AttributeError):
        text = " ".join(answer.text.split())[:SHOWN]
        return TrackingError(f"HTTP {answer.status_code}: {text or answer.reason}", status=answer.status_code)


def _json(answer: Response) -> Any:
    try:
        return msgspec.json.decode(answer.content)
    except msgspec.DecodeError as error:
        text = " ".join(answer.text.split())[:SHOWN]
        raise TrackingError(f"it answers, but not as MLflow does: {text}", status=answer.status_code) from error


def _pairs(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _point(point: Metric) -> Metric | dict[str, Any]:
    if math.isfinite(point.value):
        return point
    word = "NaN" if math.isnan(point.value) else WORDS[point.value]
    return {**msgspec.structs.asdict(point), "value": word}


def _experiment(found: Mapping[str, Any]) -> TrackedExperiment:
    active = found.get("lifecycle_stage", "active") == "active"
    return TrackedExperiment(id=str(found["experiment_id"]), name=found["name"], active=active)


def _run(found: Mapping[str, Any]) -> TrackedRun:
    info, data = found["info"], found.get("data", {})
    inputs = found.get("inputs", {}).get("dataset_inputs", [])
    return TrackedRun(
        id=info["run_id"],
        experiment_id=str(info["experiment_id"]),
        active=info.get("lifecycle_stage", "active") == "active",
        status=info.get("status", ""),
        started=int(info.get("start_time", 0)),
        ended=int(info["end_time"]) if info.get("end_time") else None,
        artifact_uri=info.get("artifact_uri", ""),
        metrics={each["key"]: float(each.get("value", 0.0)) for each in data.get("metrics", [])},
        params={each["key"]: each.get("value", "") for each in data.get("params", [])},
        tags={each["key"]: each.get("value", "") for each in data.get("tags", [])},
        datasets=tuple((each["dataset"]["name"], each["dataset"]["digest"]) for each in inputs),
    )


def _model(found: Mapping[str, Any]) -> TrackedModel:
    info, params = found["info"], found.get("data", {}).get("params", [])
    return TrackedModel(
        id=info["model_id"],
        artifact_uri=info["artifact_uri"],
        status=MODEL_WORDS.get(info.get("status", ""), "PENDING"),
        tags={each["key"]: each.get("value", "") for each in info.get("tags", [])},
        params={each["key"]: each.get("value", "") for each in params},
    )
