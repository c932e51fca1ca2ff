"""The moments in which a command that dies, or an engine, could leave half of something; each is brought about here."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from repro import scratch
from repro.display import Display
from repro.engines.engine import connect
from repro.errors import ExitCode
from repro.project import Project, user_name
from repro.record import RunFolder
from repro.running import stopping
from repro.verbs import life
from tests.conftest import script
from tests.second_engine import second_engine
from tests.test_life_engine import GATE, killed
from tests.test_run_engine import containers, latest, wait_for

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
engine_needed = pytest.mark.engine


PATCHED = """
import os, sys, threading, time
from repro.engines.engine import Engine
from repro.running.keeping import Keeper
from repro.run import main
create = Engine.create
{patch}
sys.exit(main(["experiment=toy", "gpus=none", "tracking.enabled=false"]))
"""


def run(lab: Project, patch: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`repro run` as a process of its own, in which something happens at a certain moment."""
    return subprocess.run(
        [sys.executable, "-c", PATCHED.format(patch=patch)],
        cwd=lab.root,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def empty(project: Project) -> bool:
    return [path for path in project.runs.iterdir() if path.is_dir()] == []


@engine_needed
def test_an_engine_that_dies_while_it_makes_the_container_leaves_no_run(lab: Project, debian_base: str) -> None:
    script(lab, "toy.sh", "sleep 100")
    with second_engine(gpus=None, options={"live-restore": True}) as second:
        second.copy_image(debian_base)
        patch = f"Engine.create = lambda self, spec: (create(self, spec), os.kill({second.pid}, 9))[0]"
        done = run(lab, patch, DOCKER_HOST=second.url)
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr
        second.kill()  # it is dead already, and gets buried
        second.start()
        wait_for(lambda: empty(lab))
        assert second.client().containers.list(all=True) == []


SLOWLY = """
def slowly(self, spec):
    threading.Thread(target=lambda: (time.sleep(0.5), create(self, spec))).start()
    raise KeyboardInterrupt
Engine.create = slowly
"""


@engine_needed
def test_a_container_that_is_made_after_ctrl_c_goes_too(lab: Project) -> None:
    done = run(lab, SLOWLY)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False), done.stderr
    assert containers(lab) == []
    assert empty(lab)


IMPATIENT = """
def interrupted(self, *_):
    while not self.folder.output_log.is_file() or "begun" not in self.folder.output_log.read_text():
        time.sleep(0.05)
    raise KeyboardInterrupt
Keeper._wait = Keeper._interrupted = interrupted
"""


@engine_needed
def test_ctrl_c_that_is_not_seen_through_is_seen_to_by_another_process(lab: Project) -> None:
    """The third Ctrl-C, say: the command ends at once, the run with its true exit code."""
    script(lab, "toy.sh", "trap 'echo clean; exit 7' TERM INT; echo begun; while :; do sleep 0.1; done")
    done = run(lab, IMPATIENT)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False), done.stderr
    folder = latest(lab)[1]
    wait_for(lambda: not folder.lease.exists())
    record = folder.read()
    assert record.ended is not None
    assert (record.ended.exit_code, record.ended.reason) == (7, f"stopped by {user_name()} (Ctrl-C)")
    assert folder.output_log.read_text() == "begun\nclean\n"
    assert containers(lab) == []


@engine_needed
def test_a_stop_that_comes_after_the_end_has_not_stopped_anything(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE + "exit 3")
    folder = killed(lab, "tracking.enabled=false")
    (folder.outputs / "go").touch()
    engine, name = connect(), containers(lab)[0]
    wait_for(lambda: engine.exit(name) is not None)
    started = folder.read().started
    assert started is not None
    stopping.stop(folder, started, "`repro stop`", 1.0)
    repro("wait", folder.path.name)
    record = folder.read()
    assert record.ended is not None
    assert (record.state, record.ended.exit_code, record.ended.reason) == ("failed", 3, "exit code 3")


@engine_needed
def test_half_written_files_of_a_killed_writer_go_when_the_run_is_over(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE)
    folder = killed(lab, "tracking.enabled=false")
    halves = [folder.path / f".{path.name}.abcdefgh" for path in (folder.record, folder.stop)]
    for half in halves:
        half.write_text("{")
    (folder.outputs / "go").touch()
    repro("wait", folder.path.name)
    assert latest(lab)[0].state == "finished"
    assert [path.name for path in folder.path.glob(".*")] == []


@engine_needed
@pytest.mark.tracking
def test_a_half_written_note_of_a_killed_publisher_goes_with_the_next_one(lab: Project, repro: Repro) -> None:
    assert repro("run", "experiment=toy", "gpus=none", "tracking.wait=60").returncode == 0
    record, folder = latest(lab)
    (folder.path / ".tracking.json.abcdefgh").write_text("{")
    done = repro("sync", record.planned.run)
    assert done.returncode == 0, done.stderr
    assert list(folder.path.glob(".tracking.json.*")) == []


def test_a_temporary_folder_of_a_killed_process_goes_with_the_next_one(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from repro import scratch\n"
    code += "with scratch.folder('some-', Path(sys.argv[1])) as f: print(f, flush=True); time.sleep(600)"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in "12"
    ]
    try:
        places = [Path(process.stdout.readline().strip()) for process in processes]  # type: ignore[union-attr]
        (places[0] / "index").write_text("x")
        processes[0].kill()
        processes[0].wait()
        with scratch.folder("some-", tmp_path) as ours:
            assert sorted(tmp_path.iterdir()) == sorted([places[1], ours])
        assert list(tmp_path.iterdir()) == [places[1]]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_run_that_did_not_take_place_is_told_as_such(project: Project) -> None:
    shown = io.StringIO()
    folder = RunFolder(project.runs / "20261123-191500-toy-3f9c1a")
    assert life.conclusion(folder, Display(stream=shown)) == ExitCode.ENVIRONMENT
    assert "20261123-191500-toy-3f9c1a  no run took place" in shown.getvalue()


def test_ctrl_c_while_the_program_is_still_loaded_says_one_line(project: Project) -> None:
    code = (
        "import importlib.abc, sys\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'repro.run': raise KeyboardInterrupt\n"
        "from repro.__main__ import entry\n"
        "sys.meta_path.insert(0, Finder())\n"
        "entry()"
    )
    command = [sys.executable, "-c", code, "run", "experiment=toy"]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "repro: interrupted\n")
