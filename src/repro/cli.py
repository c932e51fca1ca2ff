"""`repro VERB`: parse, wire, print, exit. A verb is one function that reads like what it does.

Nothing heavy is imported before a verb needs it: `repro rebuild --if-changed` answers in a tenth of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from repro import __version__, report, results
from repro.display import Display, guarded
from repro.errors import BadInputError, ExitCode
from repro.project import Project
from repro.record import folders
from repro.tracking.lookup import find
from repro.verbs import attesting, bundling, comparing, imaging, life, locking, reproducing, sharing, verifying


def _run(arguments: Sequence[str]) -> int:
    from repro import run

    return run.main(arguments)


def main(arguments: Sequence[str]) -> int:
    """Do what a verb says; the exit code."""
    if arguments and arguments[0] == "run":  # Hydra's flags and ours share that line: `run` parses it itself
        return guarded(Display(), lambda: _run(arguments[1:]))
    parsed = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
    display = Display(verbose=getattr(parsed, "verbose", False))
    if parsed.verb in (runs, show, sync):  # those of `life` do it for the runs that they are asked for
        _true_again(display)
    return guarded(display, lambda: parsed.verb(parsed, display))


def parser() -> argparse.ArgumentParser:
    """Every verb with its arguments."""
    top = argparse.ArgumentParser(
        prog="repro", description="Run an experiment in a container named by its content, and get any old run back."
    )
    top.add_argument("--version", action="version", version=f"repro {__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")
    verbs.add_parser("run", help="run an experiment: repro run experiment=NAME [overrides] [-m]; --help is Hydra's")

    def add(verb: imaging.Verb, name: str, text: str, *, json: bool = False) -> argparse.ArgumentParser:
        command = verbs.add_parser(name, help=text, description=text)
        command.set_defaults(verb=verb)
        if json:
            command.add_argument("--json", action="store_true", help="print JSON")
        return command

    imaging.register(add)
    locking.register(add)
    reproducing.register(add)
    verifying.register(add)

    command = add(shell, "shell", "an interactive shell in exactly the container of an experiment")
    command.add_argument("overrides", nargs="*", help="experiment=NAME and further overrides")
    command.add_argument("--command", default="", help="what to start in place of bash (or sh)")

    command = add(runs, "runs", "recorded runs, newest first", json=True)
    command.add_argument("-n", type=int, default=50, metavar="N", help="at most so many (default: 50)")
    command.add_argument("--all", action="store_true", help="every run")
    command = add(show, "show", "one run: what it was, what came out", json=True)
    command.add_argument("run", nargs="?", default="latest", help="run id, MLflow run id, a unique prefix, or latest")
    life.register(add)
    comparing.register(add)
    sharing.register(add)
    attesting.register(add)
    bundling.register(add)
    command = add(sync, "sync", "bring MLflow up to date with the run folders", json=True)
    command.add_argument("run", nargs="?", help="as for show; without it, every run that is not in MLflow yet")
    command.add_argument(
        "--all", action="store_true", help="compare all that should be there with what is, and send what is missing"
    )

    command = add(ui, "ui", "open the project's runs in MLflow's own pages")
    command.add_argument("run", nargs="?", help="show this run, as for show")
    command.add_argument("--port", type=int, default=0, help="default: any free port")
    command = add(doctor, "doctor", "what this machine can and cannot do", json=True)
    command.add_argument("--write", action="store_true", help="note the image variant in conf/local/default.yaml")
    add(init, "init", "make conf/ and docker/ in this folder")
    return top


def _true_again(display: Display) -> None:
    """Take over what commands that were killed have left, before anybody reads of it."""
    from repro.running import sweep

    with contextlib.suppress(BadInputError, OSError):
        sweep.settle(sweep.at_start(Project.find(Path.cwd()), display.notice))


# verbs ----------------------------------------------------------------------------------------------------------


def shell(args: argparse.Namespace, display: Display) -> int:
    """The seed's `docker run -it`, in exactly the container that the experiment would get."""
    from repro import run

    return run.shell(args.overrides, args.command, display)


def runs(args: argparse.Namespace, display: Display) -> int:
    """The recorded runs."""
    everything = folders(Project.find(Path.cwd()).runs)
    shown = everything if args.all else everything[max(0, len(everything) - args.n) :]
    records = []
    for folder in reversed(shown):
        try:
            records.append(folder.read())
        except BadInputError as error:  # of another version, or damaged: no reason not to list the others
            display.notice(" ".join([error.what, *error.evidence]))
    known = results.of(everything)
    if args.json:
        print(report.as_json([report.with_results(record, known) for record in records]))
        return ExitCode.OK
    now = datetime.now(timezone.utc)
    cells = [
        (
            record.planned.run,
            record.state,
            f"{report.duration(record):.1f} s",
            report.age(record.planned.created, now),
            report.result(record, known),
            record.planned.image.tag,
            record.planned.code.commit[:8] + ("+" if record.planned.code.dirty else ""),
        )
        for record in records
    ]
    print(report.table(("RUN", "STATE", "TOOK", "AGE", "RESULT", "IMAGE", "COMMIT"), cells) if cells else "no runs yet")
    for remark in report.non_determinism(records, known):
        display.line(remark)
    if older := len(everything) - len(shown):
        display.line(f"{report.many(older, 'older run')}: `repro runs --all`")
    return ExitCode.OK


def show(args: argparse.Namespace, _display: Display) -> int:
    """One run."""
    from repro.images import inventory
    from repro.tracking import journal, tracking

    project = Project.find(Path.cwd())
    record, folder = find(project, args.run)
    if args.json:
        print(report.as_json(record))
    else:
        known = results.of(folders(project.runs))
        inside = inventory.read(folder.packages)
        packages = f"{inside.summary}; {folder.packages}" if inside else ""
        print(report.summary(record, folder, journal.latest(folder), tracking.status(folder), packages))
        print(report.identities(record, known))
    return ExitCode.OK


def sync(args: argparse.Namespace, display: Display) -> int:
    """MLflow, brought up to date from the run folders; a run that is there already is left as it is."""
    from repro.tracking import tracking

    project = Project.find(Path.cwd())
    wanted = [find(project, args.run)[1]] if args.run else folders(project.runs)
    replies = []
    with display.step("mlflow") as step:

        def say(told: tracking.Progress) -> None:
            done, all_of_it = report.size(told.bytes), report.size(told.of_bytes)
            step.say(f"{told.run}  file {told.files:,} of {told.of_files:,}, {done} of {all_of_it}")

        for reply in tracking.sync(wanted, project, verify=args.all, say=say):
            replies.append(reply)
            display.line(f"{reply.run}  {reply.text}")
            for remark in reply.remarks:
                display.notice(f"MLflow: {remark}")
            display.notice_hints(reply.hints)
        missing = sum(not reply.ok for reply in replies)
        step.detail = f"{report.many(len(replies), 'run')}" + (f", {missing:,} not in MLflow" if missing else "")
    if args.json:
        print(report.as_json(replies))
    return ExitCode.OK if all(reply.ok for reply in replies) else ExitCode.ENVIRONMENT


def ui(args: argparse.Namespace, display: Display) -> int:
    """MLflow's pages on the project's store, until Ctrl-C."""
    from repro import config
    from repro.tracking import tracking
    from repro.verbs import ui as pages

    project = Project.find(Path.cwd())
    recorded = folders(project.runs)
    chosen = find(project, args.run)[1] if args.run else None
    known = tracking.state(chosen) if chosen else None
    uri = known.uri if known else tracking.resolve_uri(config.compose_tracking_uri(project), project)
    with display.step("mlflow") as step:
        site = pages.start(uri, project, step.say, port=args.port)
        step.detail = site.address
    shown = chosen or next((folder for folder in reversed(recorded) if tracking.mlflow_run(folder)), None)
    print(site.page(shown, run=chosen is not None), flush=True)
    site.hold(project)
    return ExitCode.OK


def doctor(args: argparse.Namespace, _display: Display) -> int:
    """What this machine can do; the exit code says whether a run is possible."""
    from repro.verbs import doctor as examination

    project = Project.find(Path.cwd())
    findings = examination.examine(project)
    if args.json:
        print(report.as_json(findings))
    else:
        print(report.table(("", "WHAT", "DETAIL"), examination.rows(findings)))
    if args.write:
        choice = examination.choose(findings)
        path, written = examination.write(project, choice, datetime.now(timezone.utc))
        where = path.relative_to(project.root)
        print(f"{where}: image={choice.variant} ({choice.why})" if written else f"{where} is yours: left as it is")
    return examination.exit_code(findings)


def init(_args: argparse.Namespace, display: Display) -> int:
    """A first experiment, its configuration and its image, in this folder; what is there stays as it is."""
    import shutil

    template, here = Path(__file__).parent / "template", Path.cwd()
    for source in sorted(file for file in template.rglob("*") if file.is_file()):
        name = source.relative_to(template).as_posix()
        target = here / (".gitignore" if name == "gitignore" else name)
        if target.exists():
            added = _add_lines(target, source.read_text(encoding="utf-8")) if name == "gitignore" else 0
            display.line(
                f"keeps   {target.relative_to(here)}" + (f", with {report.many(added, 'line')} more" if added else "")
            )
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        display.line(f"writes  {target.relative_to(here)}")
    print("next: commit it (`git init && git add -A && git commit`), then `repro run experiment=hello`")
    return ExitCode.OK


def _add_lines(file: Path, wanted: str) -> int:
    """Append the lines that a file does not have yet; how many."""
    text = file.read_text(encoding="utf-8", errors="surrogateescape")
    missing = [line for line in wanted.splitlines() if line not in text.splitlines()]
    if missing:
        begin = "" if not text or text.endswith("\n") else "\n"
        file.write_text(text + begin + "\n".join(missing) + "\n", encoding="utf-8", errors="surrogateescape")
    return len(missing)
