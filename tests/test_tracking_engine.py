"""Runs in real containers whose tracking is dead, late or flooded."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Iterator

import pytest

from repro.project import Project
from tests.conftest import script
from tests.test_run_engine import latest
from tests.tracking_servers import Door

pytestmark = [pytest.mark.engine, pytest.mark.tracking]

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
FLOOD = """
import repro_run
for step in range(50_000):
    repro_run.log(step=step, loss=1 / (step + 1))
repro_run.log(step=1, **{"acc@5": 0.5, "acc#5": 0.6})
"""


@pytest.fixture
def door(database: int) -> Iterator[Door]:
    door = Door(database)
    yield door
    door.close()


@pytest.mark.parametrize(
    ("fault", "says"),
    [("hang", "has not answered yet"), (500, "answers: HTTP 500"), (401, "refuses us: HTTP 401")],
)
def test_a_run_whose_server_is_of_no_use_is_as_good_as_any(
    lab: Project, repro: Repro, door: Door, fault: int | str, says: str
) -> None:
    door.fault, door.answer = lambda *_request: fault, b""
    done = repro("run", "experiment=toy", "gpus=none", MLFLOW_TRACKING_URI=door.uri)
    assert done.returncode == 0, done.stderr
    record, folder = latest(lab)
    assert (record.state, (folder.outputs / "x").read_text()) == ("finished", "42\n")
    assert "loss 0.25" in done.stdout
    assert f"{door.uri} {says}" in done.stderr
    assert f"`repro sync {record.planned.run}` catches up" in done.stderr
    shown = repro("show").stdout
    assert says in shown or "does not answer (timed out)" in shown
    door.fault = lambda *_request: None
    late = repro("sync", record.planned.run, "--all")
    assert late.returncode == 0, late.stderr
    assert f"{door.uri}/#/experiments/" in repro("show").stdout


def test_a_flood_out_of_a_container_arrives_whole(lab: Project, repro: Repro) -> None:
    script(lab, "flood.py", FLOOD)
    done = repro("run", "experiment=toy", "command=[python3, flood.py]", "gpus=none", "tracking.wait=180")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("MLflow has stricter names: 'acc@5' is 'acc_5' there") == 1
    with sqlite3.connect(lab.store) as connection:
        rows = connection.execute("SELECT step, value FROM metrics WHERE key = 'loss' ORDER BY step").fetchall()
        others = connection.execute("SELECT value FROM metrics WHERE key LIKE 'acc%' ORDER BY value").fetchall()
    connection.close()
    assert rows == [(step, 1 / (step + 1)) for step in range(50_000)]
    assert others == [(0.5,), (0.6,)]
