"""Unmodified MLflow code under our store, and what becomes of it in the host's MLflow; without a container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from repro.project import Project, cache_folder
from repro.record import End
from repro.tracking import tracking
from repro.tracking.tracking import Follower
from tests.test_tracking import Run, artifacts, client, free_port, points, runs, server, sqlite, sync, the, until

pytestmark = pytest.mark.tracking
Logged = Callable[[Run, str], None]
INSIDE = Path(__file__).parents[1] / "src" / "repro" / "inside"


@pytest.fixture
def project(tmp_path: Path) -> Project:
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


def experiment(run: Run, code: str, python: str = sys.executable) -> str:
    """Run a program as the container would; what it prints."""
    (run.folder.path / "config.json").write_text('{"name": "toy"}')
    done = subprocess.run(
        [python, "-W", "ignore", "-c", "import mlflow\n" + textwrap.dedent(code)],
        cwd=run.folder.path,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(run.folder.path),
            "PYTHONPATH": str(INSIDE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "REPRO_RUN": run.id,
            "REPRO_JOURNAL": str(run.folder.journal),
            "REPRO_OUTPUTS": str(run.folder.outputs),
            "REPRO_CONFIG": str(run.folder.path / "config.json"),
            "MLFLOW_TRACKING_URI": "repro://run",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """Let a run look as after an experiment; each experiment takes place once, since importing MLflow takes seconds."""
    made: dict[str, Run] = {}

    def copy(run: Run, code: str) -> None:
        if code not in made:
            made[code] = Run(Project(tmp_path_factory.mktemp("logged")), run.id)
            experiment(made[code], code)
        for name in ("journal", "outputs"):
            source, target = made[code].folder.path / name, run.folder.path / name
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=lambda *_: ["passwd"])

    return copy


def nested(run: Run) -> list[Any]:
    """Every run of MLflow's but the run's own, oldest first."""
    own = the(run).info.run_id
    return sorted((each for each in runs(run.uri) if each.info.run_id != own), key=lambda each: each.info.start_time)


FIT = """
import pandas
from sklearn.linear_model import LogisticRegression
mlflow.autolog()
data = pandas.DataFrame({"x": [0.0, 1.0, 2.0, 3.0], "y": [0, 0, 1, 1]})
with mlflow.start_run() as run:
    mlflow.log_input(mlflow.data.from_pandas(data, name="points", targets="y"), context="training")
    LogisticRegression().fit(data[["x"]], data["y"])
    print(run.info.run_id)
"""


def test_autolog_with_a_model_and_a_dataset_is_all_there(project: Project, follower: Follower, logged: Logged) -> None:
    run = Run(project)
    logged(run, FIT)
    run.end()
    assert sync(follower, run).remarks == ()
    shown = the(run)
    assert shown.data.params["C"] == "1.0"
    assert shown.data.metrics["training_accuracy_score"] == 1.0
    assert ("points", "training") in [(each.dataset.name, each.tags[0].value) for each in shown.inputs.dataset_inputs]
    (output,) = shown.outputs.model_outputs
    model = client(run.uri).get_logged_model(output.model_id)
    assert (str(model.status), model.source_run_id) == ("READY", shown.info.run_id)
    assert model.params["C"] == "1.0"
    assert {each.key for each in model.metrics} >= {"training_accuracy_score"}
    assert predicted(run.uri, f"models:/{model.model_id}") == "[0 1]"
    assert {"estimator.html", "training_confusion_matrix.png"} <= set(artifacts(run))


def predicted(uri: str, model: str) -> str:
    """What a model says to 0 and 3, loaded as anybody on the host would."""
    code = f"""
import mlflow, pandas
mlflow.set_tracking_uri({uri!r})
model = mlflow.pyfunc.load_model({model!r})
print(model.metadata.model_id, model.metadata.run_id)
print(model.predict(pandas.DataFrame({{"x": [0.0, 3.0]}})))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


TREE = """
import os, sys
with mlflow.start_run(run_name="mine", description="my words", tags={"mine": "yes", "image": "fake"}) as run:
    mlflow.log_params({"lr": 0.1, "long": "x" * 7000})
    mlflow.log_metrics({"loss": 0.5, "odd@key": float("nan")}, step=1)
    mlflow.log_text("hello", "notes/hello.txt")
    mlflow.log_text("theirs", "config.yaml")
    for number in range(2):
        with mlflow.start_run(nested=True, run_name=f"part{number}", description="a part") as part:
            mlflow.log_param("number", number)
            for step in range(3):
                mlflow.log_metric("loss", number + step, step=step)
            mlflow.log_text(str(number), "deep/number.txt")
            with mlflow.start_run(nested=True, run_name="leaf", tags={"commit": "fake", "own": "1"}):
                mlflow.log_metric("leaf", 1)
try:
    with mlflow.start_run(run_name="broken"):
        raise ValueError
except ValueError:
    pass
mlflow.start_run(run_name="open").info.run_id
os._exit(0)  # neither MLflow nor anybody else ends that run
"""


def tree(run: Run) -> dict[str, Any]:
    """What MLflow shows of the nested runs, by name."""
    known = {each.info.run_id: each.info.run_name for each in runs(run.uri)}
    return {
        each.info.run_name + each.data.params.get("number", ""): (
            known[each.data.tags["mlflow.parentRunId"]].replace(run.id, "root"),
            each.info.status,
            each.data.params,
            each.data.metrics,
        )
        for each in nested(run)
    }


TREE_SHOWN = {
    "part00": ("root", "FINISHED", {"number": "0"}, {"loss": 2.0}),
    "part11": ("root", "FINISHED", {"number": "1"}, {"loss": 3.0}),
    "leaf": ("part1", "FINISHED", {}, {"leaf": 1.0}),
    "broken": ("root", "FAILED", {}, {}),
    "open": ("root", "KILLED", {}, {}),
}


def test_nested_runs_are_below_the_run_with_their_own_ends(
    project: Project, follower: Follower, logged: Logged
) -> None:
    run = Run(project)
    logged(run, TREE)
    assert sync(follower, run).ok  # live
    assert the(run).info.status == "RUNNING"
    assert {each.info.run_name: each.info.status for each in nested(run)}["open"] == "RUNNING"
    run.end(End.KILLED, 137, "by hand")
    reply = sync(follower, run)
    assert tree(run) == TREE_SHOWN
    assert len(nested(run)) == 6
    shown = the(run)
    assert shown.info.status == "KILLED"
    assert (shown.info.run_name, shown.data.tags["run_name"], shown.data.tags["mine"]) == (run.id, "mine", "yes")
    assert shown.data.tags["note"] == "my words"
    assert shown.data.tags["image"] == run.record.planned.image.tag
    assert "an experiment cannot set tags that say what repro knows: image" in reply.remarks
    part = nested(run)[0]
    assert part.data.tags["mlflow.note.content"] == "a part"
    leaf = next(each for each in nested(run) if each.info.run_name == "leaf")
    assert (leaf.data.tags["own"], leaf.data.tags["commit"]) == ("1", run.record.planned.code.commit)
    assert [step for step, _value, _when in points(run, "loss")] == [1]


def test_artifacts_are_where_mlflow_code_put_them_and_no_second_copy(
    project: Project, follower: Follower, logged: Logged
) -> None:
    run = Run(project)
    logged(run, TREE)
    run.end()
    assert sync(follower, run).ok
    shown = artifacts(run)
    assert shown["notes/hello.txt"] == b"hello"
    assert shown["config.yaml"] == b"name: toy\n"  # ours; theirs is among the outputs
    assert shown["outputs/mlflow/artifacts/config.yaml"] == b"theirs"
    assert not [name for name in shown if name.startswith("outputs/mlflow/runs")]
    part = next(each for each in nested(run) if each.data.params.get("number") == "1")
    there = Path(unquote(part.info.artifact_uri.removeprefix("file://")))
    assert (there / "deep" / "number.txt").read_text() == "1"
    ours = run.folder.outputs.glob("mlflow/runs/*/artifacts/deep/number.txt")
    assert any((there / "deep" / "number.txt").samefile(each) for each in ours)


def everything(run: Run, uri: str | None = None) -> list[Any]:
    """All that MLflow knows, in its own words; ids and the time of creation of models apart."""
    found = []
    mlflow = client(uri or run.uri)
    for each in runs(uri or run.uri):
        history = {key: len(mlflow.get_metric_history(each.info.run_id, key)) for key in each.data.metrics}
        inputs = sorted(used.dataset.name for used in each.inputs.dataset_inputs)
        outputs = len(each.outputs.model_outputs) if each.outputs else 0
        found.append((each.info.run_name, each.info.status, each.data.params, history, inputs, outputs))
    experiment_id = runs(uri or run.uri)[0].info.experiment_id
    models = [
        (model.name, str(model.status), model.params, len(model.metrics))
        for model in mlflow.search_logged_models([experiment_id])
    ]
    return [sorted(found, key=str), sorted(models, key=str)]


def test_syncing_from_scratch_doubles_nothing(project: Project, follower: Follower, logged: Logged) -> None:
    run = Run(project)
    logged(run, TREE)
    logged(run, FIT)
    run.end()
    assert sync(follower, run).ok
    before = everything(run)
    run.folder.tracking.unlink()
    again = sync(follower, run)
    assert (again.ok, everything(run)) == (True, before)
    other = f"sqlite:///{project.root}/other.db"
    follower.sync(run.folder, other)
    (reply,) = follower.wait(60)
    assert (reply.ok, everything(run, other)) == (True, before)


def test_comparing_finds_nothing_missing_and_repairs_what_is(
    project: Project, follower: Follower, logged: Logged
) -> None:
    run = Run(project)
    logged(run, TREE)
    logged(run, FIT)
    run.end()
    assert sync(follower, run).ok
    before = everything(run)
    follower.sync(run.folder, verify=True)
    (reply,) = follower.wait(60, run.folder)
    assert (reply.ok, reply.repaired, everything(run)) == (True, (), before)
    part = next(each for each in nested(run) if each.data.params.get("number") == "1")
    sqlite(project.store, f"DELETE FROM metrics WHERE run_uuid = '{part.info.run_id}'")
    follower.sync(run.folder, verify=True)
    (reply,) = follower.wait(60, run.folder)
    assert (reply.ok, reply.repaired, everything(run)) == (True, ("3 metrics",), before)


def test_a_publisher_killed_at_any_moment_doubles_nothing(project: Project, follower: Follower, logged: Logged) -> None:
    """It leaves half of a block in MLflow, and an old tracking.json: as after kill -9."""
    run = Run(project)
    logged(run, TREE)
    assert sync(follower, run).ok
    noted = run.folder.tracking.read_bytes()
    logged(run, FIT)
    run.end()
    assert sync(follower, run).ok
    before = everything(run)
    run.folder.tracking.write_bytes(noted)
    assert sync(follower, run).ok
    assert everything(run) == before


def test_a_nested_run_that_somebody_deleted_stays_deleted(project: Project, follower: Follower, logged: Logged) -> None:
    run = Run(project)
    logged(run, TREE)
    run.end()
    assert sync(follower, run).ok
    client(run.uri).delete_run(nested(run)[0].info.run_id)
    run.folder.tracking.unlink()
    assert sync(follower, run).ok
    assert len(nested(run)) == 5


TWO = """
import os, subprocess, sys
child = '''
import mlflow, sys
mlflow.MlflowClient().log_metric(sys.argv[1], "child", 1)
with mlflow.start_run(): mlflow.log_metric("own", 2)
'''
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 1)
    with mlflow.start_run(nested=True, run_name="shared") as shared:
        subprocess.run([sys.executable, "-W", "ignore", "-c", child, shared.info.run_id], check=True)
        print(mlflow.MlflowClient().get_run(shared.info.run_id).data.metrics)
    pid = os.fork()
    if pid == 0:
        mlflow.MlflowClient().log_metric(run.info.run_id, "forked", 3)
        os._exit(0)
    os.waitpid(pid, 0)
    import threading
    ours = run.info.run_id
    log = lambda n: [mlflow.MlflowClient().log_metric(ours, "thread", n, step=100 * n + s) for s in range(50)]
    logs = [threading.Thread(target=log, args=[n]) for n in range(4)]
    for each in logs: each.start()
    for each in logs: each.join()
"""


def test_processes_threads_and_forks_log_to_one_run(project: Project, follower: Follower) -> None:
    run = Run(project)
    assert "{'child': 1.0}" in experiment(run, TWO)
    experiment(run, "with mlflow.start_run(): mlflow.log_metric('second', 4)")  # a program of its own continues the run
    for file in run.folder.journal.iterdir():  # the one that began the run is read last
        first = '"shared"' in file.read_text()
        file.rename(file.with_name(f"events-{'z' if first else 'a'}{file.name[7:]}"))
    run.end()
    assert sync(follower, run).remarks == ()
    assert the(run).data.metrics == {"loss": 1.0, "forked": 3.0, "second": 4.0, "thread": 3.0}
    assert len(points(run, "thread")) == 200
    assert {each.info.run_name: each.data.metrics for each in nested(run)}["shared"] == {"child": 1.0}
    assert [each.data.metrics for each in nested(run) if each.info.run_name != "shared"] == [{"own": 2.0}]


def test_what_cannot_be_is_a_clear_error_or_a_warning_once(project: Project, follower: Follower) -> None:
    run = Run(project)
    told = experiment(
        run,
        """
        for call in (
            lambda: mlflow.start_run(run_id="0" * 32),
            lambda: mlflow.MlflowClient().get_registered_model("x"),
            lambda: mlflow.MlflowClient().delete_experiment("0"),
        ):
            try:
                call()
            except mlflow.exceptions.MlflowException as error:
                print("refused:", error)
        mlflow.set_experiment("elsewhere")
        mlflow.set_experiment("elsewhere")
        with mlflow.start_run():
            model = mlflow.initialize_logged_model(name="m")
            mlflow.finalize_logged_model(model.model_id, "READY")
            mlflow.register_model(f"models:/{model.model_id}", "winner")
            mlflow.delete_tag("gone")
            try:
                mlflow.log_param("a", 1); mlflow.log_param("a", 2)
            except mlflow.exceptions.MlflowException as error:
                print("refused:", error)
        """,
    )
    assert "refused: Run '" + "0" * 32 + "' not found: it sees its own run" in told
    assert told.count("refused:") == 4
    assert told.count("`tracking.experiment` in the run's configuration chooses it") == 1
    run.end()
    (remark,) = sync(follower, run).remarks
    assert remark.startswith("to register winner: mlflow.register_model('models:/m-")
    assert remark.split("'")[1].removeprefix("models:/") in {
        model.model_id for model in client(run.uri).search_logged_models([the(run).info.experiment_id])
    }


def test_of_traces_the_experiment_hears_what_is_not_kept(project: Project) -> None:
    told = experiment(
        Run(project),
        """
        @mlflow.trace
        def double(x):
            return 2 * x

        def feedback():
            mlflow.log_feedback(trace_id="tr-1", name="good", value=True)

        with mlflow.start_run():
            print("doubled:", double(2))
            mlflow.flush_trace_async_logging()
            print("found:", mlflow.search_traces(return_type="list"), len(mlflow.search_traces()))
            print("trace:", mlflow.get_trace("tr-1"))
            for call in (feedback, lambda: mlflow.set_trace_tag("tr-1", "a", "b")):
                try:
                    call()
                except mlflow.exceptions.MlflowException as error:
                    print("refused:", error)
        """,
    )
    assert "doubled: 4" in told
    assert "found: [] 0" in told
    assert "trace: None" in told
    assert "refused: create_assessment: traces are not kept (this is a container of repro)" in told
    assert "refused: set_trace_tag: traces are not kept" in told


def test_lines_that_pretend_reach_nothing_but_the_run(project: Project, follower: Follower) -> None:
    victim, run = Run(project, "20260102-030405-toy-000001"), Run(project, "20260102-030405-toy-000002")
    victim.end()
    assert sync(follower, victim).ok
    before = the(victim).to_dictionary()
    other = the(victim).info.run_id
    for event in (
        {"t": "m", "r": other, "k": "loss", "v": 1, "ts": 1, "s": 1},
        {
            "t": "run",
            "r": other,
            "k": "x",
            "ts": 1,
            "parent": "../..",
            "tags": {"mlflow.parentRunId": other, "run": "y"},
        },
        {"t": "end", "r": other, "v": "FAILED", "ts": 1},
        {"t": "end", "v": "FINISHED", "ts": 1},
        {"t": "tag", "r": other, "k": "run", "v": victim.id},
        {"t": "tag", "r": other, "k": "mlflow.parentRunId", "v": other},
        {"t": "tag", "k": "nested", "v": "x"},
        {"t": "run", "r": "../../etc", "k": "x", "ts": 1},
        {"t": "run", "r": "1" * 32, "k": "x", "ts": 10**30},
        {"t": "model", "m": "m-" + "2" * 32, "k": "a/b", "ts": 1, "tags": ["no"]},
        {"t": "output", "m": "m-" + "3" * 32, "s": 1},
        {"t": "end", "r": "4" * 32, "v": "SUPERB"},
        {"t": "input", "ds": "none"},
        {"t": ["run"], "r": {}},
    ):
        run.write(json.dumps(event) + "\n")
    (run.folder.outputs / "mlflow").symlink_to("/etc")
    assert sync(follower, run).ok
    assert the(run).info.status == "RUNNING"  # whatever the container says of it
    run.end()
    assert sync(follower, run).ok
    assert the(victim).to_dictionary() == before
    (pretender,) = (each for each in runs(run.uri) if each.info.run_name == "x")
    assert pretender.data.tags["mlflow.parentRunId"] == the(run).info.run_id
    assert "run" not in pretender.data.tags
    assert set(artifacts(run)) == {"config.yaml", "record.json", "logs/output.log", "outputs/model/weights.npz"}


def test_an_mlflow_that_is_none_of_those_known_logs_to_files_and_goes_on(project: Project) -> None:
    run = Run(project)
    told = experiment(
        run,
        """
        from mlflow.entities import RunInfo
        theirs = RunInfo.__init__
        RunInfo.__init__ = lambda self, **anything: theirs(self, **anything)  # what a later version may do
        with mlflow.start_run() as run:
            mlflow.log_metric("loss", 1)
        print("went on")
        """,
    )
    assert "this MLflow is none that repro knows" in told
    assert "went on" in told
    assert list(run.folder.outputs.glob("mlflow/store/*/*/metrics/loss"))


def test_a_full_disk_under_the_journal_costs_lines_and_no_experiment(project: Project) -> None:
    run = Run(project)
    told = experiment(
        run,
        """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with mlflow.start_run():
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            mlflow.log_metric("loss", 1)
            mlflow.log_metric("loss", 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            mlflow.log_metric("loss", 3)
        """,
    )
    assert told.count("what it was given is not recorded") == 1
    (file,) = run.folder.journal.iterdir()
    assert [json.loads(line)["v"] for line in file.read_text().splitlines() if line] == [3]


def test_two_hundred_calls_cost_little(project: Project) -> None:
    run = Run(project)
    told = experiment(
        run,
        """
        import time
        with mlflow.start_run():
            start = time.perf_counter()
            for step in range(200):
                mlflow.log_metric("loss", 1, step=step)
            print("milliseconds", int(1000 * (time.perf_counter() - start)))
        """,
    )
    assert int(told.rsplit("milliseconds ", 1)[1]) < 5000  # it takes 50; a loaded machine may take its time


# other stores -----------------------------------------------------------------------------------------------------


def test_a_server_gets_all_of_it_without_an_import_of_mlflow(
    project: Project, follower: Follower, tmp_path: Path, logged: Logged
) -> None:
    port = free_port()
    uri = f"http://localhost:{port}"
    run = Run(project)
    logged(run, TREE)
    logged(run, FIT)
    run.end()
    assert sync(follower, run).ok
    expected = everything(run)
    with server(port, tmp_path):
        until(lambda: sync_to(follower, run, uri).ok, 90)
        assert everything(run, uri) == expected
        run.folder.tracking.unlink()
        assert sync_to(follower, run, uri).ok
        assert everything(run, uri) == expected
        follower.sync(run.folder, uri, verify=True)
        (reply,) = follower.wait(60, run.folder)
        assert (reply.ok, reply.repaired) == (True, ())
        assert everything(run, uri) == expected
        (model,) = client(uri).search_logged_models([runs(uri)[0].info.experiment_id])
        assert predicted(uri, f"models:/{model.model_id}") == "[0 1]"
        part = next(each for each in runs(uri) if each.data.params.get("number") == "1")
        assert [each.path for each in client(uri).list_artifacts(part.info.run_id, "deep")] == ["deep/number.txt"]


def sync_to(follower: Follower, run: Run, uri: str) -> tracking.Reply:
    follower.sync(run.folder, uri)
    (reply,) = follower.wait(60, run.folder)
    return reply


OLDEST = ("mlflow==3.5.0", "sqlalchemy<2.1")  # the oldest that pyproject.toml allows; later SQLAlchemys break it
PUBLISH = """
import os, sys
from pathlib import Path
from repro.tracking import store
from repro.tracking.publication import Publication
from repro.record import RunFolder
from repro.tracking.sdkclient import SdkClient
store.prepare(sys.argv[2])
publication = Publication(RunFolder(Path(sys.argv[1])), sys.argv[2], SdkClient(sys.argv[2]))
assert publication.advance(last=True)
publication.ship(lambda done, total: None)
import mlflow
print("published with", mlflow.__version__)
"""
READ = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
(experiment,) = (each for each in client.search_experiments() if each.experiment_id != "0")
found = client.search_runs([experiment.experiment_id])
(model,) = client.search_logged_models([experiment.experiment_id])
root = client.get_run(next(run.info.run_id for run in found if "exit_code" in run.data.tags))
print(json.dumps({
    "statuses": sorted(run.info.status for run in found),
    "loss": root.data.metrics["loss"],
    "datasets": sorted(used.dataset.name for used in root.inputs.dataset_inputs),
    "model": [str(model.status), len(root.outputs.model_outputs), len(model.metrics) > 0],
    "files": sorted(each.path for each in client.list_artifacts(root.info.run_id, "notes")),
    "model_files": "MLmodel" in [each.path for each in client.list_logged_model_artifacts(model.model_id)],
}))
"""


@pytest.mark.slow
def test_the_oldest_mlflow_on_the_host_gets_all_of_it(project: Project, logged: Logged) -> None:
    python = venv("mlflow-3.5.0", *OLDEST, "filelock", "msgspec", "platformdirs", "pyyaml", "requests", "rfc8785")
    run = Run(project)
    logged(run, TREE)
    logged(run, FIT)
    run.end()
    uri = f"sqlite:///{project.root}/mlflow.db"
    source = str(Path(tracking.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source, "REPRO_CACHE": str(project.root / "cache")}
    for code, arguments in ((PUBLISH, [str(run.folder.path), uri]), (READ, [uri])):
        program = [python, "-W", "ignore", "-c", code, *arguments]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "statuses": ["FAILED", *["FINISHED"] * 6],
        "loss": 0.5,
        "datasets": ["dataset", "mnist", "points"],
        "model": ["READY", 1, True],
        "files": ["notes/hello.txt"],
        "model_files": True,
    }


def venv(name: str, *packages: str) -> str:
    """The Python of an environment of its own, kept in the cache."""
    folder = cache_folder() / "tests" / name
    uv = [sys.executable, "-m", "uv"]
    complete, wanted = folder / "complete", "\n".join(packages)
    if not complete.exists() or complete.read_text() != wanted:
        subprocess.run([*uv, "venv", "-q", "--clear", "-p", sys.executable, str(folder)], check=True)
        subprocess.run([*uv, "pip", "install", "-q", "-p", str(folder), *packages], check=True)
        complete.write_text(wanted)
    return str(folder / "bin" / "python")
