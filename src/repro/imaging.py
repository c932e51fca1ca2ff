"""The verbs of images: `repro rebuild`, `images`, `prune`. Each is one function that reads like what it does.

Nothing heavy is imported before a verb needs it: `repro rebuild --if-changed` answers in a tenth of a second.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from repro import report
from repro.display import Display
from repro.errors import BadInputError, ExitCode, RefusedError
from repro.project import Project, cache_folder, ignored_folder, user_name

if TYPE_CHECKING:
    from repro.assembly import FromHost
    from repro.experiment import BuildConfig
    from repro.imagefacts import ImageFacts
    from repro.predecessor import Explanation
    from repro.spec import ImageSpec

OVERRIDES = "Hydra overrides, such as image=debian"
Verb = Callable[[argparse.Namespace, Display], int]


class Add(Protocol):
    """Adds a verb to the command line, and returns its parser."""

    def __call__(self, verb: Verb, name: str, text: str, *, json: bool = False) -> argparse.ArgumentParser: ...


def register(add: Add) -> None:
    """The verbs with their arguments."""
    command = add(rebuild, "rebuild", "build the image of the configuration", json=True)
    command.add_argument("overrides", nargs="*", help=OVERRIDES)
    mode = command.add_mutually_exclusive_group()
    mode.add_argument("--if-changed", action="store_true", help="do nothing when the image is there")
    mode.add_argument("--check", action="store_true", help="only answer: exit 0 up to date, 1 out of date")
    mode.add_argument("--explain", action="store_true", help="the same answer, and what changed since which image")
    mode.add_argument(
        "--verify", action="store_true", help="build twice, keep neither: exit 0 the same layers, 1 others, and why"
    )
    command.add_argument("--no-cache", action="store_true", help="build every step again")
    command.add_argument("--pull", action="store_true", help="ask the registry for a newer base first")
    command.add_argument("-v", "--verbose", action="store_true", help="stream the build's output")

    add(images, "images", "images of this project: tag, id, size, age, runs that used them", json=True)
    command = add(prune, "prune", "remove images that no recorded run needs; lists them first", json=True)
    command.add_argument("--yes", action="store_true", help="do not ask")
    command.add_argument("--force", action="store_true", help="also images that recorded runs need")


def rebuild(args: argparse.Namespace, display: Display) -> int:
    """The image of the configuration: look, or build and lock."""
    import msgspec

    from repro import assembly, config, floating, image, lockfile
    from repro.engine import connect, glance

    project = Project.find(Path.cwd())
    wanted, build = config.compose_image(project, args.overrides)
    spec, stale = lockfile.read_spec(project, wanted, build)
    if stale:
        display.notice(f"repro.lock is stale and does not count: {stale[0]}; `repro lock` resolves anew")
    if args.check or args.explain or args.if_changed:
        present = image.present(spec, glance)
        if present or not args.if_changed:
            print(_answer(args, project, spec, present))
            return ExitCode.OK if present else ExitCode.NO
        display.line(f"because  {_explained(project, spec, None).first()}")
    if args.verify:
        return _verify(args, project, spec, build, display)
    from repro import ledger

    engine = connect()
    before = image.look(spec, engine)
    with display.step("image") as step:
        log = ignored_folder(project.scratch) / "logs" / f"build-{spec.digest[:16]}.log"
        gather = partial(assembly.gather, spec, build, project.root, cache_folder(), step.say, progress=display.live)
        made = image.ensure(
            spec, engine, say=step.say, build_log=log, no_cache=args.no_cache, pull=args.pull, gather=gather
        )
        contents = ledger.contents(engine, made, step.say)
        step.detail = f"{made.tag} {'built' if made.built else 'present'}"
    if contents.drift and contents.drift.new:
        display.notice(f"drift: {contents.drift.text}")
    elif before.id not in ("", made.id):
        same = "with the same content" if before.content == made.content else "with other content"
        display.notice(f"{made.tag} was {before.id} and is {made.id} now, {same}; runs of the first one keep its id")
    lockfile.note(project.lock, made)
    open_pieces = floating.pieces(spec, made.base_resolved)
    if args.json:
        print(report.as_json({**msgspec.to_builtins(made), "floating": open_pieces}))
    else:
        print("  ".join([made.tag, report.short(made.id), *([floating.text(open_pieces)] if open_pieces else [])]))
    return ExitCode.OK


def _verify(args: argparse.Namespace, project: Project, spec: ImageSpec, build: BuildConfig, display: Display) -> int:
    """Whether the image comes out the same when it is built again."""
    from repro import assembly, verification
    from repro.engine import connect

    def gather(say: Callable[[str], None]) -> FromHost:
        return assembly.gather(spec, build, project.root, cache_folder(), say, progress=display.live)

    logs = ignored_folder(project.scratch) / "logs"
    found = verification.verify(spec, connect(), gather, display, logs=logs, pull=args.pull)
    print(report.as_json(found) if args.json else verification.text(found))
    return ExitCode.OK if found.identical else ExitCode.NO


def _answer(args: argparse.Namespace, project: Project, spec: ImageSpec, present: ImageFacts | None) -> str:
    """Whether the image is there; where it is asked for, what changed."""
    state = "up to date" if present else "out of date: `repro rebuild` builds it"
    if not (args.json or args.explain):
        return f"{spec.tag}  {state}"
    explanation = _explained(project, spec, present)
    if not args.json:
        return "\n".join([f"{spec.tag}  {state}", *explanation.lines(datetime.now(timezone.utc))])
    known = {"tag": spec.tag, "spec": spec.digest, "present": bool(present)}
    return report.as_json({**known, "since": explanation.since, "changes": explanation.changes})


def _explained(project: Project, spec: ImageSpec, present: ImageFacts | None) -> Explanation:
    from repro import lockfile, predecessor
    from repro.engine import connect

    lock = lockfile.read(project.lock)
    locked = lock.images.get(spec.variant)
    if present and (locked is None or locked.spec == spec.digest):  # no engine has to be asked once more
        return predecessor.itself(spec, present)
    return predecessor.explained(spec, connect(), lock)


def images(args: argparse.Namespace, _display: Display) -> int:
    """What `docker image ls` cannot tell: which runs need an image."""
    from repro import housekeeping
    from repro.engine import connect

    rows = housekeeping.images(connect(), _runs_or_none())
    if args.json:
        print(report.as_json(rows))
        return ExitCode.OK
    now = datetime.now(timezone.utc)
    cells = [
        (row.tag, report.short(row.id), report.size(row.size), report.age(row.created, now), str(len(row.runs)))
        for row in rows
    ]
    print(report.table(("TAG", "ID", "SIZE", "AGE", "RUNS"), cells) if cells else "no images yet")
    return ExitCode.OK


def prune(args: argparse.Namespace, display: Display) -> int:
    """List what can go, ask, remove."""
    from repro import housekeeping, lockfile
    from repro.engine import connect

    project, engine = Project.find(Path.cwd()), connect()
    rows = housekeeping.images(engine, project.runs)
    plan = housekeeping.plan_prune(rows, lockfile.read(project.lock), user=user_name(), force=args.force)
    if args.json and not (args.yes and plan.removed):
        print(report.as_json(plan))
        return ExitCode.OK
    for kept in plan.kept:
        display.line(f"keeps    {kept.tag}  {kept.why}")
    for row in plan.removed:
        display.line(f"removes  {row.tag}  {report.size(row.size)}")
    if not plan.removed:
        display.line("nothing to remove")
        return ExitCode.OK
    if not args.yes and not _asked(f"remove {report.many(len(plan.removed), 'image')}?"):
        raise RefusedError("nothing removed", hints=["answer y, or use --yes"])
    housekeeping.prune(engine, plan)
    print(report.as_json(plan) if args.json else f"removed {report.many(len(plan.removed), 'image')}")
    return ExitCode.OK


def _asked(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _runs_or_none() -> Path | None:
    """The runs of the project around us; images can be listed from anywhere."""
    try:
        return Project.find(Path.cwd()).runs
    except BadInputError:
        return None
