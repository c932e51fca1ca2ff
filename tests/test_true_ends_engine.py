"""Each way in which a run can end, brought about for real: the record tells it apart, and by whose doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from repro.engines.engine import connect
from repro.project import Project
from repro.record import Ended, RunFolder
from repro.running.keeping import BOOT
from tests.conftest import script
from tests.second_engine import require_root, second_engine
from tests.test_life_engine import ENTRY, QUIET, killed, run_detached
from tests.test_run_engine import begun, containers, latest, start, wait_for

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
FOREVER = "echo begun; while :; do sleep 0.1; done"


def ended(folder: RunFolder) -> Ended:
    wait_for(lambda: not folder.lease.exists())
    found = folder.read().ended
    assert found is not None
    return found


def test_a_kill_through_the_engine_is_told_from_one_from_outside(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", FOREVER)
    run_detached(repro, "tracking.enabled=false")
    wait_for(lambda: begun(lab))
    connect().kill(containers(lab)[0])
    end = ended(latest(lab)[1])
    assert (end.end.value, end.exit_code) == ("killed", 137)
    assert "ended by SIGKILL that came through its engine" in end.reason

    run_detached(repro, "tracking.enabled=false")
    wait_for(lambda: begun(lab))
    require_root()
    pid = connect().client.api.inspect_container(containers(lab)[0])["State"]["Pid"]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()  # of the container's init
    os.kill(int(children[0]), signal.SIGKILL)
    end = ended(latest(lab)[1])
    assert (end.end.value, end.exit_code) == ("killed", 137)
    assert "ended by SIGKILL from outside, not through its engine" in end.reason


@pytest.mark.parametrize("code", [0, 3])
def test_memory_that_runs_out_is_told_also_when_the_command_goes_on(lab: Project, repro: Repro, code: int) -> None:
    script(lab, "toy.sh", f"python3 -c \"x = 'a' * (1 << 30)\"; echo went on; exit {code}")
    done = repro("run", "experiment=toy", "resources.memory=64m", *QUIET)
    record, folder = latest(lab)
    assert record.ended is not None
    assert (done.returncode, record.ended.end.value, record.ended.exit_code) == (1, "oom", code), done.stderr
    assert "out of memory at 64 MiB (a process in it was killed" in done.stderr
    assert "raise resources.memory" in done.stderr
    assert "went on" in folder.output_log.read_text()


@pytest.mark.parametrize(
    ("signal_", "says"), [("SEGV", "segmentation fault"), ("BUS", "raise resources.shm"), ("ILL", "another CPU")]
)
def test_a_crash_comes_with_its_usual_cause(lab: Project, repro: Repro, signal_: str, says: str) -> None:
    script(lab, "toy.sh", f"kill -{signal_} $$")
    done = repro("run", "experiment=toy", *QUIET)
    assert done.returncode == 1
    assert latest(lab)[0].state == "failed"
    assert says in done.stderr


def test_a_container_that_vanishes_while_nobody_watches_is_lost(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", FOREVER)
    folder = killed(lab, "tracking.enabled=false")
    connect().remove(containers(lab)[0])
    done = repro("wait")
    assert done.returncode == 3, done.stderr
    end = ended(folder)
    assert (end.end.value, end.exit_code) == ("lost", None)
    assert "its container is gone" in end.reason


def test_a_restart_of_the_machine_is_told(lab: Project, repro: Repro, tmp_path: Path) -> None:
    """The engine and its containers die at once, and another boot id is seen: in a mount namespace of the command's."""
    require_root()
    script(lab, "toy.sh", FOREVER)
    folder = killed(lab, "tracking.enabled=false")
    connect().kill(containers(lab)[0])
    other = tmp_path / "boot_id"
    other.write_text("11111111-2222-3333-4444-555555555555\n")
    command = f'mount --bind "{other}" {BOOT} && exec "{sys.executable}" -c "{ENTRY}" wait'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command], cwd=lab.root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "lost" in done.stderr
    assert "the machine was restarted while it ran" in ended(folder).reason
    assert containers(lab) == []


def test_a_stop_that_was_asked_for_is_carried_out_by_whoever_comes_next(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", FOREVER)
    process = start(lab, "experiment=toy", "resources.stop_grace=1.0", *QUIET)
    wait_for(lambda: begun(lab))
    folder = latest(lab)[1]
    process.send_signal(signal.SIGINT)
    wait_for(folder.stop.exists)
    process.kill()  # before it could do it, or in the middle of it
    process.communicate()
    repro("wait")
    end = ended(folder)
    assert end.end.value == "killed"
    assert "(Ctrl-C)" in end.reason
    assert containers(lab) == []


def test_an_engine_that_ends_its_containers_is_told(lab: Project, repro: Repro, debian_base: str) -> None:
    with second_engine(gpus=None) as engine:
        engine.copy_image(debian_base)
        script(lab, "toy.sh", "trap 'exit 143' TERM INT; " + FOREVER)
        run = repro("run", "-d", "experiment=toy", *QUIET, DOCKER_HOST=engine.url)
        assert run.returncode == 0, run.stderr
        wait_for(lambda: begun(lab))
        engine.stop()  # as for an upgrade
        folder = latest(lab)[1]
        assert folder.lease.exists()  # nothing is certain yet
        engine.start()
        end = ended(folder)
        assert end.end.value == "killed"
        assert "its engine" in end.reason


@pytest.mark.parametrize("live", [True, False])
def test_a_run_goes_on_while_its_engine_is_dead_and_is_taken_over_after(
    lab: Project, repro: Repro, debian_base: str, live: bool
) -> None:
    """kill -9 of the daemon and of the command that kept the run, in the middle of a stream of lines."""
    with second_engine(gpus=None, options={"live-restore": live}) as engine:
        engine.copy_image(debian_base)
        script(lab, "toy.sh", "echo begun; for n in $(seq 60); do echo line $n; sleep 0.1; done; exit 4")
        process = start(lab, "experiment=toy", *QUIET, DOCKER_HOST=engine.url)
        wait_for(lambda: begun(lab))
        engine.kill()
        process.kill()
        process.communicate()
        engine.start()
        done = repro("wait")
        record, folder = latest(lab)
        assert done.returncode == 1, done.stderr
        lines = folder.output_log.read_text().splitlines()
        expected = ["begun", *(f"line {n}" for n in range(1, 61))]
        if live:
            assert (record.state, record.ended.exit_code) == ("failed", 4)  # type: ignore[union-attr]
            assert lines == expected
        else:  # it ends what it finds running
            assert record.state == "killed"
            assert lines == expected[: len(lines)]


def test_a_suspended_engine_costs_nothing(lab: Project, repro: Repro, debian_base: str) -> None:
    with second_engine(gpus=None) as engine:
        engine.copy_image(debian_base)
        script(lab, "toy.sh", "echo begun; for n in $(seq 20); do echo line $n; sleep 0.1; done; exit 4")
        process = start(lab, "experiment=toy", *QUIET, DOCKER_HOST=engine.url)
        wait_for(lambda: begun(lab))
        engine.signal(signal.SIGSTOP)
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.communicate(timeout=4)
        finally:
            engine.signal(signal.SIGCONT)
        process.communicate(timeout=60)
        assert process.returncode == 1
        record, folder = latest(lab)
        assert (record.state, record.ended.exit_code) == ("failed", 4)  # type: ignore[union-attr]
        assert folder.output_log.read_text().splitlines() == ["begun", *(f"line {n}" for n in range(1, 21))]


def test_a_container_that_is_paused_goes_on_where_it_was(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "echo begun; for n in $(seq 20); do echo line $n; sleep 0.1; done; exit 4")
    run_detached(repro, "tracking.enabled=false")
    wait_for(lambda: begun(lab))
    api = connect().client.api
    api.pause(containers(lab)[0])
    assert repro("wait", "--timeout", "3").returncode == 3
    assert latest(lab)[0].state == "running"
    api.unpause(containers(lab)[0])
    assert repro("wait").returncode == 1
    record, folder = latest(lab)
    assert (record.state, record.ended.exit_code) == ("failed", 4)  # type: ignore[union-attr]
    assert folder.output_log.read_text().splitlines() == ["begun", *(f"line {n}" for n in range(1, 21))]


def test_a_stop_while_the_engine_is_away_is_carried_out_when_it_is_back(lab: Project, debian_base: str) -> None:
    with second_engine(gpus=None, options={"live-restore": True}) as engine:
        engine.copy_image(debian_base)
        script(lab, "toy.sh", "trap 'echo clean; exit 0' INT; " + FOREVER)
        process = start(lab, "experiment=toy", *QUIET, DOCKER_HOST=engine.url)
        wait_for(lambda: begun(lab))
        engine.kill()
        process.send_signal(signal.SIGINT)
        folder = latest(lab)[1]
        wait_for(folder.stop.exists)
        engine.start()
        process.communicate(timeout=60)
        assert process.returncode == 130
        end = ended(folder)
        assert (end.end.value, "(Ctrl-C)" in end.reason) == ("killed", True)
        assert folder.output_log.read_text() == "begun\nclean\n"
