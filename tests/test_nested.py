"""Unmodified MLflow code under our store, and what becomes of it in the host's MLflow. No container: see test_mlflow_engine.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repro.project import Project
from repro.record import End
from repro.tracking import Follower
from tests.test_tracking import Run, artifacts, client, points, runs, sync, the

pytestmark = pytest.mark.tracking
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


def test_autolog_with_a_model_and_a_dataset_is_all_there(project: Project, follower: Follower) -> None:
    run = Run(project)
    experiment(run, FIT)
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
    print(json.dumps(sorted(artifacts(run)), indent=1))


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
