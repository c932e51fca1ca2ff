"""MLflow's pages: a real server on a real store, stopped by the test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from repro.errors import EnvironmentUnfitError
from repro.project import Project
from repro.tracking.tracking import Follower
from repro.verbs import ui
from tests.test_tracking import Run, follower, project, sync  # noqa: F401 - two are fixtures

HOLD = """
import sys
from pathlib import Path
from repro.verbs import ui
from repro.project import Project
project = Project(Path(sys.argv[1]))
site = ui.start(sys.argv[2], project, lambda line: None)
print(site.address, flush=True)
site.hold(project)
print("held", flush=True)
"""


def nothing(_line: str) -> None:
    """Say."""


def get(address: str) -> bytes:
    with urlopen(address, timeout=10) as answer:
        return bytes(answer.read())


def test_a_server_needs_no_server(tmp_path: Path) -> None:
    site = ui.start("http://server:5000", Project(tmp_path), nothing)
    site.hold(Project(tmp_path))
    assert (site.address, site.page(), list(tmp_path.iterdir())) == (
        "http://server:5000",
        "http://server:5000/#/experiments",
        [],
    )


def test_pages_open_in_the_training_view(tmp_path: Path) -> None:
    run = Run(Project(tmp_path))
    run.folder.tracking.write_text('{"uri": "sqlite:///x", "experiment_id": "7", "run": "abc"}')
    site = ui.Site("http://127.0.0.1:1")
    assert site.page(run.folder) == "http://127.0.0.1:1/#/experiments/7/runs/abc?workflowType=machine_learning"
    assert site.page(run.folder, run=False).endswith(
        "/#/experiments/7/runs?viewStateShareKey=repro&workflowType=machine_learning"
    )


def test_a_note_of_a_server_that_has_gone_is_not_believed(tmp_path: Path) -> None:
    here = Project(tmp_path)
    here.scratch.mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid in (dead.pid, os.getpid()):  # neither a dead process nor one that is no server
        (here.scratch / "ui.json").write_text(json.dumps({"pid": pid, "port": 1, "uri": "sqlite:///x"}))
        assert ui._running(here.scratch) is None
    (here.scratch / "ui.json").write_text("torn")
    assert ui._running(here.scratch) is None


@pytest.mark.tracking
def test_one_server_shows_the_runs_until_it_is_interrupted(project: Project, follower: Follower) -> None:  # noqa: F811
    run = Run(project)
    run.log(0, 10)
    run.end()
    reply = sync(follower, run)
    command = [sys.executable, "-c", HOLD, str(project.root), run.uri]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout
    address = first.stdout.readline().strip()
    assert reply.mlflow_run.encode() in get(f"{address}/api/2.0/mlflow/runs/get?run_id={reply.mlflow_run}")
    artifact = f"get-artifact?path=logs/output.log&run_uuid={reply.mlflow_run}"
    assert get(f"{address}/{artifact}") == b"hello\n"
    second = ui.start(run.uri, project, nothing)
    second.hold(project)  # somebody else's: returns at once
    assert second.address == address
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EnvironmentUnfitError, match="is taken"):
        ui.start(run.uri, project, nothing, port=taken.getsockname()[1])
    os.kill(first.pid, signal.SIGINT)
    assert first.communicate(timeout=20)[0] == "held\n"
    with pytest.raises(OSError, match="refused"):
        get(f"{address}/health")
    assert not (project.scratch / "ui.json").exists()


@pytest.mark.tracking
def test_each_of_two_servers_ends_with_its_own_command(project: Project) -> None:  # noqa: F811
    def begin(name: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-c", HOLD, str(project.root), f"sqlite:///{project.root / name}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        return process, process.stdout.readline().strip()

    (first, one), (second, two) = begin("one.db"), begin("two.db")
    first.send_signal(signal.SIGINT)
    assert first.communicate(timeout=20)[0] == "held\n"
    with pytest.raises(OSError, match="refused"):
        get(f"{one}/health")
    assert get(f"{two}/health") == b"OK"
    second.send_signal(signal.SIGHUP)  # its terminal was closed
    assert second.communicate(timeout=20)[0] == "held\n"
    with pytest.raises(OSError, match="refused"):
        get(f"{two}/health")
