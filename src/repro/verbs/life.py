"""`repro logs, attach, wait, stop, rm, reap`: the life of runs, from any shell."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from repro import report
from repro.display import Display
from repro.errors import (
    BadInputError,
    EngineUnreachableError,
    EnvironmentUnfitError,
    ExitCode,
    RefusedError,
    ReproError,
)
from repro.project import Project
from repro.record import End, Record, RunFolder
from repro.verbs.imaging import Add

TAIL = 20  # lines of what was printed before, when a view begins
AGO = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|min|h|d)")
ENTRY = re.compile(r"(\d{13}) (\d+)\n")
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
WHICH = "run id, MLflow run id, a unique prefix, or latest"


def register(add: Add) -> None:
    """The verbs of this module."""
    command = add(logs, "logs", "what a run printed")
    command.add_argument("run", nargs="?", default="latest", help=WHICH)
    command.add_argument("-f", "--follow", action="store_true", help="go on until the run is over")
    command.add_argument("--since", metavar="WHEN", help="only what was printed since: 10m, 2h, or 2026-11-23T19:15:00")
    command.add_argument("-n", "--tail", type=int, metavar="N", help="only the last N lines")

    command = add(attach, "attach", "the live view of a run; Ctrl-C detaches, and leaves it running")
    command.add_argument("run", nargs="?", default="latest", help=WHICH)
    command.add_argument("--stop", action="store_true", help="let Ctrl-C stop the run, as it does with `repro run`")

    command = add(wait, "wait", "wait for the end of runs; the exit code is that of `repro run`")
    command.add_argument("run", nargs="*", default=["latest"], help=WHICH)
    command.add_argument("--all", action="store_true", help="every run that is not over")
    command.add_argument("--timeout", type=float, metavar="SECONDS", help="give up then: exit code 3")

    command = add(stop, "stop", "stop runs: a signal, then a grace time, then an end by force")
    command.add_argument("run", nargs="*", help=f"{WHICH}; without one, the only one that is not over")
    command.add_argument("--grace", type=float, metavar="SECONDS", help="in place of resources.stop_grace")
    command.add_argument("--now", action="store_true", help="no grace time")

    command = add(remove, "rm", "remove the folders of runs that are over")
    command.add_argument("run", nargs="+", help=WHICH)
    command.add_argument("--force", action="store_true", help="also what MLflow does not have yet")

    command = add(
        reap, "reap", "tidy up after commands that were killed: runs without a keeper, orphan containers", json=True
    )
    command.add_argument("--dry-run", action="store_true", help="only tell")


# logs ------------------------------------------------------------------------------------------------------------


def logs(args: argparse.Namespace, _display: Display) -> int:
    """What a run printed, byte for byte."""
    from repro.running import sweep
    from repro.tracking.lookup import find

    project = Project.find(Path.cwd())
    _record, folder = find(project, args.run)
    begin = 0
    if args.since:
        begin = offset(folder, moment(args.since, datetime.now(timezone.utc)))
    if args.tail is not None:
        begin = max(begin, tail(folder.output_log, args.tail))
    over = sweep.over(folder, project) if args.follow else lambda: True
    with contextlib.suppress(KeyboardInterrupt):  # enough seen: nothing happens to the run
        for block in _blocks(folder, over, begin):
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
    return ExitCode.OK


def _blocks(folder: RunFolder, over: Callable[[], bool], begin: int) -> Iterator[bytes]:
    from repro.running.pump import follow

    if not folder.output_log.is_file():
        if over():
            return
        folder.output_log.touch()
    yield from follow(folder.output_log, over, begin=begin)


def moment(text: str, now: datetime) -> datetime:
    """`10m` (ago) or a time as ISO 8601 writes it; without a zone, this machine's.

    Raises:
        BadInputError: neither.
    """
    try:
        if ago := AGO.fullmatch(text):
            return now - timedelta(seconds=float(ago[1]) * UNITS[ago[2]])
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise BadInputError(
            f"--since {text}: neither a duration nor a time", hints=["--since 10m, --since 2026-11-23T19:15:00"]
        ) from None


def offset(folder: RunFolder, since: datetime) -> int:
    """The byte of the log that was written then, to a second; the log's length if nothing came since."""
    wanted, last = since.timestamp() * 1000, (0, 0)
    for at, begin in _times(folder):
        if at >= wanted:
            return begin
        last = at, begin
    written = folder.output_log.stat() if folder.output_log.exists() else None
    if written is None or written.st_mtime * 1000 < wanted:
        return written.st_size if written else 0
    return last[1]


def _times(folder: RunFolder) -> Iterator[tuple[int, int]]:
    """When (ms) the log had how many bytes; a line may be torn where the disk was full."""
    with contextlib.suppress(FileNotFoundError), folder.output_times.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            if found := ENTRY.fullmatch(line):
                yield int(found[1]), int(found[2])


def tail(log: Path, lines: int) -> int:
    """The byte at which the last lines of a log begin."""
    if not log.is_file():
        return 0
    if lines <= 0:
        return log.stat().st_size
    with log.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        wanted = lines + 1  # the end of the line before them
        if position:
            file.seek(position - 1)
            wanted -= file.read(1) != b"\n"
        while position and wanted > 0:
            size = min(1 << 16, position)
            position -= size
            file.seek(position)
            block = file.read(size)
            while wanted > 0 and (end := block.rfind(b"\n")) >= 0:
                wanted -= 1
                block = block[:end]
                if wanted == 0:
                    return position + end + 1
    return 0


# attach, wait ----------------------------------------------------------------------------------------------------


def attach(args: argparse.Namespace, display: Display) -> int:
    """What a run prints, as it comes, and how it ended."""
    from repro.running import sweep
    from repro.tracking.lookup import find

    project = Project.find(Path.cwd())
    _record, folder = find(project, args.run)
    begin = tail(folder.output_log, TAIL)
    over = sweep.over(folder, project)
    while True:
        try:
            for block in _blocks(folder, over, begin):
                sys.stdout.buffer.write(block)
                sys.stdout.buffer.flush()
                begin += len(block)
            break
        except KeyboardInterrupt:
            choice = "stop" if args.stop else _asked(display)
            if choice == "detach":
                display.line(f"detached; the run goes on: `repro attach {folder.path.name}`")
                return ExitCode.OK
            if choice == "stop":
                _stop(folder, "Ctrl-C in `repro attach`", None, display)
    return conclusion(folder, display)


def _asked(display: Display) -> str:
    """What Ctrl-C is meant to do; where nobody can be asked, the run goes on."""
    if not sys.stdin.isatty():
        return "detach"
    display.line("")
    try:
        print(
            "[d]etach and leave it running, [s]top it, or [c]ontinue to look on? ", end="", file=sys.stderr, flush=True
        )
        answer = sys.stdin.readline().strip().lower()
    except KeyboardInterrupt:
        return "detach"
    return {"s": "stop", "stop": "stop", "c": "continue", "continue": "continue"}.get(answer, "detach")


def conclusion(folder: RunFolder, display: Display) -> int:
    """How a run ended, for a person and as an exit code."""
    if not folder.record.exists():
        display.line(
            f"{folder.path.name}  no run took place: its container was never started, and nothing is left of it"
        )
        return ExitCode.ENVIRONMENT
    record = folder.read()
    display.line(f"{record.planned.run}  {report.outcome(record)}")
    return exit_code(record)


def exit_code(record: Record) -> ExitCode:
    """What `repro run` says of such an end."""
    if record.ended is None or record.ended.end is End.FINISHED:
        return ExitCode.OK
    return ExitCode.ENVIRONMENT if record.ended.end is End.LOST else ExitCode.NO


def wait(args: argparse.Namespace, display: Display) -> int:
    """Wait until runs are over."""
    from repro.running import lease, sweep
    from repro.tracking.lookup import find

    project = Project.find(Path.cwd())
    wanted = lease.open_runs(project.runs) if args.all else [find(project, run)[1] for run in args.run]
    codes = [ExitCode.OK]
    until = time.monotonic() + (math.inf if args.timeout is None else args.timeout)
    for folder in wanted:
        if not sweep.wait(folder, project, seconds=until - time.monotonic()):
            raise EnvironmentUnfitError(
                f"run {folder.path.name} is not over after {args.timeout:g} s", hints=["it goes on: `repro attach`"]
            )
        codes.append(ExitCode(conclusion(folder, display)))
    return max(codes)


# stop ------------------------------------------------------------------------------------------------------------


def stop(args: argparse.Namespace, display: Display) -> int:
    """Stop runs, and wait until their records say so."""
    from concurrent.futures import ThreadPoolExecutor

    from repro.running import sweep
    from repro.tracking.lookup import find

    project = Project.find(Path.cwd())
    grace = 0.0 if args.now else args.grace
    if grace is not None and not 0 <= grace < math.inf:
        raise BadInputError(f"--grace {grace:g}: not a number of seconds", hints=["--grace 30, or --now"])
    wanted = [find(project, run)[1] for run in args.run] or [_only(project)]
    with ThreadPoolExecutor(max_workers=len(wanted)) as pool:  # each is given its time, and all of them the same
        asked = [pool.submit(_stop, each, "`repro stop`", grace, display) for each in wanted if each.lease.exists()]
    failed = [error for each in asked if (error := each.exception())]
    for folder in wanted if not failed else ():
        sweep.wait(folder, project)
        conclusion(folder, display)
    for error in failed:
        if not isinstance(error, ReproError) or error is failed[-1]:
            raise error
        display.error(error)
    return ExitCode.OK


def _only(project: Project) -> RunFolder:
    from repro.running import lease

    found = lease.open_runs(project.runs)
    if len(found) == 1:
        return found[0]
    if not found:
        raise BadInputError("no run is going on in this project", hints=["`repro runs` lists all"])
    raise BadInputError(
        f"{len(found)} runs are going on: which?",
        evidence=[folder.path.name for folder in found],
        hints=["`repro stop RUN`, also several"],
    )


def _stop(folder: RunFolder, how: str, grace: float | None, display: Display) -> None:
    """Ask the container to end. Who keeps the run sees to the record.

    Raises:
        EngineUnreachableError: its engine does not answer; the wish is noted, and is seen to when it is back.
        BadInputError: there is no container yet.
    """
    from repro.running import keeping, stopping

    record = folder.read()
    if record.started is None:
        raise BadInputError(
            f"run {folder.path.name} is still being started", hints=["try again in a moment", "`repro reap`"]
        )
    seconds = keeping.resources(record).stop_grace if grace is None else grace
    display.line(f"stopping {folder.path.name} (up to {seconds:g} s)")
    try:
        stopping.stop(folder, record.started, how, seconds)
    except EngineUnreachableError as error:
        raise EngineUnreachableError(
            error.what, evidence=error.evidence, hints=["the run is stopped when its engine is back", *error.hints]
        ) from error


# rm, reap --------------------------------------------------------------------------------------------------------


def remove(args: argparse.Namespace, display: Display) -> int:
    """Remove run folders. What MLflow has of them stays there."""
    from repro.running import lease
    from repro.tracking import tracking
    from repro.tracking.lookup import find

    project = Project.find(Path.cwd())
    chosen = {folder.path.resolve(): record for record, folder in (find(project, run) for run in args.run)}
    for place, record in chosen.items():
        folder = RunFolder(place)
        if folder.lease.exists() and not (args.force and lease.unkept(folder)):
            raise RefusedError(f"run {record.planned.run} is not over", hints=[f"`repro stop {record.planned.run}`"])
        if not args.force and record.planned.tracking_uri and not tracking.complete(folder):
            raise RefusedError(
                f"MLflow does not have all of run {record.planned.run}",
                hints=[f"`repro sync {record.planned.run}`, then again", "--force removes the only copy"],
            )
    for place, record in chosen.items():
        link = project.runs / record.planned.run
        if link.is_symlink():
            link.unlink()
        try:
            shutil.rmtree(place, onerror=_opened)
        except OSError as error:
            raise EnvironmentUnfitError(
                f"{place} cannot be removed, or not all of it", evidence=[str(error)], hints=[f"sudo rm -r {place}"]
            ) from error
        display.line(f"removed  {place}")
    return ExitCode.OK


def _opened(remove: Callable[[str], object], path: str, _failure: object) -> None:
    """Try once more, with the folder around it open to us: an experiment may have closed it."""
    Path(path).parent.chmod(0o700)
    if os.path.isdir(path):  # noqa: PTH112 - it was what could not be listed
        Path(path).chmod(0o700)
        shutil.rmtree(path)
    else:
        remove(path)


def reap(args: argparse.Namespace, display: Display) -> int:
    """Take over what nobody keeps, and remove what belongs to no run."""
    from repro.cleaning import reaping
    from repro.engines.engine import connect

    project = Project.find(Path.cwd())
    engine = connect()
    found = reaping.look(project, engine)
    if not args.dry_run:
        with display.step("reap") as step:
            reaping.do(found, project, engine, step.say)
            step.detail = report.many(len(found), "leftover")
    if args.json:
        print(report.as_json(found))
    elif found:
        print(report.table(("WHAT", "NAME", "WHY"), [(each.kind, each.name, each.why) for each in found]))
    else:
        print("nothing is left of any run")
    return ExitCode.OK
