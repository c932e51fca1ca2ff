"""Many cases on a few stages at once, and what to say of them."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from tests.faults.cases import FAULTS, Case
from tests.faults.checks import meet, violations
from tests.faults.stage import Stage, stage
from tests.faults.trial import Result, Trial

LAST = 3000  # characters of each piece of evidence


def run(chosen: Sequence[Case], base: str, workers: int, keep: Path, say: Callable[[str], None]) -> Iterator[Result]:
    """Every case once, each worker on a stage of its own. The run folders of violations are kept below `keep`."""
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in chosen:
        waiting.put(case)
    results: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        try:
            with stage(base) as here:
                warm_up(here)
                while not stopped.is_set():
                    try:
                        case = waiting.get_nowait()
                    except queue.Empty:
                        return
                    results.put(one(here, case, keep, say))
        except BaseException as error:
            results.put(error)

    threads = [threading.Thread(target=work) for _ in range(min(workers, len(chosen)))]
    for thread in threads:
        thread.start()
    try:
        for _ in chosen:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def warm_up(here: Stage) -> None:
    """Build the image and make both stores, so that faults strike runs and nothing else."""
    for store, uri in (("sqlite", ()), ("http", (f"tracking.uri={here.server.uri}",))):
        here.enter(f"warm-up-{store}", small=False)
        code = here.call("run", "run", "experiment=steps", "params.steps=5", "tracking.wait=60", *uri)
        if code != 0:
            raise AssertionError(Path(here.case, "run.err").read_text())
        meet(here, store)


def one(here: Stage, case: Case, keep: Path, say: Callable[[str], None]) -> Result:
    """A case from its start to its checks; nothing of it disturbs the next."""
    trial = Trial(here, case)
    try:
        trial.go()
        found = violations(trial)
    except Exception as error:  # a mistake of the suite's is told as what it is, and the others go on
        found = [f"the suite itself failed: {type(error).__name__}: {error}"]
    result = _result(trial, found)
    if found:
        say(_evidence(trial, result))
        _keep(trial, keep, say)
    _sweep(trial)
    return result


def _result(trial: Trial, found: list[str]) -> Result:
    run, end, seconds, after_end = "", "none", None, None
    with contextlib.suppress(Exception):  # whatever is there instead of a record is among the violations
        if record := trial.record():
            run, end = record.planned.run, record.state
            if record.ended and trial.final_at:
                seconds = max(0.0, trial.final_at - trial.struck_at)
                after_end = min(seconds, max(0.0, trial.final_at - record.ended.at.timestamp()))
    return Result(
        case=trial.case,
        struck=trial.struck,
        run=run,
        end=end,
        seconds=seconds,
        after_end=after_end,
        violations=tuple(found),
    )


def _evidence(trial: Trial, result: Result) -> str:
    """All that helps to see what went wrong."""
    case, folder = trial.case, trial.folder
    lines = [f"VIOLATION  seed {case.seed} case {case.index}: {case.title}", f"  run {result.run}, {result.end}"]
    lines += [f"  - {each}" for each in result.violations]
    logs = trial.stage.project.scratch / "logs"
    pieces = {f"{name} said": trial.text(name) for name in ("run", "runs", "stop", "wait", "sync")}
    for name in ("keeper.log", "mlflow.log"):
        pieces[name] = _since(logs / name, trial.log_begins.get(name, 0))
    if folder:
        for path in (folder.stop, folder.lease, folder.tracking):
            if path.exists():
                pieces[path.name] = path.read_text(errors="replace")
        with contextlib.suppress(Exception):
            record = folder.read()
            pieces["record"] = f"{record.started}\n{record.ended}"
    for title, text in pieces.items():
        if text.strip():
            lines += [f"  {title}:", *(f"    | {line}" for line in text[-LAST:].splitlines())]
    lines.append(f"  struck at {datetime.fromtimestamp(trial.struck_at):%H:%M:%S.%f}")
    return "\n".join(lines)


def _since(log: Path, begin: int) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace")


def _keep(trial: Trial, keep: Path, say: Callable[[str], None]) -> None:
    place = keep / f"{trial.case.seed}-{trial.place.name}"
    shutil.copytree(trial.place, place / "commands", dirs_exist_ok=True)
    for folder in trial.folders:
        shutil.copytree(folder.path, place / folder.path.name, dirs_exist_ok=True)
    for name in ("dockerd.log",):
        shutil.copy(trial.stage.engine.folder / name, place / name)
    say(f"  kept in {place}")


def _sweep(trial: Trial) -> None:
    """What a violation has left must not disturb the next case; finished runs are kept by nobody."""
    for process in trial.stage.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    with contextlib.suppress(Exception):
        for container in trial.stage.containers():
            container.remove(force=True)
    (trial.stage.small / "filler").unlink(missing_ok=True)
    for folder in trial.folders:
        shutil.rmtree(folder.path, ignore_errors=True)


def table(results: Sequence[Result]) -> str:
    """Per fault: runs, strikes, ends, violations, median seconds."""
    rows = [("FAULT", "RUNS", "STRUCK", "ENDS", "VIOLATIONS", "FAULT TO RECORD", "END TO RECORD")]
    for row in summary(results):
        ends = ", ".join(f"{count} {end}" for end, count in row["ends"].items())
        cells = (row["fault"], row["runs"], row["struck"], ends, row["violations"], row["seconds"], row["after_end"])
        rows.append(tuple("" if cell is None else str(cell) for cell in cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def summary(results: Sequence[Result]) -> list[dict[str, object]]:
    """The table as values; the last row is all of it."""
    names = [name for name in FAULTS if any(result.case.fault == name for result in results)]
    groups = [(FAULTS[name].words, [each for each in results if each.case.fault == name]) for name in names]
    rows = []
    for words, group in [*groups, ("all", list(results))]:
        seconds = [each.seconds for each in group if each.seconds is not None]
        after = [each.after_end for each in group if each.after_end is not None]
        rows.append(
            {
                "fault": words,
                "runs": len(group),
                "struck": sum(each.struck for each in group),
                "ends": dict(Counter(each.end for each in group).most_common()),
                "violations": sum(bool(each.violations) for each in group),
                "seconds": round(statistics.median(seconds), 1) if seconds else None,
                "after_end": round(statistics.median(after), 1) if after else None,
            }
        )
    return rows
