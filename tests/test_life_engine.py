"""The life of runs from any shell, on a real engine: what a killed process leaves is taken over, and is true."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from repro.engines.engine import connect
from repro.project import Project, user_name
from repro.record import RunFolder, folders
from repro.running import lease
from repro.tracking import journal, tracking
from tests.conftest import script
from tests.test_run_engine import begun, containers, latest, on_a_terminal, start, wait_for

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
GATE = "echo begun; while [ ! -e /outputs/go ]; do sleep 0.05; done; "
ENTRY = "from repro.__main__ import entry; entry()"
QUIET = ("gpus=none", "tracking.enabled=false")


def run_detached(repro: Repro, *overrides: str) -> str:
    done = repro("run", "-d", "experiment=toy", "gpus=none", *overrides)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def command(project: Project, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ENTRY, *arguments],
        cwd=project.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def killed(lab: Project, *overrides: str) -> RunFolder:
    """A run whose command was killed in the middle."""
    process = start(lab, "experiment=toy", "gpus=none", *overrides)
    wait_for(lambda: begun(lab))
    process.kill()
    process.communicate()
    return latest(lab)[1]


def over(folder: RunFolder) -> bool:
    return not folder.lease.exists()


def test_a_detached_run_tells_its_id_and_goes_on_by_itself(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE + "echo over; exit 3")
    run = run_detached(repro, "tracking.enabled=false")
    record, folder = latest(lab)
    assert (run, record.state) == (record.planned.run, "running")
    wait_for(lambda: begun(lab))
    (folder.outputs / "go").touch()
    done = repro("wait", run)
    assert (done.returncode, "failed" in done.stderr) == (1, True)
    record = folder.read()
    assert (record.state, record.ended.exit_code) == ("failed", 3)  # type: ignore[union-attr]
    assert folder.output_log.read_text() == "begun\nover\n"
    assert containers(lab) == []


def test_logs_can_be_followed_from_any_shell(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE + "echo over")
    run = run_detached(repro, "tracking.enabled=false")
    process = command(lab, "logs", "-f", run)
    wait_for(lambda: begun(lab))
    (latest(lab)[1].outputs / "go").touch()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "begun\nover\n", "")


def test_logs_since_a_moment_and_the_last_lines(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "echo early; sleep 3; echo late; echo later")
    repro("run", "experiment=toy", *QUIET)
    assert repro("logs", "--since", "1h").stdout == "early\nlate\nlater\n"
    moment = latest(lab)[0].started.at.timestamp() + 1.5  # type: ignore[union-attr]
    assert repro("logs", "--since", f"{time.time() - moment:.1f}s").stdout == "late\nlater\n"
    assert repro("logs", "--since", "2099-01-01").stdout == ""
    assert repro("logs", "-n", "1").stdout == "later\n"
    bad = repro("logs", "--since", "yesterday")
    assert (bad.returncode, "neither a duration nor a time" in bad.stderr) == (2, True)


def test_stop_ends_a_run_and_says_who_did_it(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "trap 'echo clean; exit 0' TERM INT; echo begun; while :; do sleep 0.1; done")
    run = run_detached(repro, "tracking.enabled=false")
    wait_for(lambda: begun(lab))
    done = repro("stop")
    assert done.returncode == 0, done.stderr
    record, folder = latest(lab)
    assert record.ended is not None
    assert (record.planned.run, record.ended.reason) == (run, f"stopped by {user_name()} (`repro stop`)")
    assert folder.output_log.read_text() == "begun\nclean\n"
    assert containers(lab) == []
    again = repro("stop", run)
    assert (again.returncode, "killed" in again.stderr) == (0, True)
    nothing = repro("stop")
    assert (nothing.returncode, "no run is going on" in nothing.stderr) == (2, True)


def test_a_run_whose_command_was_killed_is_taken_over_by_the_next_one(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE + "for n in $(seq 200); do echo line $n; done; exit 4")
    folder = killed(lab, "tracking.enabled=false")
    assert folder.read().state == "running"
    assert len(containers(lab)) == 1
    shown = repro("show")
    assert shown.returncode == 0, shown.stderr
    assert "is kept again from now on" in shown.stderr
    assert not lease.unkept(folder)
    (folder.outputs / "go").touch()
    done = repro("wait", folder.path.name)
    assert done.returncode == 1, done.stderr
    record = folder.read()
    assert (record.state, record.ended.exit_code) == ("failed", 4)  # type: ignore[union-attr]
    assert folder.output_log.read_text().splitlines() == ["begun", *(f"line {n}" for n in range(1, 201))]
    assert containers(lab) == []


def test_a_run_that_ended_while_nobody_watched_gets_its_true_end(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE + "echo out; echo x > /outputs/x; sh -c 'kill -SEGV $$'")
    folder = killed(lab, "tracking.enabled=false")
    (folder.outputs / "go").touch()
    engine, name = connect(), containers(lab)[0]
    wait_for(lambda: engine.exit(name) is not None)
    done = repro("runs")
    assert "failed" in done.stdout, done.stderr
    record = folder.read()
    assert record.ended is not None
    assert record.ended.exit_code == 139
    assert "segmentation fault" in record.ended.reason
    assert {file.path for file in record.ended.outputs} == {"go", "x"}
    assert containers(lab) == []


COUNT = """echo begun
n=0
while [ ! -e /outputs/go ]; do repro-log step=$n loss=$n; n=$((n+1)); sleep 0.05; done
echo $n > /outputs/n"""


@pytest.mark.tracking
def test_metrics_of_a_run_go_on_without_a_gap_or_a_doubled_point_when_it_is_taken_over(
    lab: Project, repro: Repro
) -> None:
    script(lab, "toy.sh", COUNT)
    folder = killed(lab)
    time.sleep(1)
    process = command(lab, "attach", "--stop")  # takes it over
    wait_for(lambda: not lease.unkept(folder))
    time.sleep(1)
    (folder.outputs / "go").touch()
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert repro("sync").returncode == 0
    from mlflow import MlflowClient

    known = tracking.state(folder)
    assert known is not None
    client = MlflowClient(known.uri)
    points = client.get_metric_history(known.run, "loss")
    assert [point.step for point in points] == list(range(int((folder.outputs / "n").read_text())))
    assert client.get_run(known.run).info.status == "FINISHED"
    assert len(points) == sum(len(events.metrics) for events in journal.everything(folder))


@pytest.mark.parametrize("moment", ["planned", "created", "started"])
def test_a_command_killed_around_the_start_leaves_a_run_or_nothing(
    lab: Project, repro: Repro, moment: str, tmp_path: Path
) -> None:
    """The command kills itself at the given moment, as the machine would: nothing of it can tidy up."""
    script(lab, "toy.sh", "echo begun; sleep 0.5")
    die = "lambda: __import__('os').kill(__import__('os').getpid(), 9)"
    where = {
        "planned": f"Engine.create = lambda self, spec: ({die})()",
        "created": f"Engine.start = lambda self, container: ({die})()",
        "started": f"start = Engine.start; Engine.start = lambda self, container: (start(self, container), ({die})())",
    }
    imports = "import sys; from repro.engines.engine import Engine; from repro.run import main"
    code = f"{imports}; {where[moment]}; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, "experiment=toy", *QUIET], cwd=lab.root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(lease.open_runs(lab.runs))) == 1
    repro("runs")
    repro("wait")
    assert [folder.read().state for folder in folders(lab.runs)] == (["finished"] if moment == "started" else [])
    assert containers(lab) == []
    assert [path.name for path in lab.runs.iterdir() if path.is_dir() and not (path / "record.json").exists()] == []


def test_attach_leaves_the_run_when_its_reader_goes(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE + "echo over")
    run_detached(repro, "tracking.enabled=false")
    wait_for(lambda: begun(lab))
    process = command(lab, "attach")
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    assert (process.returncode, "detached; the run goes on" in err) == (0, True)
    assert latest(lab)[0].state == "running"
    process = command(lab, "attach", "--stop")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert latest(lab)[0].state == "killed"


@pytest.mark.parametrize(("answer", "state"), [("d", "running"), ("s", "killed")])
def test_ctrl_c_on_a_terminal_asks_what_is_meant(lab: Project, repro: Repro, answer: str, state: str) -> None:
    script(lab, "toy.sh", "trap 'exit 5' TERM INT; echo begun; while :; do sleep 0.1; done")
    run_detached(repro, "tracking.enabled=false")
    wait_for(lambda: begun(lab))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, "attach"],
        cwd=lab.root,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_own_the_terminal,  # noqa: PLW1509 - this process has no other threads that hold locks
    )
    os.close(theirs)
    _until(ours, b"begun")
    os.write(ours, b"\x03")
    _until(ours, b"to look on?")
    os.write(ours, answer.encode() + b"\n")
    process.wait(60)
    os.close(ours)
    assert latest(lab)[0].state == state
    repro("stop", "latest", "--now")


def _own_the_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _until(terminal: int, text: bytes) -> bytes:
    seen = b""
    end = time.monotonic() + 60
    while text not in seen:
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 1 << 16)
    return seen


def test_the_end_of_a_terminal_is_not_the_end_of_a_run(lab: Project) -> None:
    script(lab, "toy.sh", GATE + "echo over")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "repro.run", "experiment=toy", *QUIET],
        cwd=lab.root,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_own_the_terminal,  # noqa: PLW1509 - this process has no other threads that hold locks
    )
    os.close(theirs)
    wait_for(lambda: begun(lab))
    os.close(ours)  # the window is closed: SIGHUP, and nothing can be written any more
    time.sleep(1)
    (latest(lab)[1].outputs / "go").touch()
    process.wait(60)
    record, folder = latest(lab)
    assert (record.state, folder.output_log.read_text()) == ("finished", "begun\nover\n")
    assert process.returncode == 0


def test_wait_gives_up_in_time_and_the_run_goes_on(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE)
    run_detached(repro, "tracking.enabled=false")
    done = repro("wait", "--timeout", "0.5")
    assert (done.returncode, "is not over after 0.5 s" in done.stderr) == (3, True)
    assert latest(lab)[0].state == "running"
    assert repro("stop", "--now").returncode == 0


def test_what_is_removed_is_over_and_in_mlflow(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE)
    run = run_detached(repro)
    refused = repro("rm", run)
    assert (refused.returncode, "is not over" in refused.stderr) == (4, True)
    repro("stop", run, "--now")
    folder = latest(lab)[1]
    wait_for(lambda: tracking.complete(folder))
    assert repro("rm", run).returncode == 0
    assert folders(lab.runs) == []


def test_reap_finds_what_no_command_looks_after(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE + "echo over")
    lost = killed(lab, "tracking.enabled=false")
    shutil.rmtree(lost.path)  # by a user who tidies up
    kept = killed(lab, "tracking.enabled=false")
    dry = repro("reap", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert kept.path.name in dry.stdout
    assert f"repro-{lost.path.name}" in dry.stdout
    assert len(containers(lab)) == 2
    done = repro("reap")
    assert done.returncode == 0, done.stderr
    assert containers(lab) == [f"repro-{kept.path.name}"]
    (kept.outputs / "go").touch()
    repro("wait")
    assert kept.read().state == "finished"
    assert repro("reap").stdout == "nothing is left of any run\n"


def test_output_of_any_bytes_and_lines_of_any_length_arrive_as_they_were_written(lab: Project, repro: Repro) -> None:
    script(lab, "toy.py", f"import os\nos.write(1, {WRITTEN})")
    done = repro("run", "experiment=toy", "command=[python3,toy.py]", *QUIET)
    assert done.returncode == 0, done.stderr
    assert latest(lab)[1].output_log.read_bytes() == eval(WRITTEN)


WRITTEN = "bytes(range(256)) * 400 + b'\\n' + b'x' * 70_000 + b'\\n' + b'y' * 16384 + b'\\n\\r1%\\r2%\\nlast'"


def test_ten_megabytes_of_log_a_second_arrive_whole(lab: Project, repro: Repro) -> None:
    script(lab, "flood.py", FLOOD)
    done = repro("run", "experiment=toy", "command=[python3,flood.py]", *QUIET)
    assert done.returncode == 0, done.stderr
    written = b"".join(b"%098d\n" % number for number in range(FLOOD_LINES))
    assert latest(lab)[1].output_log.read_bytes() == written


FLOOD_LINES = 300_000  # of 99 bytes
FLOOD = f"""\
import sys, time
begun = time.monotonic()
for tenth in range(30):
    sys.stdout.write("".join("%098d\\n" % number for number in range(tenth * 10_000, (tenth + 1) * 10_000)))
    sys.stdout.flush()
    time.sleep(max(0.0, begun + (tenth + 1) / 10 - time.monotonic()))
assert 30 * 10_000 == {FLOOD_LINES}
"""


def test_whoever_stops_a_run_is_not_disturbed_by_who_keeps_it(lab: Project, repro: Repro) -> None:
    """The one gives it its time to end; the other looks every half a minute whether somebody asked."""
    script(lab, "slow.py", SLOW_END)
    run = run_detached(repro, "command=[python3,slow.py]", "tracking.enabled=false", "resources.stop_grace=1.0")
    wait_for(lambda: begun(lab))
    assert repro("stop", run, "--grace", "60").returncode == 0
    lines = latest(lab)[1].output_log.read_text().splitlines()
    # counted, not in order: which of two streams an engine hears first is open (16 of 60 ends under load came swapped)
    assert (lines.count("KeyboardInterrupt"), lines.count("clean")) == (1, 1), lines


SLOW_END = """\
import time
print("begun", flush=True)
try:
    time.sleep(1000)
finally:
    time.sleep(35)
    print("clean")
"""


def test_a_detached_run_whose_program_is_not_there_has_failed_and_says_so(lab: Project, repro: Repro) -> None:
    run = run_detached(repro, "command=[/nosuch]", "tracking.enabled=false")
    done = repro("wait", run)
    assert done.returncode == 1, done.stderr
    record, _folder = latest(lab)
    assert record.ended is not None
    assert record.state == "failed"
    assert "the image does not hold that program" in record.ended.reason
    assert containers(lab) == []


def test_a_run_in_a_folder_of_ones_choice_is_one_run(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE)
    run = run_detached(repro, f"hydra.run.dir={lab.runs}/mine", "tracking.enabled=false")
    assert [folder.path.name for folder in lease.open_runs(lab.runs)] == [run]
    done = repro("stop", "--now")
    assert done.returncode == 0, done.stderr
    assert repro("rm", run, run, "latest").returncode == 0
    assert folders(lab.runs) == []
    assert not (lab.runs / "mine").exists()


def test_a_run_that_nobody_can_keep_here_is_told_and_can_be_given_up(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE)
    folder = killed(lab, "tracking.enabled=false")
    holder = lease.holder(folder)
    assert holder is not None
    folder.lease.write_bytes(msgspec.json.encode(msgspec.structs.replace(holder, host="another machine")))
    done = repro("wait")
    assert (done.returncode, "was started on another machine" in done.stderr) == (3, True)
    assert "`repro rm --force RUN` gives it up" in done.stderr
    assert repro("rm", "latest").returncode == 4
    assert repro("rm", "latest", "--force").returncode == 0
    assert repro("reap").returncode == 0
    assert containers(lab) == []


def test_an_engine_that_has_lost_its_state_has_lost_the_run(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", GATE)
    folder = killed(lab, "tracking.enabled=false")
    connect().remove(containers(lab)[0])
    record = folder.read()
    assert record.started is not None
    started = msgspec.structs.replace(record.started, engine="of before")
    folder.write(msgspec.structs.replace(record, started=started))
    done = repro("wait")
    assert done.returncode == 3, done.stderr
    assert folder.read().state == "lost"


def test_a_shell_whose_terminal_has_gone_leaves_nothing(lab: Project, repro: Repro) -> None:
    process, terminal = on_a_terminal(lab, "shell", "experiment=toy")
    os.write(terminal, b"echo in$((20 + 1))side\n")
    _until(terminal, b"in21side")
    process.kill()  # nothing of it can tidy up
    process.wait()
    os.close(terminal)
    (name,) = containers(lab)
    assert name in repro("reap", "--dry-run").stdout
    assert repro("reap").returncode == 0
    assert containers(lab) == []


@pytest.mark.parametrize("wrong", ["99999999999d", "yesterday"])
def test_a_moment_that_is_none_is_bad_input(lab: Project, repro: Repro, wrong: str) -> None:
    repro("run", "experiment=toy", *QUIET)
    assert repro("logs", "--since", wrong).returncode == 2
    assert repro("logs", "-n", "0").stdout == ""
    assert repro("stop", "--grace", "-1", "latest").returncode == 2
