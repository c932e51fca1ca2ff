"""Runs on their way into MLflow: real stores, a real publisher process, a real server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from filelock import FileLock

from repro.errors import BadInputError, EnvironmentUnfitError
from repro.project import Project
from repro.record import (
    Code,
    DatasetUsed,
    End,
    Ended,
    FileUsed,
    Host,
    ImageUsed,
    Planned,
    Record,
    RunFolder,
    Started,
)
from repro.running import keeping
from repro.tracking import store, tracking, view
from repro.tracking.publication import Publication
from repro.tracking.publisher import POLL, Task, connect
from repro.tracking.tracking import Follower, Order
from tests.tracking_servers import free_port, server, until

DEFAULT = "default"
CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
CONFIG = {
    "name": "toy",
    "command": ["python", "experiments/toy.py"],
    "params": {"optimizer": {"lr": 0.1}, "layers": [1, 2], "db@x": "y", "none": None, "empty": {}},
    "seed": 3,
    "description": "A toy.",
}


def record(project: Project, run: str, uri: str | None) -> Record:
    """A run that has begun, in all its parts."""
    sha = "ab" * 32
    planned = Planned(
        run=run,
        name="toy",
        created=CREATED,
        repro="0.1.0",
        project=str(project.root),
        argv=("run", "experiment=toy"),
        overrides=("experiment=toy",),
        command=("python", "experiments/toy.py", "--fast"),
        config=CONFIG,
        code=Code(
            commit="c" * 40,
            tree="d" * 40,
            head="e" * 40,
            branch="main",
            remote="https://github.com/someone/toys.git",
            dirty=True,
        ),
        image=ImageUsed(
            variant="debian",
            tag="my-tf:0123456789abcdef",
            id="sha256:" + "1" * 64,
            spec="2" * 64,
            base="debian:12",
            base_resolved="debian@sha256:" + "3" * 64,
            platform="linux/amd64",
        ),
        data=(DatasetUsed(name="mnist", digest=sha, files=(FileUsed(path="a", size=3, sha256=sha),), folder="/d"),),
        host=Host(name="box", user="me", system="linux/amd64", cpus=2, memory=1 << 30, engine="Docker 20.10"),
        user="1000:1000",
        env={},
        gpus_asked="all or none",
        network="none",
        tracking_uri=uri,
        tracking_experiment="toys & more",
    )
    return Record(planned=planned, started=Started(at=CREATED, container="f" * 64, gpus="none"))


def ended(record: Record, end: End, exit_code: int | None, reason: str) -> Record:
    over = Ended(at=CREATED + timedelta(seconds=9), end=end, exit_code=exit_code, reason=reason, outputs=())
    return msgspec.structs.replace(record, ended=over)


tracked = pytest.mark.tracking


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A folder with an awkward name; tracking needs no more of a project."""
    root = tmp_path / "pro ject é"
    root.mkdir()
    return Project(root)


@pytest.fixture(scope="session")
def follower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Follower]:
    """One publisher for most tests: it takes seconds to start."""
    follower = Follower.start(Project(tmp_path_factory.mktemp("publisher")), "sqlite:///")
    yield follower
    follower.close()
    follower.process.wait(30)


class Run:
    """A run folder, written by hand as the runner and an experiment would."""

    def __init__(self, project: Project, name: str = "20260102-030405-toy-000001", uri: str | None = DEFAULT) -> None:
        self.project, self.id = project, name
        self.folder = RunFolder(project.runs / name)
        for path in (self.folder.outputs, self.folder.journal, self.folder.logs):
            path.mkdir(parents=True)
        self.folder.config_yaml.write_text("name: toy\n")
        self.folder.output_log.write_text("hello\n")
        (self.folder.outputs / "model").mkdir()
        (self.folder.outputs / "model" / "weights.npz").write_bytes(b"weights")
        (self.folder.outputs / "passwd").symlink_to("/etc/passwd")
        self.uri = tracking.resolve_uri(None, project, {}) if uri == DEFAULT else uri or ""
        self.record = record(project, name, self.uri or None)
        self.folder.write(self.record)

    def log(self, first: int, count: int, file: str = "events-1.jsonl") -> None:
        points = (
            {"t": "m", "k": "loss", "v": 1 / (s + 1), "ts": 1000 + s, "s": s} for s in range(first, first + count)
        )
        self.write("".join(json.dumps(point) + "\n" for point in points), file)

    def write(self, text: str, file: str = "events-1.jsonl") -> None:
        with (self.folder.journal / file).open("ab", buffering=0) as journal_file:
            journal_file.write(text.encode())

    def end(self, end: End = End.FINISHED, exit_code: int | None = 0, reason: str = "exit code 0") -> None:
        self.record = ended(self.record, end, exit_code, reason)
        self.folder.write(self.record)


# where MLflow is: decided without it ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "environ", "expected"),
    [
        (None, {}, "sqlite:////p/mlflow.db"),
        (None, {"MLFLOW_TRACKING_URI": "http://server:5000/"}, "http://server:5000"),
        (None, {"MLFLOW_TRACKING_URI": "postgresql://me:secret@host:5432/db"}, "postgresql://me@host:5432/db"),
        (None, {"MLFLOW_TRACKING_URI": "databricks"}, "databricks"),
        ("sqlite:///other.db", {"MLFLOW_TRACKING_URI": "http://server:5000"}, "sqlite:////p/other.db"),
        ("sqlite:////srv/x.db", {}, "sqlite:////srv/x.db"),
        ("postgresql+psycopg2://host/db", {}, "postgresql+psycopg2://host/db"),
    ],
)
def test_the_store_is_the_configured_or_the_environments_or_the_projects(
    configured: str | None, environ: dict[str, str], expected: str
) -> None:
    assert tracking.resolve_uri(configured, Project(Path("/p")), environ) == expected


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("mlruns", "migrate-filestore"),
        ("file:///srv/mlruns", "migrate-filestore"),
        ("/srv/mlruns", "migrate-filestore"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("https://me:secret@server", "MLFLOW_TRACKING_URI"),
        ("postgresql://me:secret@server/db", "MLFLOW_TRACKING_URI"),
    ],
)
def test_a_store_that_cannot_be_is_refused(uri: str, says: str) -> None:
    with pytest.raises(BadInputError) as caught:
        tracking.resolve_uri(uri, Project(Path("/p")), {})
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_password_of_a_server_is_not_taken_from_its_address() -> None:
    with pytest.raises(BadInputError) as caught:
        tracking.resolve_uri(None, Project(Path("/p")), {"MLFLOW_TRACKING_URI": "https://me:secret@server"})
    assert "MLFLOW_TRACKING_PASSWORD" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_mlflow_gets_the_password_of_a_database_from_the_environment_alone() -> None:
    environ = {"MLFLOW_TRACKING_URI": "postgresql://me:secret@host/db"}
    recorded = tracking.resolve_uri(None, Project(Path("/p")), environ)
    assert store.with_password(recorded, environ) == environ["MLFLOW_TRACKING_URI"]
    assert store.with_password("postgresql://me@other/db", environ) == "postgresql://me@other/db"
    assert store.with_password(recorded, {}) == recorded


def test_without_mlflow_the_state_of_a_run_is_told(tmp_path: Path) -> None:
    run = Run(Project(tmp_path))
    assert tracking.status(run.folder) == f"not there yet; `repro sync {run.id}` catches up"
    assert tracking.status(Run(Project(tmp_path), "off", uri=None).folder) == "off"
    run.folder.tracking.write_text('{"uri": "http://server", "experiment_id": "7", "run": "abc"}')
    assert tracking.mlflow_run(run.folder) == "abc"
    assert tracking.status(run.folder) == "http://server/#/experiments/7/runs/abc?workflowType=machine_learning"
    run.end()
    assert tracking.status(run.folder).endswith(f"; still on its way: `repro sync {run.id}` makes sure")
    run.folder.tracking.write_text("torn")
    assert tracking.mlflow_run(run.folder) == ""


def test_what_the_user_runs_imports_no_mlflow() -> None:
    modules = "repro.tracking.tracking, repro.verbs.ui, repro.tracking.publication"
    code = f"import sys, {modules}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# unfit stores -----------------------------------------------------------------------------------------------------


@tracked
def test_a_missing_store_is_made_with_its_default_artifacts_beside_it(tmp_path: Path) -> None:
    store.prepare(f"sqlite:///{tmp_path}/new/mlflow.db")
    (location,) = sqlite(tmp_path / "new" / "mlflow.db", "SELECT artifact_location FROM experiments")
    assert location == (f"file://{tmp_path}/new/mlartifacts/0",)


@tracked
def test_without_a_cache_a_store_is_made_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = f"from repro.tracking import store; store.prepare('sqlite:///{tmp_path}/mlflow.db')"
    unwritable = {**os.environ, "REPRO_CACHE": str(tmp_path / "file" / "cache")}
    subprocess.run([sys.executable, "-c", code], env=unwritable, check=True, capture_output=True)
    store.prepare(f"sqlite:///{tmp_path}/mlflow.db")


@tracked
@pytest.mark.parametrize(
    ("version", "says"),
    [("0584bdc529eb", "mlflow db upgrade sqlite:///"), ("ffffffffffff", "made by an MLflow newer than")],
)
def test_a_store_of_another_version_is_told_apart(tmp_path: Path, version: str, says: str) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    store.prepare(uri)
    sqlite(tmp_path / "mlflow.db", f"UPDATE alembic_version SET version_num = '{version}'")
    with pytest.raises(EnvironmentUnfitError, match=says):
        store.prepare(uri)


@tracked
def test_what_is_no_store_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a database, and longer than the header that sqlite looks at, " * 3)
    sqlite(tmp_path / "other.db", "CREATE TABLE theirs (x)")
    for uri, says in {
        f"sqlite:///{tmp_path}/file": "file is not a database",
        f"sqlite:///{tmp_path}/other.db": "none of MLflow's",
        f"sqlite:///{tmp_path}/file/below.db": "Not a directory|File exists",
    }.items():
        with pytest.raises(EnvironmentUnfitError, match=says):
            store.prepare(uri)
    assert sqlite(tmp_path / "other.db", "SELECT name FROM sqlite_master") == [("theirs",)]


@tracked
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_store_is_told_apart(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    store.prepare(f"sqlite:///{tmp_path}/mlflow.db")
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(mount)], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        shutil.copy(tmp_path / "mlflow.db", mount)
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        with pytest.raises(EnvironmentUnfitError, match="read-only"):
            store.prepare(f"sqlite:///{mount}/mlflow.db")
        with pytest.raises(EnvironmentUnfitError, match="Read-only file system"):
            store.prepare(f"sqlite:///{mount}/other.db")
    finally:
        subprocess.run(["umount", str(mount)], check=True)


EIGHT = """
import os, sys, time, mlflow.store.tracking.sqlalchemy_store
from repro.tracking.publisher import Task
from repro.tracking.tracking import Order
ready, go = os.pipe()
children = []
for folder in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(ready, 1)
        task, reply = Task(Order(action="sync", folder=folder)), None
        while reply is None:
            reply = task.step(time.monotonic(), last=True)
        print(reply, flush=True)
        os._exit(0 if reply and reply.ok else 1)
    children.append(child)
os.close(go)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


def test_a_run_whose_files_are_on_their_way_holds_up_no_other(project: Project) -> None:
    run = Run(project, uri="http://localhost:1")
    task = Task(Order(action="follow", folder=str(run.folder.path)))
    task.publication = Publication(run.folder, run.uri, connect(run.uri))
    task.shipping = Future()  # which takes hours
    took = []
    for _time in range(20):
        begun = time.monotonic()
        assert task.step(begun, last=False, alone=False) is None
        took.append(time.monotonic() - begun)
    assert min(took) < POLL / 2  # of one at least, however busy the machine is
    task.shipping.set_result(None)
    reply = task.step(time.monotonic(), last=False, alone=False)
    assert reply is not None
    assert reply.ok


@tracked
def test_eight_processes_at_once_make_one_good_store(project: Project) -> None:
    made = [Run(project, f"20260102-030405-toy-00000{number}") for number in range(8)]
    names = [f"part{number:02d}" for number in range(30)]  # all want to be the first to log each of them
    for run in made:
        (one,) = run.record.planned.data
        data = tuple(msgspec.structs.replace(one, name=name) for name in names)
        run.record = msgspec.structs.replace(run.record, planned=msgspec.structs.replace(run.record.planned, data=data))
        run.log(0, 200)
        run.end()
    program = [sys.executable, "-c", EIGHT, *(str(run.folder.path) for run in made)]
    done = subprocess.run(program, check=False, capture_output=True, text=True, cwd=project.root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(run.data.tags["run"] for run in runs(made[0].uri)) == [run.id for run in made]
    for run in made:
        assert points(run) == expected(200)
    for run in runs(made[0].uri):
        assert sorted(each.dataset.name for each in run.inputs.dataset_inputs) == names


# runs ---------------------------------------------------------------------------------------------------------------


@tracked
def test_a_point_is_readable_while_the_run_goes_on(project: Project, follower: Follower) -> None:
    """How soon is what the benchmark measures."""
    run = Run(project)
    follower.follow(run.folder)
    until(lambda: tracking.mlflow_run(run.folder))
    for step in range(5):
        run.log(step, 1)
        until(lambda step=step: len(points(run)) == step + 1)
        assert the(run).info.status == "RUNNING"
    run.end()
    (reply,) = follower.wait(10, run.folder)
    assert (reply.ok, reply.run, reply.mlflow_run, reply.remarks) == (True, run.id, tracking.mlflow_run(run.folder), ())


@tracked
def test_a_finished_run_is_all_there(project: Project, follower: Follower) -> None:
    run = Run(project)
    run.log(0, 1500)
    run.log(1500, 10, "events-2.jsonl")
    run.write('{"t":"m","k":"loss","v":')
    run.end()
    assert sync(follower, run).ok
    shown = the(run)
    assert (shown.info.status, shown.info.end_time - shown.info.start_time) == ("FINISHED", 9000)
    assert shown.data.tags.items() >= view.tags(run.record).items()
    assert shown.data.params == view.params(CONFIG)
    (used,) = shown.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("mnist", "ab" * 8)
    assert points(run) == expected(1510)
    assert artifacts(run) == {
        "config.yaml": b"name: toy\n",
        "record.json": run.folder.record.read_bytes(),
        "logs/output.log": b"hello\n",
        "outputs/model/weights.npz": b"weights",
    }
    weights = project.root / "mlartifacts" / "toys---more" / shown.info.run_id / "artifacts/outputs/model/weights.npz"
    assert weights.samefile(run.folder.outputs / "model" / "weights.npz")
    experiment = client(run.uri).get_experiment(shown.info.experiment_id)
    assert {"mlflow.experimentKind", "mlflow.sharedViewState.repro"} <= set(experiment.tags)
    assert not list(project.root.rglob("mlruns"))
    assert (project.root / "mlartifacts" / ".gitignore").read_text() == "*\n"  # no outputs in the next snapshot


@tracked
def test_how_a_repetition_compared_comes_late_and_is_brought_there(project: Project, follower: Follower) -> None:
    run = Run(project)
    run.end()
    assert sync(follower, run).ok
    assert ("verdict" in the(run).data.tags, tracking.complete(run.folder)) == (False, True)
    run.folder.verification.write_text('{"schema": 9, "run": "another", "verdict": {"level": 5}}\n')  # of any version
    assert not tracking.complete(run.folder)
    assert "still on its way" in tracking.status(run.folder)
    assert sync(follower, run).ok
    assert (the(run).data.tags["verdict"], tracking.complete(run.folder)) == ("E5", True)
    assert artifacts(run)["verification.json"] == run.folder.verification.read_bytes()


@tracked
@pytest.mark.parametrize(
    ("end", "status"),
    [
        (End.FAILED, "FAILED"),
        (End.OOM, "FAILED"),
        (End.TIMEOUT, "FAILED"),
        (End.LOST, "FAILED"),
        (End.KILLED, "KILLED"),
    ],
)
def test_how_a_run_ended_is_its_status(project: Project, follower: Follower, end: End, status: str) -> None:
    run = Run(project)
    run.end(end, None if end is End.LOST else 137, "why")
    assert sync(follower, run).ok
    assert (the(run).info.status, the(run).data.tags["ended"]) == (status, end.value)
    assert the(run).data.tags.get("exit_code") == (None if end is End.LOST else "137")
    assert the(run).data.tags["mlflow.note.content"].startswith(f"{status.capitalize()}: why · repro show {run.id}")


@tracked
def test_what_mlflow_does_not_take_is_told_and_the_rest_arrives(project: Project, follower: Follower) -> None:
    run = Run(project)
    run.write('{"t":"p","k":"a[0]","v":"1"}\n{"t":"p","k":"seed","v":"9"}\n{"t":"p","k":"b","v":"2"}\n')
    run.write('{"t":"tag","k":"run","v":"fake"}\n{"t":"tag","k":"mine","v":"yes"}\n')
    run.write('{"loss":NaN}\n{"loss":"inf"}\n{"loss":0.5,"step":9}\n{"loss":0.5,"step":9}\n{"a@b":1}\nnonsense\n')
    run.write('{"t":"m","r":"nested","k":"loss","v":1,"ts":1,"s":1}\n')
    run.end()
    reply = sync(follower, run)
    assert reply.ok
    assert reply.remarks == (
        "2 journal lines could not be read",
        "an experiment cannot set tags that say what repro knows: run",
        "MLflow has stricter names: 'a@b' is 'a_b' there; 'a[0]' is 'a_0_' there",
        "MLflow keeps the first value of a parameter, the journal has the others: seed",
        "MLflow keeps ±1.797e308 in the place of an infinite value: loss",
    )
    shown = the(run)
    assert shown.data.params.items() >= {"a_0_": "1", "b": "2", "seed": "3"}.items()
    assert shown.data.tags.items() >= {"run": run.id, "mine": "yes"}.items()
    assert [str(value) for _step, value, _when in points(run)] == ["nan", "1.7976931348623157e+308", "0.5"]
    assert len(points(run, "a_b")) == 1


@tracked
def test_syncing_again_changes_nothing(project: Project, follower: Follower) -> None:
    run = Run(project)
    run.log(0, 50)
    assert sync(follower, run).ok
    assert the(run).info.status == "RUNNING"
    run.log(50, 50)
    run.end()
    first = sync(follower, run)
    before = the(run).to_dictionary()
    assert sync(follower, run) == first
    run.folder.tracking.unlink()  # as after a crash between the run's creation and our note of it
    assert sync(follower, run).mlflow_run == first.mlflow_run
    assert (the(run).to_dictionary(), points(run), len(runs(run.uri))) == (before, expected(100), 1)


@tracked
def test_a_deleted_run_stays_deleted_and_another_store_is_filled(project: Project, follower: Follower) -> None:
    run = Run(project)
    run.log(0, 10)
    run.end()
    first = sync(follower, run)
    client(run.uri).delete_run(first.mlflow_run)
    assert sync(follower, run).text == "deleted in MLflow, and left so"
    other = f"sqlite:///{project.root}/other.db"
    follower.sync(run.folder, other)
    (second,) = follower.wait(30)
    assert (second.ok, second.uri, points(run, uri=other)) == (True, other, expected(10))


@tracked
def test_a_project_that_was_moved_is_told_and_fills_a_new_store(project: Project, tmp_path: Path) -> None:
    run = Run(project)
    run.end()
    first, moved = tracking.sync([run.folder], project), Project(tmp_path / "moved")
    assert [reply.ok for reply in first] == [True]
    project.root.rename(moved.root)
    there = [RunFolder(moved.runs / run.id), Run(moved, "20260102-030405-toy-new").folder]
    there[1].write(ended(there[1].read(), End.FINISHED, 0, ""))
    new = list(tracking.sync(there[1:], moved))
    assert [(reply.ok, "which is not there" in reply.reason) for reply in new] == [(False, True)]
    moved.store.unlink()
    assert [(reply.ok, reply.uri) for reply in tracking.sync(there, moved)] == 2 * [(True, f"sqlite:///{moved.store}")]
    assert len(list(moved.root.glob("mlartifacts/*/*/artifacts/outputs"))) == 3  # and that of the old store
    assert not project.root.exists()


@tracked
def test_a_run_that_did_not_take_place_leaves_nothing(project: Project, follower: Follower) -> None:
    run = Run(project)
    follower.follow(run.folder)
    mlflow_run = until(lambda: tracking.mlflow_run(run.folder))
    keeping.discard(run.folder)
    assert [reply.text for reply in follower.wait(10, run.folder)] == ["no run took place"]
    assert not run.folder.path.exists()
    assert client(run.uri).get_run(mlflow_run).info.lifecycle_stage == "deleted"


@tracked
def test_an_unfit_store_costs_no_run_and_is_caught_up_with(project: Project, follower: Follower) -> None:
    project.store.write_text("not a database, and longer than the header that sqlite looks at, " * 3)
    run = Run(project)
    run.log(0, 10)
    run.end()
    reply = sync(follower, run)
    assert not reply.ok
    assert "file is not a database" in reply.reason
    assert reply.hints
    project.store.unlink()
    assert sync(follower, run).ok
    assert points(run) == expected(10)


@tracked
def test_a_publisher_killed_in_the_middle_loses_and_doubles_nothing(project: Project) -> None:
    run = Run(project)
    killed = Follower.start(project, run.uri)
    killed.follow(run.folder)
    for step in range(0, 2000, 100):
        run.log(step, 100)
        if step == 1000:
            until(lambda: tracking.mlflow_run(run.folder) and points(run))
    os.kill(killed.process.pid, signal.SIGKILL)
    (reply,) = killed.wait(10)
    assert (reply.ok, "ended early" in reply.reason) == (False, True)
    killed.close()
    assert the(run).info.status == "RUNNING"
    run.log(2000, 1000)
    run.end()
    (reply,) = tracking.sync([run.folder], project)
    assert (reply.ok, points(run), len(runs(run.uri))) == (True, expected(3000), 1)


@tracked
def test_a_publisher_whose_parent_has_gone_sends_what_is_there_and_ends(project: Project) -> None:
    run = Run(project)
    run.log(0, 100)
    follower = Follower.start(project, run.uri)
    follower.follow(run.folder)
    follower.close()
    follower.process.wait(60)
    assert (points(run), the(run).info.status) == (expected(100), "RUNNING")
    FileLock(run.folder.path / ".tracking.lock", timeout=0).acquire()


@tracked
def test_a_server_that_was_down_is_caught_up_with(project: Project, follower: Follower, tmp_path: Path) -> None:
    port = free_port()
    uri = f"http://localhost:{port}"
    run = Run(project, uri=uri)
    run.log(0, 10)
    run.end()
    reply = sync(follower, run)
    assert (reply.ok, reply.reason) == (
        False,
        f"the tracking server {uri} does not answer (Connection refused)",
    )
    live = Run(project, "20260102-030405-toy-live", uri=uri)
    follower.follow(live.folder)
    live.log(0, 100)
    with server(port, tmp_path):
        until(lambda: tracking.mlflow_run(live.folder), 60)
        live.log(100, 100)
        live.end()
        (reply,) = follower.wait(20, live.folder)
        assert (reply.ok, points(live)) == (True, expected(200))
        assert reply.text == f"{uri}/#/experiments/1/runs/{reply.mlflow_run}?workflowType=machine_learning"
        assert sync(follower, run).ok
        assert (points(run), the(run).info.status) == (expected(10), "FINISHED")
        assert artifacts(run)["outputs/model/weights.npz"] == b"weights"
        follower.sync(run.folder, f"http://127.0.0.1:{port}")
        (refused,) = follower.wait(20)
        assert refused.reason == f"the tracking server refuses the name 127.0.0.1:{port} (403 Invalid Host header)"
        assert f"mlflow server --allowed-hosts 127.0.0.1:{port}" in refused.hints[0]


# what the tests look at ---------------------------------------------------------------------------------------------


def sync(follower: Follower, run: Run) -> tracking.Reply:
    follower.sync(run.folder)
    (reply,) = follower.wait(60, run.folder)
    return reply


def sqlite(file: Path, statement: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(file)
    with connection:
        rows = connection.execute(statement).fetchall()
    connection.close()
    return rows


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs(uri: str, experiment: str = "") -> list[Any]:
    door = client(uri)
    known = door.get_experiment_by_name(experiment).experiment_id if experiment else "1"
    return list(door.search_runs([known]))


def the(run: Run) -> Any:
    return client(run.uri).get_run(tracking.mlflow_run(run.folder))


def points(run: Run, key: str = "loss", uri: str = "") -> list[tuple[int, float, int]]:
    history = client(uri or run.uri).get_metric_history(tracking.mlflow_run(run.folder), key)
    return [(point.step, point.value, point.timestamp) for point in sorted(history, key=lambda point: point.step)]


def expected(count: int) -> list[tuple[int, float, int]]:
    return [(step, 1 / (step + 1), 1000 + step) for step in range(count)]


def artifacts(run: Run) -> dict[str, bytes]:
    """Every artifact of a run, as MLflow gives it back."""
    door, mlflow_run = client(run.uri), tracking.mlflow_run(run.folder)

    def below(path: str | None) -> Iterator[str]:
        for entry in door.list_artifacts(mlflow_run, path):
            yield from below(entry.path) if entry.is_dir else [entry.path]

    with tempfile.TemporaryDirectory() as folder:
        return {path: Path(door.download_artifacts(mlflow_run, path, folder)).read_bytes() for path in below(None)}


@tracked
def test_a_run_does_not_wait_for_the_import_of_mlflow_but_for_who_has_it(project: Project) -> None:
    run = Run(project)
    run.end()
    follower = Follower.start(project, run.uri)
    follower.follow(run.folder)
    assert follower.wait(None, run.folder) == []  # it has hardly begun
    until(lambda: tracking.mlflow_run(run.folder))
    (reply,) = follower.wait(None, run.folder)
    assert reply.ok
    follower.close()
    follower.process.wait(30)
