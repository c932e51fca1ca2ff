"""Journal lines about more than numbers -> values: nested runs, models, what went in and came out, and how it ended.

The store of MLflow's in the container writes them (`inside/repro_mlflow_store.py`). Ids are the container's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from repro.experiment import Value

RUN_ID, MODEL_ID = re.compile("[0-9a-f]{32}"), re.compile("m-[0-9a-f]{32}")
RUN_STATUS = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
MODEL_STATUS = ("PENDING", "READY", "FAILED")
ROOT = ""  # stands for the run itself


class Nested(Value, frozen=True, kw_only=True):
    """A run begins below another. `at` is milliseconds since the epoch."""

    id: str
    parent: str
    name: str
    at: int
    tags: dict[str, str]


class Model(Value, frozen=True, kw_only=True):
    """A model begins to be logged."""

    id: str
    run: str
    name: str
    kind: str
    tags: dict[str, str]
    params: dict[str, str]


class ModelNotes(Value, frozen=True, kw_only=True):
    """More tags or parameters of a model."""

    model: str
    tags: dict[str, str]
    params: dict[str, str]


class DatasetInput(Value, frozen=True, kw_only=True):
    """A run uses data; `tags` have the context that MLflow shows."""

    run: str
    name: str
    digest: str
    source_type: str
    source: str
    schema: str
    profile: str
    context: str


class ModelInput(Value, frozen=True, kw_only=True):
    """A run uses a model."""

    run: str
    model: str


class ModelOutput(Value, frozen=True, kw_only=True):
    """A run has made a model."""

    run: str
    model: str
    step: int


class RunStatus(Value, frozen=True, kw_only=True):
    """A nested run ended, or goes on. `at` is milliseconds since the epoch; None: not said."""

    run: str
    status: str
    at: int | None


class ModelStatus(Value, frozen=True, kw_only=True):
    """All of a model is there, or it failed."""

    model: str
    status: str


class Registration(Value, frozen=True, kw_only=True):
    """A model should be registered, which is for the host's user to do. `model` is "" for files of a run alone."""

    run: str
    name: str
    model: str
    source: str


class Child(Value, frozen=True, kw_only=True):
    """A nested run or a model in MLflow: its id there and its status. "" is the id of one that is not there."""

    id: str
    status: str


Part = Nested | Model | ModelNotes | DatasetInput | ModelInput | ModelOutput | RunStatus | ModelStatus | Registration


def part(event: dict[str, Any], root: str) -> Part | None:
    """What an event line says; None when nothing that we know. `root` is the id of the run itself.

    Raises:
        LookupError: a member is missing.
        TypeError: a member is of another type.
        ValueError: a member is out of its range.
    """
    read = READERS.get(event.get("t"))
    if event.get("t") in ("tag", "p") and "m" in event:
        read = _model_notes
    return read(event, root) if read else None


def run_id(event: dict[str, Any], root: str) -> str:
    """Whose line it is: a nested run's id, or ROOT.

    Raises:
        ValueError: neither.
    """
    named = event.get("r")
    return ROOT if named is None or named == root else _id(named, RUN_ID)


def _id(value: Any, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(value)
    return value


def _nested(event: dict[str, Any], _root: str) -> Nested:
    parent = event.get("parent")
    return Nested(
        id=_id(event["r"], RUN_ID),
        parent=_id(parent, RUN_ID) if isinstance(parent, str) and RUN_ID.fullmatch(parent) else ROOT,
        name=str(event["k"]),
        at=_whole(event["ts"]),
        tags=_texts(event.get("tags")),
    )


def _model(event: dict[str, Any], root: str) -> Model:
    return Model(
        id=_id(event["m"], MODEL_ID),
        run=run_id(event, root),
        name=str(event["k"]),
        kind=str(event.get("type") or ""),
        tags=_texts(event.get("tags")),
        params=_texts(event.get("params")),
    )


def _model_notes(event: dict[str, Any], _root: str) -> ModelNotes:
    note = {str(event["k"]): _text(event["v"])}
    tag = event["t"] == "tag"
    return ModelNotes(model=_id(event["m"], MODEL_ID), tags=note if tag else {}, params={} if tag else note)


def _dataset(event: dict[str, Any], root: str) -> DatasetInput:
    texts = {name: _text(value) for name, value in event["ds"].items() if value is not None}
    parts = {name: texts.get(name, "") for name in ("name", "digest", "source_type", "source", "schema", "profile")}
    return DatasetInput(run=run_id(event, root), context=_texts(event.get("tags")).get(CONTEXT, ""), **parts)


def _used(event: dict[str, Any], root: str) -> ModelInput:
    return ModelInput(run=run_id(event, root), model=_id(event["m"], MODEL_ID))


def _output(event: dict[str, Any], root: str) -> ModelOutput:
    return ModelOutput(run=run_id(event, root), model=_id(event["m"], MODEL_ID), step=_whole(event.get("s", 0)))


def _end(event: dict[str, Any], root: str) -> Part:
    status, at = event["v"], event.get("ts")
    if "m" in event:
        return ModelStatus(model=_id(event["m"], MODEL_ID), status=_one_of(status, MODEL_STATUS))
    return RunStatus(run=run_id(event, root), status=_one_of(status, RUN_STATUS), at=None if at is None else _whole(at))


def _registration(event: dict[str, Any], root: str) -> Registration:
    source = str(event["v"])
    named = str(event.get("m") or source.removeprefix("models:/"))
    model = named if MODEL_ID.fullmatch(named) else ""
    return Registration(run=run_id(event, root), name=str(event["k"]), model=model, source=source)


def _one_of(word: Any, known: tuple[str, ...]) -> str:
    if word not in known:
        raise ValueError(word)
    return str(word)


def _whole(value: Any) -> int:
    number = int(value)
    if abs(number) >= 1 << 62:
        raise ValueError(value)
    return number


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _texts(value: Any) -> dict[str, str]:
    return {str(key): _text(each) for key, each in (value or {}).items()}


CONTEXT = "mlflow.data.context"
READERS: dict[Any, Callable[[dict[str, Any], str], Part]] = {
    "run": _nested,
    "model": _model,
    "input": _dataset,
    "used": _used,
    "output": _output,
    "end": _end,
    "register": _registration,
}
