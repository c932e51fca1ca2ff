"""What hostile lines, lost answers and people in MLflow's page do to nested runs, models and files; a real store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from repro.project import Project
from repro.tracking import store
from repro.tracking.client import TrackedRun, TrackingError, UnreachableError
from repro.tracking.publication import Publication
from repro.tracking.sdkclient import SdkClient
from repro.tracking.story import Child
from tests.test_tracking import Run

pytestmark = pytest.mark.tracking
PART, MODEL = "a" * 32, "m-" + "b" * 32


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


class Line:
    """The way to a real store, on which `before` or `after` a call of some name something can happen."""

    def __init__(self, uri: str) -> None:
        self.real = SdkClient(uri)
        self.before: dict[str, Callable[[], None]] = {}
        self.after: dict[str, Callable[[], None]] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.before.get(name, bool)()
            answer = getattr(self.real, name)(*arguments, **named)
            self.after.get(name, bool)()
            return answer

        return call


class Published:
    """A run, and its publication in this process."""

    def __init__(self, project: Project, number: int = 1) -> None:
        self.run = Run(project, run_id(number))
        store.prepare(self.run.uri)
        self.line = Line(self.run.uri)
        self.again()

    def again(self) -> None:
        """As another process: with what tracking.json says."""
        self.publication = Publication(self.run.folder, self.run.uri, self.line)

    def write(self, **event: Any) -> None:
        self.run.write(json.dumps(event) + "\n")

    def advance(self) -> bool:
        return self.publication.advance(last=True)

    def ship(self) -> None:
        self.publication.ship(lambda done, total: None)

    @property
    def state(self) -> Any:
        return self.publication.state

    @property
    def shown(self) -> TrackedRun:
        found = self.line.real.run(self.state.run)
        assert found is not None
        return found

    def below(self, own: str = PART) -> TrackedRun:
        found = self.line.real.run(self.state.below[own].id)
        assert found is not None
        return found

    def nested(self) -> list[TrackedRun]:
        query = f"tags.`nested` LIKE '{self.run.id}/%'"
        return self.line.real.find_runs([self.state.experiment_id], query, limit=100, deleted=True)


def run_id(number: int) -> str:
    return f"20260102-030405-toy-{number:06}"


def test_a_nested_run_cannot_pretend_to_be_another_run_by_a_tag_that_is_cleaned(project: Project) -> None:
    hostile = Published(project, 1)
    tags = {"/run": run_id(2), "mlflow.parentRunId/": "f" * 32, "mine": "yes"}
    hostile.write(t="run", r=PART, k="part", ts=1, parent=hostile.run.id, tags=tags)
    hostile.write(t="tag", r=PART, k="//run", v=run_id(2))
    hostile.write(t="tag", r=PART, k="nested/", v="other/x")
    hostile.advance()
    shown = hostile.below().tags
    assert (shown.get("run"), shown["nested"], shown["mine"]) == (None, f"{hostile.run.id}/{PART}", "yes")
    assert shown["mlflow.parentRunId"] == hostile.state.run


def test_a_run_is_never_taken_for_a_nested_one_that_has_its_name(project: Project) -> None:
    hostile = Published(project, 1)
    hostile.write(t="run", r=PART, k="part", ts=1, parent=hostile.run.id, tags={})
    hostile.advance()
    own = hostile.below().id
    hostile.line.real._client.set_tag(own, "run", run_id(2))  # as before it was forbidden
    victim = Published(project, 2)
    victim.advance()
    assert victim.state.run != own
    known = victim.state.run
    victim.run.folder.tracking.unlink()
    victim.again()
    victim.advance()
    assert victim.state.run == known


def lose() -> None:
    raise UnreachableError("timed out")


def once(line: dict[str, Callable[[], None]], name: str) -> None:
    """The next call of this name fails, once."""

    def fail() -> None:
        del line[name]
        lose()

    line[name] = fail


def test_a_lost_answer_to_the_making_of_a_nested_run_makes_no_second_one(project: Project) -> None:
    it = Published(project)
    it.write(t="run", r="c" * 32, k="first", ts=1, parent=it.run.id, tags={})
    it.advance()  # what MLflow has is known now
    it.write(t="run", r=PART, k="part", ts=1, parent=it.run.id, tags={})
    it.write(t="m", r=PART, k="a", v=1, ts=1, s=1)
    once(it.line.after, "create_run")
    with pytest.raises(UnreachableError):
        it.advance()
    it.advance()
    assert len(it.nested()) == 2
    assert it.below().metrics == {"a": 1.0}


@pytest.mark.parametrize("call", ["find_runs", "find_models"])
def test_a_lost_answer_to_what_is_there_makes_nothing_again(project: Project, call: str) -> None:
    it = Published(project)
    it.write(t="run", r=PART, k="part", ts=1, parent=it.run.id, tags={})
    it.write(t="model", m=MODEL, k="model", ts=1, tags={}, params={})
    it.advance()
    known = json.loads(it.run.folder.tracking.read_text())
    it.run.folder.tracking.write_text(json.dumps({**known, "below": {}, "positions": {}}))  # a crash before the save
    it.again()
    once(it.line.before, call)
    with pytest.raises(UnreachableError):
        it.advance()
    it.advance()
    models = it.line.real.find_models(it.state.experiment_id, f"tags.`nested` LIKE '{it.run.id}/%'")
    assert (len(it.nested()), len(models)) == (1, 1)


@pytest.mark.parametrize("how", [{"status": 404}, {"code": "ENDPOINT_NOT_FOUND"}])
def test_a_server_that_knows_no_models_has_nested_runs_all_the_same(project: Project, how: dict[str, Any]) -> None:
    it = Published(project)

    def unknown() -> None:
        raise TrackingError("Not Found", **how)

    it.line.before["find_models"] = unknown
    it.write(t="run", r=PART, k="part", ts=1, parent=it.run.id, tags={})
    it.advance()
    assert len(it.nested()) == 1


def logged_file(it: Published, name: str) -> None:
    path = it.run.folder.outputs / "mlflow" / name
    path.parent.mkdir(parents=True)
    path.write_text("x")


def below(place: str) -> dict[str, str]:
    """Files by name, with what is in them."""
    top = Path(unquote(urlsplit(place).path))
    return {path.relative_to(top).as_posix(): path.read_text() for path in top.rglob("*") if path.is_file()}


def test_a_nested_run_that_was_deleted_does_not_keep_the_run_from_its_end(project: Project) -> None:
    it = Published(project)
    it.write(t="run", r=PART, k="part", ts=1, parent=it.run.id, tags={})
    it.write(t="run", r="c" * 32, k="other", ts=1, parent=it.run.id, tags={})
    logged_file(it, f"runs/{PART}/artifacts/record.json")
    it.advance()
    gone = it.below().id
    it.line.real.delete_run(gone)
    it.run.end()
    assert it.advance()
    it.ship()
    assert (it.shown.status, it.state.ended, it.below("c" * 32).status) == ("FINISHED", True, "FINISHED")
    assert [remark for remark in it.state.remarks if remark.startswith(f"nested run {gone} was not ended: ")]
    shown = below(it.shown.artifact_uri)
    assert shown[f"outputs/mlflow/runs/{PART}/artifacts/record.json"] == "x"
    assert shown["record.json"] == it.run.folder.record.read_text()


@pytest.mark.parametrize("status", ["READY", None])
def test_a_model_that_was_deleted_does_not_keep_the_artifacts_away(project: Project, status: str | None) -> None:
    it = Published(project)
    it.write(t="model", m=MODEL, k="model", ts=1, tags={}, params={})
    if status:
        it.write(t="end", m=MODEL, v=status, ts=2)
    logged_file(it, f"models/{MODEL}/artifacts/weights")
    it.advance()
    it.line.real._client.delete_logged_model(it.state.below[MODEL].id)
    it.run.end()
    assert it.advance()
    it.ship()
    assert (it.shown.status, it.state.artifacts) == ("FINISHED", True)
    assert below(it.shown.artifact_uri)[f"outputs/mlflow/models/{MODEL}/artifacts/weights"] == "x"


def test_a_nested_run_that_was_deleted_after_its_end_has_its_files_with_the_run(project: Project) -> None:
    it = Published(project)
    it.write(t="run", r=PART, k="part", ts=1, parent=it.run.id, tags={})
    it.write(t="end", r=PART, v="FINISHED", ts=2)
    logged_file(it, f"runs/{PART}/artifacts/notes")
    it.advance()
    it.line.real.delete_run(it.below().id)
    it.run.end()
    assert it.advance()
    it.ship()
    assert below(it.shown.artifact_uri)[f"outputs/mlflow/runs/{PART}/artifacts/notes"] == "x"


TAKEN = ["outputs", "logs", "inputs", "config.yaml/x", "record.json/deep/x", "uncommitted.diff.txt", "config.yaml"]


@pytest.mark.parametrize("name", TAKEN)
def test_an_artifact_with_a_name_of_ours_is_among_the_outputs_and_costs_no_other(project: Project, name: str) -> None:
    it = Published(project)
    logged_file(it, f"artifacts/{name}")
    it.run.end()
    assert it.advance()
    it.ship()
    shown = below(it.shown.artifact_uri)
    assert shown[f"outputs/mlflow/artifacts/{name}"] == "x"
    assert shown["config.yaml"] == it.run.folder.config_yaml.read_text()
    assert {"outputs/model/weights.npz", "logs/output.log"} <= set(shown)
    assert not it.state.oddities


def test_a_file_in_whose_place_is_something_else_is_told_and_the_others_arrive(project: Project) -> None:
    it = Published(project)
    logged_file(it, "artifacts/notes/a")
    (it.run.folder.outputs / "mlflow" / "artifacts" / "plot").write_text("x")
    it.advance()
    top = Path(unquote(urlsplit(it.shown.artifact_uri).path))
    (top / "plot" / "deep").mkdir(parents=True)
    (top / "notes").write_text("somebody's")
    it.run.end()
    assert it.advance()
    it.ship()
    assert it.state.oddities["artifact"] == ("notes/a (Not a directory)", "plot (Is a directory)")
    assert (top / "outputs" / "model" / "weights.npz").read_bytes() == b"weights"
    assert it.state.artifacts


def test_ids_in_a_text_are_translated_once_each_however_many_there_are(project: Project) -> None:
    it = Published(project)
    it.advance()
    theirs = [f"{number:032x}" for number in range(10_000)]
    it.publication.nested.known = {own: Child(id=then, status="FINISHED") for own, then in pairwise(theirs)}
    begun = time.thread_time()
    text = it.publication.nested.translate(" ".join(theirs * 3))
    assert time.thread_time() - begun < 2  # of this thread's own work, which grew with the square: 10 s
    assert text == " ".join([*theirs[1:], theirs[-1]] * 3)  # the last one is unknown, and stays
