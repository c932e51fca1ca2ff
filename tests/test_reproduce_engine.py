"""Recorded runs, run again on a real engine, through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from repro.engines.engine import Engine
from repro.project import Project
from repro.record import Record, RunFolder, folders
from repro.verdict import Level, Verification
from tests.conftest import commit, script, write_experiment
from tests.test_experiments_engine import client, mlflow_run

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
OFF = "tracking.enabled=false"


def run(repro: Repro, lab: Project, *arguments: str) -> tuple[Record, RunFolder]:
    done = repro("run", "experiment=toy", OFF, *arguments)
    assert done.returncode == 0, done.stderr
    folder = folders(lab.runs)[-1]
    return folder.read(), folder


def verification(path: Path) -> Verification:
    return msgspec.json.decode(path.read_bytes(), type=Verification)


def left(folder: RunFolder) -> list[Verification]:
    return [verification(path) for path in sorted(folder.verifications.glob("*.json"))]


def rewrite(folder: RunFolder, **changes: Any) -> None:
    """The record of another machine or version."""
    record = json.loads(folder.record.read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = record
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    folder.record.write_text(json.dumps(record))


def git(lab: Project, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(lab.root), *arguments], check=True, capture_output=True)


def test_a_run_gives_the_same_bytes_again_and_both_sides_keep_the_verification(lab: Project, repro: Repro) -> None:
    first, folder = run(repro, lab)
    done = repro("reproduce", first.planned.run)
    assert done.returncode == 0, done.stderr
    assert "toy: reproduced (E5, the same bytes)" in done.stdout
    rerun_folder = folders(lab.runs)[-1]
    rerun = rerun_folder.read()
    assert (rerun.planned.reproduces, rerun.planned.run_key) == (first.planned.run, first.planned.run_key)
    found = verification(rerun_folder.verification)
    assert verification(folder.verifications / f"{rerun.planned.run}.json") == found
    assert (found.reached, found.expected, found.witness) == (True, Level.BYTES, "same host")
    assert (found.run, found.rerun, found.rerun_result) == (first.planned.run, rerun.planned.run, found.result)


def test_a_run_that_is_not_deterministic_differs(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "head -c 8 /dev/urandom > $REPRO_OUTPUTS/x")
    first, folder = run(repro, lab)
    done = repro("reproduce", first.planned.run, "--json")
    assert done.returncode == 1, done.stderr
    (found,) = json.loads(done.stdout)
    assert (found["reached"], found["verdict"]["level"]) == (False, 1)
    (kept,) = left(folder)
    assert kept.verdict is not None
    assert (kept.reached, kept.verdict.explanation[:24]) == (False, "proven non-determinism: ")
    assert f"  why      {kept.verdict.explanation}" in repro("reproduce", first.planned.run).stdout


def test_it_is_run_as_often_as_wanted_and_planned_without_running(lab: Project, repro: Repro) -> None:
    first, folder = run(repro, lab)
    done = repro("reproduce", "latest", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert [each["kind"] for each in plan["ingredients"]] == ["code", "config", "image"]
    assert plan["ceiling"] == {"level": 5, "reason": ""}
    assert len(folders(lab.runs)) == 1
    assert repro("reproduce", first.planned.run, "--times", "2", "--offline").returncode == 0
    assert [each.reached for each in left(folder)] == [True, True]


def test_the_project_may_have_moved_on_in_every_way(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "env | grep -v ^REPRO_RUN= | sort > $REPRO_OUTPUTS/env; cat note > $REPRO_OUTPUTS/note")
    script(lab, "note", "never committed")
    first, folder = run(repro, lab, "+env.MINE=1", "threads=3")
    (lab.root / "note").unlink()
    script(lab, "toy.sh", "exit 9")
    (lab.conf / "experiment" / "toy.yaml").unlink()
    (lab.docker / "Dockerfile").write_text("FROM nothing/that:exists\n")
    write_experiment(lab.root, "other", "[sh, other.sh]")
    git(lab, "checkout", "-q", "-b", "elsewhere")
    commit(lab.root)
    script(lab, "toy.sh", "exit 10")  # and dirty
    (lab.conf / "image" / "tensorflow.yaml").rename(lab.conf / "image" / "renamed.yaml")
    rewrite(
        folder,
        planned__config__gone={"setting": 1},
        planned__config__outputs__formerly=2,
        planned__repro="9.9.9",
        planned__formerly="x",
    )
    folder.config_json.write_text(json.dumps(json.loads(folder.record.read_text())["planned"]["config"]))
    done = repro("reproduce", first.planned.run)
    assert done.returncode == 0, done.stderr
    assert "settings of repro 9.9.9 that this version does not know" in done.stderr
    again = folders(lab.runs)[-1]
    assert json.loads(again.config_json.read_text())["gone"] == {"setting": 1}
    assert "OMP_NUM_THREADS=3" in (again.outputs / "env").read_text()


def test_what_this_version_would_choose_changes_nothing(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "echo $SOME_DEFAULT $OMP_NUM_THREADS > $REPRO_OUTPUTS/x; ulimit -v > /dev/null")
    first, folder = run(repro, lab)
    env = json.loads(folder.record.read_text())["planned"]["env"]
    env = {name: value for name, value in env.items() if name != "OMP_NUM_THREADS"} | {"SOME_DEFAULT": "old"}
    rewrite(folder, planned__env=env, planned__run_key="")
    assert repro("reproduce", first.planned.run).returncode == 1  # it was recorded with another environment
    assert (folders(lab.runs)[-1].outputs / "x").read_text() == "old\n"


def test_a_lost_image_is_built_anew_and_offline_it_is_lost(lab: Project, repro: Repro, engine: Engine) -> None:
    never_built = f"RUN : {uuid.uuid4()} && head -c 9 /dev/urandom > /mine"  # so that no builder's cache has it
    (lab.docker / "Dockerfile").write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\n{never_built}\n")
    first, folder = run(repro, lab)
    engine.remove_image(first.planned.image.tag, force=True)
    if engine.image(first.planned.image.id):
        engine.remove_image(first.planned.image.id, force=True)
    lost = repro("reproduce", first.planned.run, "--offline")
    assert lost.returncode == 3, lost.stderr
    assert "image lost" in lost.stderr
    assert "--rebuild" in lost.stderr
    assert [(each.rerun, each.verdict) for each in left(folder)] == [(None, None)]
    audit = repro("verify", first.planned.run)
    assert audit.returncode == 0
    assert "no copy of the image is left: it would have to be built anew" in audit.stdout
    done = repro("reproduce", first.planned.run)
    assert done.returncode == 0, done.stderr
    assert "OTHER LAYERS" in done.stderr
    assert "with an image built anew, of OTHER LAYERS" in done.stdout
    assert left(folder)[0].rebuilt or left(folder)[-1].rebuilt


def test_an_image_can_be_built_anew_beside_the_recorded_one(lab: Project, repro: Repro, engine: Engine) -> None:
    (lab.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN head -c 9 /dev/urandom > /mine\n")
    first, _folder = run(repro, lab)
    done = repro("reproduce", first.planned.run, "--rebuild", "--offline")
    assert done.returncode == 0, done.stderr
    rerun = folders(lab.runs)[-1].read()
    assert rerun.planned.image.id != first.planned.image.id
    assert engine.image(first.planned.image.tag).id == first.planned.image.id  # type: ignore[union-attr]
    assert engine.image(rerun.planned.image.id) is None


def test_lost_code_is_named(lab: Project, repro: Repro) -> None:
    first, folder = run(repro, lab)
    ref = f"refs/repro/snap/{first.planned.code.commit}"
    git(lab, "update-ref", "-d", ref)
    git(lab, "reflog", "expire", "--expire=now", "--all")
    git(lab, "gc", "-q", "--prune=now")
    done = repro("reproduce", first.planned.run)
    assert done.returncode == 3, done.stderr
    assert "code lost" in done.stderr
    assert first.planned.code.commit[:12] in done.stderr
    assert len(left(folder)) == 1
    assert len(folders(lab.runs)) == 1


def test_code_comes_from_the_bundle_of_an_import(lab: Project, repro: Repro) -> None:
    first, folder = run(repro, lab)
    ref = f"refs/repro/snap/{first.planned.code.commit}"
    folder.archive.mkdir()
    git(lab, "bundle", "create", "-q", str(folder.archive / "code.bundle"), ref)
    shutil.rmtree(lab.root / ".git")
    shutil.rmtree(lab.scratch)
    done = repro("reproduce", first.planned.run)
    assert done.returncode == 0, done.stderr
    assert "uses bundle" in done.stderr


def test_more_than_the_machine_allows_is_refused(lab: Project, repro: Repro) -> None:
    first, folder = run(repro, lab)
    rewrite(folder, planned__host__cpu="Other", planned__host__cpu_flags=["avx2", "fma"])
    done = repro("reproduce", first.planned.run, "--expect", "E5")
    assert done.returncode == 4, done.stderr
    assert "E3 is the most that may be expected" in done.stderr
    assert repro("reproduce", first.planned.run).returncode == 0
    assert [each.expected for each in left(folder)] == [Level.TOLERANCE]


def test_a_missing_secret_is_a_lost_ingredient(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "cat /run/secrets/TOKEN | wc -c > $REPRO_OUTPUTS/x")
    done = repro("run", "experiment=toy", OFF, "+secrets.TOKEN.env=MY_TOKEN", MY_TOKEN="hush")
    assert done.returncode == 0, done.stderr
    lost = repro("reproduce", "latest")
    assert lost.returncode == 3, lost.stderr
    assert "secret TOKEN lost" in lost.stderr
    assert repro("reproduce", "latest", MY_TOKEN="hush").returncode == 0


def test_a_run_of_somebody_else_takes_no_secrets_unasked(lab: Project, repro: Repro, tmp_path: Path) -> None:
    script(lab, "toy.sh", "cat /run/secrets/TOKEN > $REPRO_OUTPUTS/x")
    script(lab, "give.sh", f"touch {tmp_path}/asked; echo hush")
    first, folder = run(repro, lab, "+secrets.TOKEN.command='sh give.sh'")
    (tmp_path / "asked").unlink()
    folder.elsewhere.touch()
    for more in ((), ("--dry-run",), ("--offline",)):
        done = repro("reproduce", first.planned.run, *more)
        assert done.returncode == 4, done.stderr
        assert "secret TOKEN: program sh give.sh" in done.stderr
        assert ", not you: their code runs\n" in done.stdout + done.stderr
    assert not (tmp_path / "asked").exists()
    assert repro("reproduce", first.planned.run, "--give-secrets").returncode == 0
    assert (tmp_path / "asked").exists()


def test_a_failed_run_has_nothing_to_compare_with(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "exit 3")
    assert repro("run", "experiment=toy", OFF).returncode == 1
    done = repro("reproduce", "latest")
    assert done.returncode == 2
    assert "has no result to compare with" in done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_attempt_that_is_ended_in_the_middle_leaves_a_record(
    lab: Project, repro: Repro, how: signal.Signals
) -> None:
    script(lab, "toy.sh", 'test -n "$SLOW" || true; echo begun; sleep 3; echo 42 > $REPRO_OUTPUTS/x')
    first, folder = run(repro, lab)
    process = subprocess.Popen(
        [sys.executable, "-m", "repro", "reproduce", first.planned.run],
        cwd=lab.root,
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 60
    while not left(folder) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(60) == (130 if how is signal.SIGINT else -signal.SIGKILL)
    rerun = RunFolder(lab.runs / str(left(folder)[0].rerun))
    assert repro("wait", rerun.path.name).returncode == (1 if how is signal.SIGINT else 0)
    assert rerun.read().planned.reproduces == first.planned.run
    assert [each.verdict for each in left(folder)] == [None]
    assert "1 attempt came to no verdict" in repro("verify", first.planned.run).stdout


@pytest.mark.tracking
def test_mlflow_shows_what_a_run_reproduces_and_the_verdict(lab: Project, repro: Repro) -> None:
    assert repro("run", "--repeat", "2", "experiment=toy", "tracking.wait=60").returncode == 0
    first, second = (folder.read() for folder in folders(lab.runs))
    assert repro("reproduce", first.planned.run).returncode == 0
    rerun = folders(lab.runs)[-1].read()
    until = time.monotonic() + 60
    while "verdict" not in mlflow_run(lab, rerun).data.tags and time.monotonic() < until:
        time.sleep(0.5)
    tags = mlflow_run(lab, rerun).data.tags
    assert (tags["reproduces"], tags["verdict"]) == (first.planned.run, "E5")
    tags = mlflow_run(lab, second).data.tags
    assert (tags["repeats"], tags["verdict"]) == (first.planned.run, "E5")
    names = {item.path for item in client(lab).list_artifacts(mlflow_run(lab, rerun).info.run_id)}
    assert "verification.json" in names


# verify ----------------------------------------------------------------------------------------------------------


def test_a_run_that_is_whole_could_be_had_back(lab: Project, repro: Repro) -> None:
    run(repro, lab)
    done = repro("verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "could be had back, at level E5" in done.stdout
    for decay in ("the only copy of the image is this engine", "snapshot commit not pushed to any remote"):
        assert decay in done.stdout


def test_what_was_changed_since_is_named(lab: Project, repro: Repro) -> None:
    _record, folder = run(repro, lab)
    (folder.outputs / "x").write_text("43\n")
    (folder.outputs / "new").write_text("")
    done = repro("verify", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["changed"] == ["outputs changed since: 2 files (new, x)"]


def test_a_record_that_was_edited_is_found_out(lab: Project, repro: Repro) -> None:
    _record, folder = run(repro, lab)
    rewrite(folder, planned__config__seed=2)
    done = repro("verify")
    assert done.returncode == 1
    assert "what went in is not what its run key says" in done.stdout
    assert "config.json is not the recorded configuration" in done.stdout


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"planned__config__seed": 2}, "what went in is not what its run key says"),
        ({"ended__exit_code": 1}, "what came out is not what its result says"),
    ],
)
def test_a_record_that_was_edited_is_never_reproduced(
    lab: Project, repro: Repro, changes: dict[str, Any], says: str
) -> None:
    record, folder = run(repro, lab)
    rewrite(folder, **changes)
    done = repro("reproduce", record.planned.run)
    assert done.returncode == 3, done.stderr
    assert says in done.stderr
    assert "reproduced" not in done.stdout
    assert [each.path for each in folders(lab.runs)] == [folder.path]


# run --repeat ----------------------------------------------------------------------------------------------------


def test_repeats_find_the_class_of_a_run(lab: Project, repro: Repro) -> None:
    done = repro("run", "--repeat", "3", "experiment=toy", OFF)
    assert done.returncode == 0, done.stderr
    assert "the same bytes in 3 of 3 runs: E5" in done.stdout
    first, *others = (folder.read() for folder in folders(lab.runs))
    assert [each.planned.repeats for each in others] == [first.planned.run] * 2
    assert {each.planned.run_key for each in others} == {first.planned.run_key}


def test_repeats_of_chance_say_so_and_bound_what_may_be_expected(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "head -c 8 /dev/urandom > $REPRO_OUTPUTS/x")
    done = repro("run", "--repeat", "2", "experiment=toy", OFF)
    assert done.returncode == 1, done.stderr
    assert "2 runs, and none like the first: E1" in done.stdout
    assert "the same" not in done.stdout
    refused = repro("reproduce", folders(lab.runs)[0].path.name, "--expect", "E5")
    assert refused.returncode == 4
    assert "not the same in its own repeats (E1 in 2 runs)" in refused.stderr
    again = repro("reproduce", folders(lab.runs)[0].path.name)
    assert (again.returncode, "toy: NOT reproduced (E1" in again.stdout) == (1, True)
    told = repro("verify", folders(lab.runs)[0].path.name).stdout
    assert "could be run again, 2 attempts came to E1 at most" in told
    assert "verified E1 2 times" in told


def test_a_declared_tolerance_is_checked_and_counts_for_the_repeats_too(
    lab: Project, repro: Repro, tmp_path: Path
) -> None:
    script(lab, "toy.sh", "repro-log step=1 loss=0.$(od -An -N2 -tu2 /dev/urandom | tr -d ' ')")
    assert repro("run", "--repeat", "2", "experiment=toy", OFF).returncode == 1
    run, margins = folders(lab.runs)[0].path.name, tmp_path / "margins.toml"
    margins.write_text("[metrics]\nlos = {abs = 1.0}\n")
    misspelt = repro("reproduce", run, "--tolerance", str(margins))
    assert (misspelt.returncode, "did you mean loss?" in misspelt.stderr) == (2, True)
    margins.write_text("[metrics]\nloss = {abs = 1.0}\n")
    done = repro("reproduce", run, "--tolerance", str(margins), "--expect", "E3")
    assert done.returncode == 0, done.stderr
    assert "toy: reproduced (E3" in done.stdout
