"""Runs that end in odd ways, on a real engine: what a user finds afterwards is true, and nothing is left held."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from repro import config, runner
from repro.display import Display
from repro.engines.engine import Engine, connect
from repro.engines.refusal import CommandNotFoundError
from repro.project import Project, user_name
from repro.record import Record, RunFolder
from repro.run import Session
from repro.running.plan import Plan
from tests.conftest import script
from tests.test_run_engine import begun, containers, latest, left, on_a_terminal, read_all, start, wait_for

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]


def planned(lab: Project, *overrides: str) -> tuple[Plan, Engine]:
    """The plan of `repro run experiment=toy` with further overrides; its image has been built."""
    session = Session(lab, Display(stream=io.StringIO()), argv=())
    asked = ("experiment=toy", "gpus=none", "tracking.enabled=false", *overrides)
    experiment = config.compose(lab, asked)
    return session.plan(
        config.Composed(experiment=experiment, overrides=asked, folder=None, sweep=None)
    ), session.engine


def test_a_container_that_is_removed_by_hand_is_recorded_as_such(lab: Project) -> None:
    script(lab, "toy.sh", "echo begun; sleep 100")
    process = start(lab, "experiment=toy", "gpus=none", "tracking.enabled=false")
    wait_for(lambda: begun(lab))
    connect().remove(containers(lab)[0])
    _out, err = process.communicate(timeout=60)
    record, folder = latest(lab)
    # the engine kills it before it forgets it: either may be seen
    assert (record.state, process.returncode) in [("lost", 3), ("killed", 1)], err
    assert "its container is gone" in err or "ended by SIGKILL" in err
    assert "Traceback" not in err
    assert folder.output_log.read_text() == "begun\n"


def test_outputs_with_any_name_are_recorded(lab: Project, repro: Repro) -> None:
    script(
        lab, "toy.sh", "cd /outputs; touch \"$(printf 'caf\\351')\" 'a b' ü; mkdir -p d/e; echo 1 > d/e/f; ln -s / out"
    )
    done = repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    record, _folder = latest(lab)
    assert record.ended is not None
    assert sorted(file.path for file in record.ended.outputs) == ["a b", "caf\\xe9", "d/e/f", "ü"]


def test_an_interruption_right_after_the_start_stops_the_run(lab: Project) -> None:
    script(lab, "toy.sh", "sleep 100")
    plan, engine = planned(lab, "resources.stop_grace=1.0")

    def started(_folder: RunFolder, _record: Record) -> None:
        raise KeyboardInterrupt

    record = runner.execute(plan, engine, started=started)
    assert record.ended is not None
    assert (record.state, record.ended.reason) == ("killed", f"stopped by {user_name()} (Ctrl-C)")
    assert RunFolder(Path(plan.folder)).read() == record
    assert containers(lab) == []


def test_a_mistake_of_ours_does_not_end_a_run(lab: Project) -> None:
    script(lab, "toy.sh", "echo begun; while [ ! -e /outputs/go ]; do sleep 0.05; done; echo over")
    plan, engine = planned(lab)

    def started(_folder: RunFolder, _record: Record) -> None:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        runner.execute(plan, engine, started=started)
    folder = RunFolder(Path(plan.folder))
    assert folder.read().state == "running"
    (folder.outputs / "go").touch()
    wait_for(lambda: not folder.lease.exists())
    assert folder.read().state == "finished"
    assert folder.output_log.read_text() == "begun\nover\n"
    assert containers(lab) == []


def test_an_interruption_before_the_start_leaves_nothing(lab: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine has made the container, and its answer never arrives."""
    plan, engine = planned(lab)
    create = engine.create

    def interrupted(spec: object) -> str:
        create(spec)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.execute(plan, engine)
    assert left(lab) == ([], [])
    assert not Path(plan.folder).exists()


def test_ctrl_c_while_outputs_are_listed_keeps_the_end_of_the_run(
    lab: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, engine = planned(lab)

    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("repro.manifest.of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.execute(plan, engine)
    record = RunFolder(Path(plan.folder)).read()
    assert record.ended is not None
    assert (record.state, record.ended.exit_code, record.ended.outputs) == ("finished", 0, ())
    assert "interrupted while its outputs were listed" in record.ended.reason
    assert containers(lab) == []


@pytest.mark.parametrize("_attempt", range(8))
def test_what_is_printed_in_the_last_moment_is_in_the_log(lab: Project, _attempt: int) -> None:
    script(lab, "toy.sh", LINES)
    plan, engine = planned(lab)
    runner.execute(plan, engine)
    assert RunFolder(Path(plan.folder)).output_log.read_text().splitlines() == [f"line {n}" for n in range(20_000)]


LINES = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done"


def test_a_slow_reader_of_the_progress_costs_no_output(lab: Project) -> None:
    script(lab, "toy.sh", LINES)
    process = start(lab, "-v", "experiment=toy", "gpus=none", "tracking.enabled=false")  # nobody reads its stderr yet
    wait_for(lambda: bool(containers(lab)) or _over(lab))
    wait_for(lambda: _over(lab))
    wait_for(lambda: containers(lab) == [])
    assert len(latest(lab)[1].output_log.read_text().splitlines()) == 20_000
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err.count("  | line ") == 20_000


def _over(lab: Project) -> bool:
    try:
        record, folder = latest(lab)
        return record.ended is not None and not folder.lease.exists()
    except IndexError:
        return False


def test_a_reader_who_leaves_ends_nothing(lab: Project) -> None:
    script(lab, "toy.sh", LINES)
    process = start(lab, "-v", "experiment=toy", "gpus=none", "tracking.enabled=false")
    assert process.stderr
    process.stderr.readline()
    process.stderr.close()  # as `2>&1 | head -n 1`
    assert process.wait(60) == 0
    record, folder = latest(lab)
    assert record.state == "finished"
    assert len(folder.output_log.read_text().splitlines()) == 20_000
    assert process.stdout
    assert record.planned.run in process.stdout.read()
    process.stdout.close()


def test_the_answer_may_be_cut_off(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", f"{LINES}; {LINES}")
    assert repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false").returncode == 0
    command = f'"{sys.executable}" -c "from repro.__main__ import entry; entry()" logs | head -n 1'
    done = subprocess.run(["bash", "-c", command], cwd=lab.root, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("line 0\n", "")


@pytest.mark.parametrize("folder", [".", "${hydra:runtime.cwd}", "./conf/..", "mine"])
def test_a_folder_with_something_in_it_is_never_a_run_folder(lab: Project, repro: Repro, folder: str) -> None:
    precious = lab.root / "mine" / "outputs" / "precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("x")
    before = sorted(lab.root.iterdir())
    done = repro("run", "experiment=toy", "command=[nosuch]", f"hydra.run.dir={folder}", "tracking.enabled=false")
    assert done.returncode == 2, done.stderr
    assert precious.read_text() == "x"
    if folder != ".":  # which is Hydra's way of saying nothing
        assert "is not empty" in done.stderr
    assert [path for path in sorted(lab.root.iterdir()) if path.name not in (".repro", "runs")] == before


def test_a_file_is_no_run_folder(lab: Project, repro: Repro) -> None:
    done = repro("run", "experiment=toy", "hydra.run.dir=toy.sh", "tracking.enabled=false")
    assert done.returncode == 2
    assert "the folder toy.sh cannot be made" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_of_the_users_choice_is_found_by_id_once_and_stays_out_of_the_code(lab: Project, repro: Repro) -> None:
    for folder in ("results/one", "runs/two"):
        done = repro("run", "experiment=toy", f"hydra.run.dir={folder}", "gpus=none", "tracking.enabled=false")
        assert done.returncode == 0, done.stderr
    record, _folder = latest(lab)
    assert repro("runs").stdout.count("toy") == 2
    assert record.planned.run in repro("show").stdout
    status = subprocess.run(
        ["git", "-C", str(lab.root), "status", "--porcelain"], check=True, capture_output=True, text=True
    )
    assert "results" not in status.stdout
    assert "runs" not in status.stdout


def test_a_command_that_is_not_found_leaves_no_link_either(lab: Project, repro: Repro, tmp_path: Path) -> None:
    done = repro("run", "experiment=toy", "command=[/nosuch]", f"hydra.run.dir={tmp_path}/x", "tracking.enabled=false")
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "x").exists()
    assert [path.name for path in lab.runs.iterdir()] == [".gitignore"]
    plan, engine = planned(lab, "command=[/nosuch]")
    with pytest.raises(CommandNotFoundError):
        runner.execute(plan, engine)
    assert left(lab) == ([], [])


def test_a_multirun_on_a_clean_tree_is_clean_and_keeps_its_image(lab: Project) -> None:
    (lab.docker / "requirements.txt").write_text("# one\n")
    script(lab, "toy.sh", "echo begun; while [ ! -e /outputs/go ]; do sleep 0.05; done")
    subprocess.run(["git", "-C", str(lab.root), "add", "-A"], check=True)
    subprocess.run(["git", "-C", str(lab.root), "commit", "-qm", "clean"], check=True)
    process = start(lab, "-m", "experiment=toy", "seed=1,2", "gpus=none", "tracking.enabled=false")
    wait_for(lambda: begun(lab))
    first = latest(lab)[1]
    (lab.docker / "requirements.txt").write_text("# another\n")
    (first.outputs / "go").touch()
    wait_for(lambda: latest(lab)[1].path != first.path and begun(lab))
    (latest(lab)[1].outputs / "go").touch()
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    one, two = first.read(), latest(lab)[0]
    assert not one.planned.code.dirty
    assert one.planned.image.id == two.planned.image.id
    assert (first.path / "inputs" / "docker" / "requirements.txt").read_text() == "# one\n"


def test_plan_builds_and_fetches_nothing(lab: Project, repro: Repro) -> None:
    (lab.docker / "Dockerfile").write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nENV AT={time.time()}\n")
    (lab.conf / "data").mkdir()
    (lab.conf / "data" / "lost.yaml").write_text(f"lost: {{files: {{a.gz: {'a' * 64}}}, sources: [nowhere]}}\n")
    done = repro("run", "--plan", "experiment=toy", "data=lost")
    assert done.returncode == 0, done.stderr
    assert "is missing: the run would build it" in done.stderr
    assert "data lost is not in the cache" in done.stderr
    assert '"image": ""' in done.stdout
    assert repro("rebuild", "--check").returncode == 1


def test_shells_show_all_of_their_first_output(lab: Project) -> None:
    """Short commands are over before anybody looks: what they printed is there, and so is their exit code."""
    for _attempt in range(5):
        process, master = on_a_terminal(lab, "shell", "experiment=toy", "gpus=none", "--command", "echo all of it")
        seen = b"".join(read_all(master))
        os.close(master)
        assert process.wait(60) == 0, seen
        assert b"all of it\r\n" in seen
    assert containers(lab) == []
    assert not list(lab.runs.glob("*/.reserve"))
