"""Unmodified MLflow code in containers without a network, with the oldest and the newest MLflow in the image."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from repro.project import Project
from repro.record import RunFolder
from repro.tracking import tracking
from tests.conftest import commit, write_experiment
from tests.test_nested import FIT, TREE
from tests.test_run_engine import latest
from tests.test_tracking import client, until

pytestmark = [pytest.mark.engine, pytest.mark.tracking]
ROOT = Path(__file__).parents[1]
NEWEST = metadata.version("mlflow")
SKINNY = {"oldest": "mlflow-skinny==1.30.1\nsetuptools<80\n", "newest": f"mlflow-skinny=={NEWEST}\n"}

Repro = Callable[..., "subprocess.CompletedProcess[str]"]


def with_packages(lab: Project, requirements: str, code: str) -> None:
    """The project's own Dockerfile, these packages, and an experiment of plain MLflow code."""
    shutil.copy(ROOT / "docker" / "Dockerfile", lab.docker)
    (lab.docker / "requirements.txt").write_text(requirements)
    (lab.root / "plain.py").write_text("import mlflow\n" + code)
    write_experiment(lab.root, "plain", "[python, -W, ignore, plain.py]")
    commit(lab.root)


def shown(folder: RunFolder) -> tuple[Any, dict[str, Any]]:
    """The run in the host's MLflow, and those below it by name: when all of it has arrived."""
    state = until(lambda: arrived(folder), 60)
    mlflow = client(state.uri)
    below = [each for each in mlflow.search_runs([state.experiment_id]) if each.info.run_id != state.run]
    return mlflow.get_run(state.run), {each.info.run_name + each.data.params.get("number", ""): each for each in below}


def arrived(folder: RunFolder) -> tracking.State | None:
    state = tracking.state(folder)
    return state if state and state.artifacts else None


@pytest.mark.parametrize("version", SKINNY)
def test_plain_mlflow_code_in_a_container_is_in_the_hosts_mlflow(lab: Project, repro: Repro, version: str) -> None:
    with_packages(lab, SKINNY[version], TREE)
    done = repro("run", "experiment=plain")
    assert done.returncode == 0, done.stderr
    record, folder = latest(lab)
    assert folder.output_log.read_text() == ""
    run, below = shown(folder)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == 0.5
    assert (run.data.params["lr"], run.data.tags["mine"]) == ("0.1", "yes")
    assert run.data.tags["image"] == record.planned.image.tag
    assert {name: each.info.status for name, each in below.items()} == {
        "part00": "FINISHED",
        "part11": "FINISHED",
        "leaf": "FINISHED",
        "broken": "FAILED",
        "open": "FINISHED",  # with the run
    }
    assert below["part11"].data.metrics == {"loss": 3.0}
    assert below["leaf"].data.tags["mlflow.parentRunId"] in {below["part00"].info.run_id, below["part11"].info.run_id}
    assert below["part00"].data.tags["mlflow.parentRunId"] == run.info.run_id
    state = tracking.state(folder)
    assert state is not None
    names = {each.path for each in client(state.uri).list_artifacts(run.info.run_id)}
    assert names >= {"notes", "config.yaml", "outputs"}
    (number,) = client(state.uri).list_artifacts(below["part11"].info.run_id, "deep")
    assert number.path == "deep/number.txt"
    listed = {file.path for file in record.ended.outputs} if record.ended else set()
    assert "mlflow/artifacts/notes/hello.txt" in listed


def test_an_image_without_mlflow_notices_nothing(lab: Project, repro: Repro) -> None:
    assert repro("run", "experiment=toy", "tracking.enabled=false").returncode == 0
    assert not (latest(lab)[1].outputs / "mlflow").exists()


def test_a_tracking_server_of_the_experiments_own_is_its_own_business(lab: Project, repro: Repro) -> None:
    own = "\nmlflow.set_tracking_uri('file:///outputs/mine')\nwith mlflow.start_run(): mlflow.log_metric('a', 1)\n"
    with_packages(lab, SKINNY["oldest"], own)
    done = repro("run", "experiment=plain", "tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    assert list((latest(lab)[1].outputs / "mine").glob("*/*/metrics/a"))


WHOLE = f"mlflow=={NEWEST}\ntensorflow-cpu==2.21.0\ntensorboard\nsetuptools<81\n"  # the last two are MLflow's need
TRAIN = """
import numpy, tensorflow
mlflow.tensorflow.autolog()
tensorflow.random.set_seed(1)  # a deterministic run wants one
x = numpy.linspace(0, 1, 64, dtype="float32").reshape(-1, 1)
with mlflow.start_run(nested=True, run_name="keras"):
    layers = tensorflow.keras.layers
    model = tensorflow.keras.Sequential([layers.Input((1,)), layers.Dense(1, activation="sigmoid")])
    model.compile(optimizer="sgd", loss="binary_crossentropy", metrics=["accuracy"])
    model.fit(x, (x > 0.5).astype("float32"), epochs=3, verbose=0)
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_of_mlflow_logs_models_of_scikit_learn_and_tensorflow_in_a_container(lab: Project) -> None:
    with_packages(lab, WHOLE, FIT + TRAIN)
    program = [sys.executable, "-m", "repro.run", "experiment=plain"]
    done = subprocess.run(program, cwd=lab.root, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = latest(lab)[1]
    run, below = shown(folder)
    assert run.data.metrics["training_accuracy_score"] == 1.0
    keras = below["keras"]
    mlflow = client(f"sqlite:///{lab.root}/mlflow.db")
    assert [point.step for point in mlflow.get_metric_history(keras.info.run_id, "loss")] == [0, 1, 2]
    assert keras.data.params["epochs"] == "3"
    for made, name in ((run, "model.pkl"), (mlflow.get_run(keras.info.run_id), "data/model.keras")):
        model = mlflow.get_logged_model(made.outputs.model_outputs[0].model_id)
        assert (str(model.status), model.source_run_id) == ("READY", made.info.run_id)
        (file,) = folder.outputs.glob(f"mlflow/models/*/artifacts/{name}")
        assert (Path(model.artifact_location.removeprefix("file://")) / name).samefile(file)
