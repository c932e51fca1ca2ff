"""The verb `repro lock`: resolve, compare, write."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from repro import report
from repro.display import Display
from repro.errors import BadInputError, ExitCode
from repro.project import Project
from repro.record import write_atomic
from repro.verbs.imaging import OVERRIDES, Add

if TYPE_CHECKING:
    from repro.lockfile import Lock
    from repro.recipe.spec import ImageSpec


def register(add: Add) -> None:
    """The verb with its arguments."""
    command = add(
        lock, "lock", "pin what names leave open: images to digests, packages to files with hashes", json=True
    )
    command.add_argument("overrides", nargs="*", help=OVERRIDES)
    command.add_argument("--check", action="store_true", help="only answer, offline: exit 0 up to date, 1 stale")
    command.add_argument(
        "--upgrade", nargs="?", const="", action="append", metavar="PACKAGE", help="take newer ones; of PACKAGE alone"
    )
    command.add_argument("--as-of", metavar="DATE", help="as if it were then: 2026-01-31 or 2026-01-31T12:00:00Z")
    command.add_argument("--python", metavar="X.Y", help="the Python that installs, where the base cannot tell")


def lock(args: argparse.Namespace, display: Display) -> int:
    """Resolve what is not resolved yet, or is stale, or shall be upgraded."""
    from repro import config, lockfile
    from repro.recipe.spec import ImageSpec

    project = Project.find(Path.cwd())
    overrides = [
        each for each in args.upgrade or () if "=" in each
    ]  # `--upgrade image=debian`: no package is called so
    args.upgrade = args.upgrade and ["" if each in overrides else each for each in args.upgrade]
    wanted, build = config.compose_image(project, [*args.overrides, *overrides])
    spec = ImageSpec.read(wanted, project.root, build)
    before = lockfile.read(project.lock)
    known = before.resolved.get(spec.variant)
    _, stale = lockfile.applied(spec, before, project.root)
    remarks = list(stale) if known else [f"image variant {spec.variant}: not resolved yet"]
    if args.check or not (remarks or args.upgrade or args.as_of or args.python):
        state = "stale: `repro lock` resolves it anew" if remarks else "up to date"
        if args.json:
            print(report.as_json({"variant": spec.variant, "stale": remarks}))
        else:
            print("\n".join([f"{project.lock.name}  {spec.variant}  {state}", *(f"  {each}" for each in remarks)]))
        return ExitCode.NO if remarks else ExitCode.OK
    return _resolve(args, display, project, spec, before)


def _resolve(args: argparse.Namespace, display: Display, project: Project, spec: ImageSpec, before: Lock) -> int:
    from repro import lockfile
    from repro.engines.engine import connect
    from repro.images import resolve
    from repro.recipe import assembly, floating

    known = before.resolved.get(spec.variant)
    upgrade = [package for package in args.upgrade or () if package]
    wish = resolve.Wish(
        as_of=_moment(args.as_of),
        earlier=args.as_of is not None,
        upgrade=bool(args.upgrade) and not upgrade,
        upgrade_packages=tuple(upgrade),
        python=args.python,
    )
    old = assembly.locked(lockfile.pinned(spec, known, project.root)) if known else ()
    with display.step("lock") as step:
        answer = resolve.resolve(spec, connect(), project.root, known, wish, say=step.say)
        if answer.pylock is not None and answer.resolved.pylock is not None:
            write_atomic(project.root / answer.resolved.pylock, answer.pylock)  # first: what names it comes after it
        lockfile.change(project.lock, lambda lock: lockfile.with_resolved(lock, spec.variant, answer.resolved))
        step.detail = (
            f"{report.many(len(answer.resolved.images), 'image')}, {report.many(len(answer.packages), 'package')}"
        )
    changed = resolve.changes(old, answer.packages) if old else []
    pins = known.images if known else {}
    moved = [
        f"{name} {pins[name]} -> {pin}" for name, pin in answer.resolved.images.items() if pins.get(name, pin) != pin
    ]
    locked, _ = lockfile.applied(spec, lockfile.read(project.lock), project.root)
    left = floating.pieces(locked)
    if args.json:
        print(report.as_json({"resolved": answer.resolved, "changes": [*moved, *changed], "floating": left}))
        return ExitCode.OK
    lines = [f"{project.lock.name}  {spec.variant}  {step.detail}", *(f"  {each}" for each in [*moved, *changed])]
    print("\n".join([*lines, *([f"  {floating.text(left)}"] if left else [])]))
    return ExitCode.OK


def _moment(text: str | None) -> datetime:
    """A date as its beginning in UTC; none as now, to the second."""
    if text is None:
        return datetime.now(timezone.utc).replace(microsecond=0)
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise BadInputError(
            f"--as-of {text} is no date", hints=["write 2026-01-31, or 2026-01-31T12:00:00Z"]
        ) from error
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
