"""What must hold after every fault. Each check yields sentences about what does not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from repro.record import End, Ended, Record, RunFolder
from repro.running.stopping import stop_request
from tests.faults.cases import FAULTS, FULL, HANDS, INTERRUPTED, OWN, STOPPED
from tests.faults.stage import Stage
from tests.faults.trial import Trial

UNHEARD = "its engine was away when it ended"
LINE = re.compile(r"^line (\d+)$", re.MULTILINE)
STEP = re.compile(r"^step (\d+)$", re.MULTILINE)
CLOCK = timedelta(seconds=0.1)
SIGNALLED = (INTERRUPTED, 130, 137, 143)
STATUS = {"finished": "FINISHED", "killed": "KILLED", "failed": "FAILED", "lost": "FAILED"}
EXITS = {"finished": {0}, "failed": {1}, "killed": {1, 130}, "lost": {3}}


def violations(trial: Trial) -> list[str]:
    """All that does not hold."""
    found = list(trial.complaints)
    for check in (_one_run_or_none, _end, _output, _points, _mlflow, _command, _nothing_left):
        found += check(trial)
    return found


def _one_run_or_none(trial: Trial) -> Iterator[str]:
    folders = trial.folders
    if len(folders) > 1:
        yield f"{len(folders)} run folders: {[folder.path.name for folder in folders]}"
    for folder in folders:
        if not folder.record.exists():
            yield f"{folder.path} has no record: {sorted(path.name for path in folder.path.iterdir())}"
    if not folders and not (FAULTS[trial.case.fault].prevents and trial.case.before_start):
        yield "there is no run"


# the end ------------------------------------------------------------------------------------------------------------


def _end(trial: Trial) -> Iterator[str]:
    record = trial.record()
    if record is None:
        return
    if record.ended is None:
        yield f"its record is not final: {record.state}"
    elif not _may_end(trial, record.ended):
        yield (
            f"such an end is not true: {record.state}, exit code {record.ended.exit_code} ({record.ended.reason}), "
            f"while the experiment noted {trial.truth()[-2:]}"
        )
    elif not record.ended.reason:
        yield "its end has no reason"


def _may_end(trial: Trial, ended: Ended) -> bool:
    kind, truth = FAULTS[trial.case.fault].ends, trial.truth()
    if _ended_without_engine(trial) and (ended.end, ended.exit_code) == (End.LOST, None):
        return UNHEARD in ended.reason
    if _ended_without_engine(trial) and trial.killed and ended.exit_code == 255:
        return True  # Docker does not know, and nobody of ours was there to see that it was away
    stop = stop_request(trial.folder) if trial.folder else None
    own = End.FAILED if trial.case.code else End.FINISHED
    if (ended.end, ended.exit_code) == (own, trial.case.code):
        in_time = stop is None or ended.at < stop.at + CLOCK
        return in_time and ("done" in truth or kind == FULL)
    if trial.case.fault == "restart-engine" and trial.case.before_start and ended.end is End.KILLED:
        # Docker ends what it is just about to start, when it is stopped, with its stop signal or with SIGTERM
        return ended.exit_code in (130, 143) and not truth
    if kind == STOPPED and ended.end is End.KILLED and stop is not None:
        possible = ended.exit_code in SIGNALLED or (ended.exit_code == trial.case.code and "done" in truth)
        return possible and stop.at <= ended.at + CLOCK
    if kind == HANDS and ended.end is End.KILLED:
        return ended.exit_code == 137
    if kind == HANDS and trial.case.fault == "docker-rm" and ended.end is End.LOST:
        return ended.exit_code is None
    if kind == FULL:
        return (ended.end, ended.exit_code) == (End.FAILED, 1) and "No space left" in _log(trial) + ended.reason
    return False


def _is_own(trial: Trial, record: Record) -> bool:
    kind = FAULTS[trial.case.fault].ends
    if kind == OWN:
        return record.ended is not None and record.ended.exit_code == trial.case.code
    return kind != FULL and (record.ended is not None and record.state in ("finished", "failed"))


# what it printed and logged -----------------------------------------------------------------------------------------


def _log(trial: Trial) -> str:
    folder = trial.folder
    return folder.output_log.read_text() if folder and folder.output_log.exists() else ""


def _steps(trial: Trial) -> int:
    return len(STEP.findall("\n".join(trial.truth())))


def _output(trial: Trial) -> Iterator[str]:
    record = trial.record()
    if record is None:
        return
    text, steps = _log(trial), _steps(trial)
    lines = [int(number) for number in LINE.findall(text)]
    if lines != list(range(len(lines))) and FAULTS[trial.case.fault].ends != FULL:
        yield f"its log has gaps or repetitions: {_jumps(lines)}"
    if lines != sorted(set(lines)):
        yield f"its log repeats lines: {_jumps(lines)}"
    if _is_own(trial, record) and text != "".join(f"line {number}\n" for number in range(trial.case.steps)):
        away = _ended_without_engine(trial)
        if away and not trial.killed and record.ended and UNHEARD not in record.ended.reason:
            yield f"its engine was away when it ended and has dropped output: nobody says so: {record.ended.reason}"
        if not away:
            yield f"its log is not what it printed: {len(lines)} lines, {len(text)} bytes, ends with {text[-40:]!r}"
    elif FAULTS[trial.case.fault].ends == STOPPED and len(lines) not in (steps, steps + 1):
        yield f"its log has {len(lines)} lines, but it logged {steps} steps"
    elif len(lines) > steps + 1:
        yield f"its log has {len(lines)} lines, but only {steps} steps were taken"


def _ended_without_engine(trial: Trial) -> bool:
    """Docker drops what a container printed while its daemon was away, unless it runs on when it is back."""
    folder, away = trial.folder, trial.stage.away
    if folder is None or away is None or "done" not in trial.truth():
        return False
    return away[0] - 0.5 < (folder.outputs / "truth").stat().st_mtime < away[1]


def _jumps(numbers: list[int]) -> str:
    jumps = [f"{a} then {b}" for a, b in zip([-1, *numbers], numbers, strict=False) if b != a + 1]
    return ", ".join(jumps[:5]) or "none"


def _points(trial: Trial) -> Iterator[str]:
    record, steps = trial.record(), _steps(trial)
    if record is None:
        return
    runs = _mlflow_runs(trial)
    if len(runs) != 1:
        yield f"{len(runs)} runs in MLflow"
        return
    history = client(trial.stage, trial.case.store).get_metric_history(runs[0].info.run_id, "value")
    found = sorted((point.step, point.value) for point in history)
    if found != [(step, step * 0.25 + 1) for step in range(len(found))]:
        yield f"its points in MLflow: {_jumps([step for step, _value in found])} ({len(found)}, {steps} were logged)"
    whole = _is_own(trial, record)
    if len(found) not in ((steps,) if whole else (steps, steps + 1)):  # it may have been killed between point and truth
        yield f"{len(found)} points in MLflow, {steps} were logged"
    if whole and steps != trial.case.steps:
        yield f"{steps} steps of {trial.case.steps}"
    checkpoints = len(client(trial.stage, trial.case.store).get_metric_history(runs[0].info.run_id, "checkpoint"))
    if "checkpoint" in trial.truth() and checkpoints != 1:
        yield f"{checkpoints} checkpoints in MLflow, 1 was logged"


# MLflow -------------------------------------------------------------------------------------------------------------


def client(stage: Stage, store: str) -> Any:
    """MLflow's own."""
    from mlflow import MlflowClient

    if store not in stage.clients:
        uri = stage.server.uri if store == "http" else f"sqlite:///{stage.project.store}"
        stage.clients[store] = MlflowClient(uri)
    return stage.clients[store]


def meet(stage: Stage, store: str) -> None:
    """What a store holds now is of no case."""
    stage.known.update(run.info.run_id for run in _active(stage, store))


def _active(stage: Stage, store: str) -> list[Any]:
    """Every run of the store that is not deleted."""
    asked = client(stage, store)
    experiment = asked.get_experiment_by_name("steps")
    return list(asked.search_runs([experiment.experiment_id], max_results=50_000)) if experiment else []


def _mlflow_runs(trial: Trial) -> list[Any]:
    """Those of this case."""
    name = trial.folder.path.name if trial.folder else ""
    return [run for run in _active(trial.stage, trial.case.store) if run.data.tags.get("run") == name]


def _mlflow(trial: Trial) -> Iterator[str]:
    known = trial.stage.known
    new = [run for run in _active(trial.stage, trial.case.store) if run.info.run_id not in known]
    known.update(run.info.run_id for run in new)
    record = trial.record()
    if record is None:
        if new:
            yield f"MLflow has a run although none took place: {new[0].data.tags.get('run')}"
        return
    if [run.data.tags.get("run") for run in new] != [record.planned.run]:
        yield f"new in MLflow: {[run.data.tags.get('run') for run in new]}"
        return
    (run,), ended = new, record.ended
    said = (run.info.status, run.data.tags.get("ended"), run.data.tags.get("exit_code"))
    code = None if ended is None or ended.exit_code is None else str(ended.exit_code)
    if said != (STATUS.get(record.state), record.state, code):
        yield f"MLflow says {said} of a run that is {record.state}, exit code {code}"
    files = {each.path for each in client(trial.stage, trial.case.store).list_artifacts(run.info.run_id)}
    if not {"record.json", "config.yaml", "logs"} <= files:
        yield f"artifacts in MLflow: {sorted(files)}"


# what the user was told, what is left --------------------------------------------------------------------------------


def _command(trial: Trial) -> Iterator[str]:
    """The exit code of `repro run`, if it was left to end by itself."""
    code, record, text = trial.command_code, trial.record(), trial.text("run")
    for name in ("run", "wait", "sync", "stop", "runs"):
        said = trial.text(name)
        # Python itself was still starting, and none of ours had begun
        early = trial.case.before_start and said.rstrip().endswith("KeyboardInterrupt") and "/repro/" not in said
        if re.search(r"^Traceback", said, re.MULTILINE) and not early:
            yield f"a command ended with a traceback: {name}"
    if code is None:
        return
    if record is None or record.ended is None:
        expected = {3, 130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP}
    elif trial.case.foreground:
        expected = EXITS.get(record.state, set())
        if trial.struck and FAULTS[trial.case.fault].ends == STOPPED and trial.case.fault != "stop":
            expected |= {130, -signal.SIGINT, -signal.SIGTERM}  # it was interrupted, though the run was over
        if "the engine went away and did not come back" in text:
            expected = {3}
    else:
        expected = {0}
    if code not in expected:
        yield f"`repro run` exits with {code}: {text[-600:]}"


def _nothing_left(trial: Trial) -> Iterator[str]:
    stage = trial.stage
    for container in stage.containers():
        yield f"container {container.name} is left, {container.status}"
    for process in stage.processes():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            yield f"process {process} is left: {command}"
    for folder in trial.folders:
        yield from _files_left(folder)
    yield from _mounts_left(stage)
    # what a killed command leaves for a moment is removed by the next that runs something
    temporary = set(stage.temporary_files())
    if left := temporary & trial.temporary if trial.killed else temporary:
        yield f"temporary files are left: {sorted(map(str, left))}"
    for lock in stage.project.root.rglob("*.lock"):
        if lock.is_file() and _is_held(lock):
            yield f"{lock} is held"


def _files_left(folder: RunFolder) -> Iterator[str]:
    usual = {".gitignore", ".tracking.lock"}
    left = [path for path in folder.path.rglob(".*") if path.name not in usual]
    if left:
        yield f"left in the run folder: {[str(path.relative_to(folder.path)) for path in left]}"
    if _is_held(folder.path / ".tracking.lock"):
        yield "its place in MLflow is held by somebody"


def _is_held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _mounts_left(stage: Stage) -> Iterator[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [point for point in points if point.startswith((f"{stage.folder}/", f"{stage.engine.folder}/"))]
    usual = {str(stage.small), f"{stage.engine.folder}/data"}
    if left := [point for point in below if point not in usual and "/exec/netns/" not in point]:
        yield f"mounts are left: {left}"
