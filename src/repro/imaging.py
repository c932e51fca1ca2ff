"""The verbs of images: `repro rebuild`, `images`, `pin`, `prune`. Each is one function that reads like what it does.

Nothing heavy is imported before a verb needs it: `repro rebuild --if-changed` answers in a tenth of a second.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from repro import report
from repro.display import Display
from repro.errors import BadInputError, ExitCode, RefusedError
from repro.project import Project, cache_folder, ignored_folder, user_name

if TYPE_CHECKING:
    from repro.answers import ImageFacts
    from repro.housekeeping import Plan, Removal
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
    command.add_argument("--no-cache", action="store_true", help="build every step again")
    command.add_argument("--pull", action="store_true", help="ask the registry for a newer base first")
    command.add_argument("-v", "--verbose", action="store_true", help="stream the build's output")

    add(images, "images", "images of this project: tag, id, size, age, runs that used them, pins", json=True)
    command = add(pin, "pin", "keep an image, whatever else needs it or not; without one, list what is kept", json=True)
    command.add_argument("image", nargs="?", help="tag or id")
    command.add_argument("--remove", action="store_true", help="keep it no longer")
    command = add(prune, "prune", "remove what no recorded run needs; lists it first, and what it costs", json=True)
    command.add_argument("--dry-run", action="store_true", help="only list")
    command.add_argument("--yes", action="store_true", help="do not ask")
    command.add_argument("--force", action="store_true", help="also images that recorded runs or the lock need")


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
    with display.step("image") as step:
        log = ignored_folder(project.scratch) / "logs" / f"build-{spec.digest[:16]}.log"
        gather = partial(assembly.gather, spec, build, project.root, cache_folder(), step.say, progress=display.live)
        made = image.ensure(
            spec, connect(), say=step.say, build_log=log, no_cache=args.no_cache, pull=args.pull, gather=gather
        )
        step.detail = f"{made.tag} {'built' if made.built else 'present'}"
    lockfile.note(project.lock, made)
    open_pieces = floating.pieces(spec, made.base_resolved)
    if args.json:
        print(report.as_json({**msgspec.to_builtins(made), "floating": open_pieces}))
    else:
        print("  ".join([made.tag, report.short(made.id), *([floating.text(open_pieces)] if open_pieces else [])]))
    return ExitCode.OK


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

    engine = connect()
    rows = housekeeping.images(engine, _runs_or_none(), engine.all_containers())
    if args.json:
        print(report.as_json(rows))
        return ExitCode.OK
    now = datetime.now(timezone.utc)
    cells = [
        (
            row.tag,
            report.short(row.id),
            report.size(row.size),
            report.age(row.created, now),
            str(len(row.runs)),
            "pinned" if row.pinned else "",
        )
        for row in rows
    ]
    print(report.table(("TAG", "ID", "SIZE", "AGE", "RUNS", "PIN"), cells) if cells else "no images yet")
    return ExitCode.OK


def pin(args: argparse.Namespace, _display: Display) -> int:
    """Keep an image, or let it go again."""
    from repro import pins
    from repro.engine import connect

    if args.image is None:
        known = list(pins.everything().values())
        lines = "\n".join(f"{each.tag}  {report.short(each.id)}" for each in known)
        print(report.as_json(known) if args.json else lines or "no image is pinned")
        return ExitCode.OK
    found = connect().image(args.image)
    if args.remove:
        removed = pins.remove(args.image, found)
        print(report.as_json(removed) if args.json else f"{removed.tag} is not pinned any more")
        return ExitCode.OK
    if found is None:
        raise BadInputError(f"the engine holds no image {args.image}", hints=["`repro images` lists them"])
    pinned = pins.add(found)
    print(report.as_json(pinned) if args.json else f"{pinned.tag}  {report.short(pinned.id)} is pinned")
    return ExitCode.OK


def prune(args: argparse.Namespace, display: Display) -> int:
    """List what can go and what it costs, ask, remove."""
    from repro import guard, lockfile, pruning
    from repro.engine import connect

    project, engine = Project.find(Path.cwd()), connect()

    def decide() -> Plan:
        return pruning.plan(engine, project, lockfile.read(project.lock), user=user_name(), force=args.force)

    plan = decide()
    freed = pruning.weigh(engine, plan.removed)
    answer = {"removed": plan.removed, "kept": plan.kept, "frees": freed.bytes, "exact": freed.exact}
    if args.json and (args.dry_run or not args.yes or not plan.removed):
        print(report.as_json(answer))
        return ExitCode.OK
    for kept in plan.kept:
        display.line(f"keeps    {kept.tag}  {kept.why}")
    for each in plan.removed:
        display.line(f"removes  {each.kind} {each.name}  {report.size(each.size)}  ({each.loses})")
    if not plan.removed:
        display.line("nothing to remove")
        return ExitCode.OK
    total = f"{_counted(plan.removed)}, {'' if freed.exact else 'about '}{report.size(freed.bytes)}"
    if args.dry_run:
        print(f"would remove {total}")
        return ExitCode.OK
    if not args.yes and not _asked(f"remove {total}?"):
        raise RefusedError("nothing removed", hints=["answer y, or use --yes; --dry-run only lists"])
    with guard.pruning():
        still = set(decide().removed)  # a run may have started since
        pruning.carry_out(engine, [each for each in plan.removed if each in still])
    print(report.as_json(answer) if args.json else f"removed {total}")
    return ExitCode.OK


def _counted(removals: Sequence[Removal]) -> str:
    counts = Counter(each.kind for each in removals)
    return ", ".join(report.many(count, kind) for kind, count in counts.items())


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
