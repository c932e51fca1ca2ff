"""The shipped experiments in their real image, recorded in a real MLflow store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repro.project import Project
from repro.record import Record, RunFolder, folders
from tests.conftest import commit, script
from tests.test_run_engine import latest

pytestmark = [pytest.mark.engine, pytest.mark.tracking]

ROOT = Path(__file__).parents[1]
Repro = Callable[..., "subprocess.CompletedProcess[str]"]


def client(project: Project) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{project.store}")


def mlflow_run(project: Project, record: Record) -> Any:
    found = client(project)
    experiment = found.get_experiment_by_name(record.planned.tracking_experiment)
    (run,) = found.search_runs([experiment.experiment_id], f"tags.run = '{record.planned.run}'")
    return run


def test_mlflow_shows_a_run_with_its_image_commit_parameters_and_metrics(lab: Project, repro: Repro) -> None:
    head = commit(lab.root)
    done = repro("run", "experiment=toy", "tracking.wait=60")
    assert done.returncode == 0, done.stderr
    record, folder = latest(lab)
    run = mlflow_run(lab, record)
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert tags["image"] == record.planned.image.tag
    assert tags["image_id"].startswith(record.planned.image.id[:19])
    assert tags["mlflow.source.git.commit"] == tags["commit"] == head == record.planned.code.commit
    assert (tags["dirty"], tags["gpus"], tags["network"], tags["ended"], tags["exit_code"]) == (
        "false",
        "none",
        "none",
        "finished",
        "0",
    )
    assert "image_digest" not in tags  # never pushed: there is none, and none is invented
    assert run.data.params["params.optimizer.lr"] == "0.1"
    assert run.data.params["seed"] == "1"
    history = client(lab).get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.25)]
    names = {item.path for item in client(lab).list_artifacts(run.info.run_id)}
    assert {"outputs", "config.yaml", "record.json", "logs", "inputs"} <= names
    inputs = {item.path for item in client(lab).list_artifacts(run.info.run_id, "inputs/docker")}
    assert inputs == {"inputs/docker/Dockerfile", "inputs/docker/requirements.txt"}
    document = (folder.inputs / "image-inputs.json").read_text()
    assert json.loads(document)["spec"] == record.planned.image.spec
    sizes = {item.path: item.file_size for item in client(lab).list_artifacts(run.info.run_id, "inputs")}
    assert sizes["inputs/image-inputs.json"] == len(document)
    assert record.planned.run in repro("show", run.info.run_id[:12]).stdout


def test_a_failed_run_is_failed_in_mlflow_too_and_a_second_sync_changes_nothing(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "repro-log step=1 loss=0.5; exit 3")
    assert repro("run", "experiment=toy", "tracking.wait=60").returncode == 1
    record, _folder = latest(lab)
    assert mlflow_run(lab, record).info.status == "FAILED"
    assert repro("sync").returncode == 0
    run = mlflow_run(lab, record)
    assert run.data.tags["exit_code"] == "3"
    assert len(client(lab).get_metric_history(run.info.run_id, "loss")) == 1


def test_a_run_succeeds_without_its_tracking_server_and_is_synced_later(lab: Project, repro: Repro) -> None:
    done = repro("run", "experiment=toy", "tracking.wait=60", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    record, _folder = latest(lab)
    assert record.state == "finished"
    assert "repro sync" in done.stdout + done.stderr
    late = repro("sync", record.planned.run)
    assert late.returncode == 3
    assert "127.0.0.1:9" in late.stderr
    assert "Traceback" not in late.stderr


def test_a_store_that_cannot_be_used_does_not_fail_the_run(lab: Project, repro: Repro) -> None:
    lab.store.write_bytes(b"this is no database, and long enough that sqlite looks at it" * 20)
    done = repro("run", "experiment=toy", "tracking.wait=60")
    assert done.returncode == 0, done.stderr
    assert "not in MLflow" in done.stderr
    assert latest(lab)[0].state == "finished"


def test_a_wrong_command_leaves_nothing_in_mlflow_either(lab: Project, repro: Repro) -> None:
    assert repro("run", "experiment=toy", "tracking.wait=60").returncode == 0
    assert repro("run", "experiment=toy", "command=[nosuch]", "tracking.wait=60").returncode == 2
    time.sleep(1)
    everything = client(lab).search_runs([each.experiment_id for each in client(lab).search_experiments()])
    assert len(everything) == 1


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project itself, as a fresh clone of its committed state with the working tree's changes on top."""
    from repro.code import source

    place = tmp_path_factory.mktemp("clone") / "repro"
    snapshot = source.capture(ROOT)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(place)], check=True)
    subprocess.run(
        ["git", "-C", str(place), "fetch", "-q", str(ROOT), f"refs/repro/snap/{snapshot.commit}"], check=True
    )
    subprocess.run(["git", "-C", str(place), "checkout", "-q", snapshot.commit], check=True)
    return place


@pytest.fixture(scope="module")
def mnist() -> str:
    """Where the four files of MNIST, or the two of its test set, lie; public sources are asked otherwise."""
    return os.environ.get("REPRO_DATA_SOURCE", "")


def run_in(place: Path, *overrides: str) -> tuple[Record, RunFolder]:
    done = subprocess.run(
        [sys.executable, "-m", "repro.run", *overrides, "image=debian"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = list(folders(place / "runs"))[-1]
    return folder.read(), folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_mnist_learns_and_is_bit_identical_when_it_is_run_again(clone: Path) -> None:
    first, folder = run_in(clone, "experiment=mnist", "data=mnist-t10k", "tracking.wait=60")
    second, _ = run_in(clone, "experiment=mnist", "data=mnist-t10k", "tracking.enabled=false")
    assert first.ended is not None
    assert second.ended is not None
    hashes = {file.path: file.sha256 for file in first.ended.outputs}
    again = {file.path: file.sha256 for file in second.ended.outputs}
    assert {"weights.npz", "learning_curves.png", "confusion_matrix.png", "report.html", "results.json"} <= set(hashes)
    assert any(name.startswith("model") for name in hashes)
    assert hashes == again
    assert first.planned.run_key == second.planned.run_key != ""
    assert (first.ended.metrics, first.ended.trace) == (second.ended.metrics, second.ended.trace)
    assert [each.at for each in first.ended.trace] == ["init", "batch 1", "epoch 1", "epoch 2", "epoch 3"]
    results = json.loads((folder.outputs / "results.json").read_text())
    assert results["test_accuracy"] > 0.94
    assert first.ended.trace[-1].digests == {"weights": results["weights_sha256"]}
    run = mlflow_run(Project(clone), first)
    assert run.data.metrics["test_accuracy"] == results["test_accuracy"]
    assert len(run.inputs.dataset_inputs) == 1
    history = client(Project(clone)).get_metric_history(run.info.run_id, "loss")
    assert (
        [point.step for point in history] == [1, 2, 3] == list(range(1, first.planned.config["params"]["epochs"] + 1))
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["digits", "shell"])
def test_an_experiment_needs_neither_data_nor_python(clone: Path, name: str) -> None:
    record, _folder = run_in(clone, f"experiment={name}", "tracking.enabled=false")
    assert record.ended is not None
    assert record.ended.outputs
    assert record.planned.data == ()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_make_demo_goes_from_a_fresh_clone_to_a_recorded_run_and_the_second_time_builds_nothing(clone: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    for attempt in ("first", "second"):
        done = subprocess.run(
            ["make", "demo"], cwd=clone, env=environment, capture_output=True, text=True, check=False, timeout=1200
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        for word in ("  run  ", "  image  ", "  commit  ", "  outputs  ", "  mlflow  ", "accuracy"):
            assert word in done.stdout, (attempt, word, done.stdout)
    assert " present" in done.stderr
    assert (clone / "conf" / "local" / "default.yaml").exists()
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, check=True, capture_output=True, text=True)
    assert status.stdout == ""
