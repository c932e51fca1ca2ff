"""The verbs of images: `repro rebuild`, `images`, `pin`, `prune`. Each is one function that reads like what it does.

Nothing heavy is imported before a verb needs it: `repro rebuild --if-changed` answers in a tenth of a second.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from repro import report
from repro.display import Display
from repro.errors import BadInputError, EnvironmentUnfitError, ExitCode, RefusedError
from repro.project import Project, ignored_folder, user_name

if TYPE_CHECKING:
    from repro.cleaning.housekeeping import Plan, Removal
    from repro.engines.engine import Engine
    from repro.engines.imagefacts import ImageFacts
    from repro.experiment import BuildConfig
    from repro.image import Image
    from repro.images.predecessor import Explanation
    from repro.recipe.spec import ImageSpec

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
    command.add_argument("--pull-base", action="store_true", help="ask the base's registry for a newer one first")
    command.add_argument("--pull", action="store_true", help="take the image from image.registry; build nothing")
    command.add_argument("--no-pull", action="store_true", help="build here what repro.lock would pull")
    command.add_argument("--push", action="store_true", help="send the image to image.registry, lock its digest")
    command.add_argument("--force", action="store_true", help="--push: replace another image; --pull: take a moved tag")
    command.add_argument("-v", "--verbose", action="store_true", help="stream the build's output")

    command = add(export_image, "export-image", "write an image to a file, for machines without a registry", json=True)
    command.add_argument("overrides", nargs="*", help=OVERRIDES)
    command.add_argument("-o", "--output", metavar="FILE", help="default: NAME-<16 hex>.oci.tar, here")
    command.add_argument("--image", metavar="TAG|ID", help="this image in place of the configuration's")
    command = add(import_image, "import-image", "check such a file, and load its image", json=True)
    command.add_argument("file", help="what export-image wrote")
    add(images, "images", "images of this project: tag, id, size, age, runs that used them, pins", json=True)
    command = add(pin, "pin", "keep an image, whatever else needs it or not; without one, list what is kept", json=True)
    command.add_argument("image", nargs="?", help="tag or id")
    command.add_argument("--remove", action="store_true", help="keep it no longer")
    command = add(prune, "prune", "remove what no recorded run needs; lists it first, and what it costs", json=True)
    command.add_argument("--dry-run", action="store_true", help="only list")
    command.add_argument("--yes", action="store_true", help="do not ask")
    command.add_argument("--force", action="store_true", help="also images that recorded runs or the lock need")


def rebuild(args: argparse.Namespace, display: Display) -> int:
    """The image of the configuration: look, or get it and lock it."""
    from repro import config, image, lockfile
    from repro.engines import glance
    from repro.engines.engine import connect
    from repro.images import distribution

    _refuse_contradictions(args)
    project = Project.find(Path.cwd())
    wanted, build = config.compose_image(project, args.overrides)
    spec, stale = lockfile.read_spec(project, wanted, build)
    if stale:
        display.notice(lockfile.remark(stale))
    if args.push or args.pull:
        distribution.remote_tag(spec)
    if args.check or args.explain or args.if_changed:
        present = image.present(spec, glance.image)
        if (present and not args.push) or not args.if_changed:
            print(_answer(args, project, spec, present))
            return ExitCode.OK if present else ExitCode.NO
        if not present:
            display.line(f"because  {_explained(project, spec, None).first()}")
    if args.verify:
        return _verify(args, project, spec, build, display)
    engine = connect()
    made = _made(spec, build, engine, project, args, display)
    lockfile.note(project.lock, made)
    if spec.pushed and lockfile.pushed(lockfile.read(project.lock), spec) is None:
        display.notice(f"repro.lock named {spec.pushed}; now it names the image of this machine, which is another one")
    if args.push:
        with display.step("push") as step:
            made = distribution.push(spec, made, engine, force=args.force, say=step.say)
            step.detail = made.digest or ""
        lockfile.note(project.lock, made)
    print(_told(spec, made, args))
    return ExitCode.OK


def _told(spec: ImageSpec, made: Image, args: argparse.Namespace) -> str:
    """The image that `rebuild` ends with."""
    from repro.recipe import floating

    open_pieces = floating.pieces(spec, made.base_resolved)
    if args.json:
        return report.as_json({**msgspec.to_builtins(made), "floating": open_pieces})
    line = "  ".join([made.tag, report.short(made.id), *([floating.text(open_pieces)] if open_pieces else [])])
    return f"{line}\n{made.digest}" if args.push or args.pull else line


def _refuse_contradictions(args: argparse.Namespace) -> None:
    builds = [flag for flag in ("--no-cache", "--pull-base", "--no-pull") if getattr(args, flag[2:].replace("-", "_"))]
    if args.pull and builds:
        raise _contradiction(f"--pull takes the image from the registry, {builds[0]} builds it")
    if (args.check or args.explain) and (args.pull or args.push or builds):
        raise _contradiction("--check and --explain only answer: they neither pull nor push nor build")
    if args.verify and (args.pull or args.push or args.no_pull):
        raise _contradiction("--verify keeps no image: it neither pulls nor pushes")
    if args.if_changed and (args.no_cache or args.pull_base):
        raise _contradiction("--if-changed leaves an image that is there as it is; --no-cache and --pull-base do not")
    if args.force and not (args.pull or args.push):
        raise BadInputError("--force goes with --push or --pull", hints=["to build anew: --no-cache"])


def _contradiction(what: str) -> BadInputError:
    return BadInputError(what, hints=["choose one of them: one command after the other does both"])


def _made(
    spec: ImageSpec, build: BuildConfig, engine: Engine, project: Project, args: argparse.Namespace, display: Display
) -> Image:
    """The image, by the way that the arguments allow."""
    from repro import image
    from repro.images import distribution, ledger
    from repro.images.making import Making

    before = image.look(spec, engine)
    with display.step("image") as step:
        if args.pull:
            digest = distribution.choose(spec, engine, force=args.force, say=step.say)
            made = image.pull(spec, engine, digest, say=step.say)
        else:
            here = msgspec.structs.replace(spec, pushed=None) if args.no_pull else spec
            making = Making(here, build, project, display)
            made = making.ensure(engine, step.say, no_cache=args.no_cache, pull_base=args.pull_base)
        contents = ledger.contents(engine, made, step.say)
        step.detail = f"{made.tag} {made.origin}"
    if contents.drift and contents.drift.new:
        display.notice(f"drift: {contents.drift.text}")
    if not (contents.drift and contents.drift.new and before.id in contents.drift.text):
        _tell_of_another(display, made.tag, before, made)
    return made


def _tell_of_another(display: Display, tag: str, before: Image | ImageFacts | None, now: Image | ImageFacts) -> None:
    """No tag leads to another image in silence."""
    if before is not None and before.id not in ("", now.id):
        same = "with the same content" if before.content == now.content else "with other content"
        display.notice(f"{tag} was {before.id} and is {now.id} now, {same}; runs of the first one keep its id")


def export_image(args: argparse.Namespace, display: Display) -> int:
    """An image of ours as a file that `import-image`, `docker load` and readers of OCI layouts take."""
    from repro import config, image, lockfile
    from repro.engines.engine import connect
    from repro.images import oci

    engine = connect()
    found = engine.image(args.image) if args.image else None
    tag = image.own_tag(found) if found else None
    if args.image is None or (found and tag is None):  # the configuration knows the name of what has no tag
        project = Project.find(Path.cwd())
        wanted, build = config.compose_image(project, args.overrides)
        if args.image is None:
            spec, _stale = lockfile.read_spec(project, wanted, build)
            found, tag = image.present(spec, engine.image), spec.tag
        elif found and not found.tags and (label := found.labels.get(image.SPEC_LABEL)):
            tag = f"{wanted.name}:{label[:16]}"
    if found is None:
        if args.image:
            raise BadInputError(f"{args.image} is not on this engine", hints=["`repro images` lists those that are"])
        raise EnvironmentUnfitError(f"{tag} is not on this engine", hints=["`repro rebuild` gets it"])
    if tag is None:
        raise BadInputError(f"{args.image} was not built by repro", hints=["`docker save` writes any image"])
    path = Path(args.output or f"{tag.replace('/', '-').replace(':', '-')}.oci.tar").absolute()
    with display.step("export") as step:
        size = oci.write(engine, found, tag, path, step.say)
        step.detail = f"{tag}, {report.size(size)}"
    answer = {"file": str(path), "size": size, "tag": tag, "id": found.id}
    print(report.as_json(answer) if args.json else path)
    return ExitCode.OK


def import_image(args: argparse.Namespace, display: Display) -> int:
    """The image of a file, under the tag of its spec."""
    from repro.engines.engine import connect
    from repro.images import oci

    with display.step("import") as step:
        loaded, tag, before = oci.load(connect(), Path(args.file), step.say)
        step.detail = tag
    _tell_of_another(display, tag, before, loaded)
    answer = {"tag": tag, "id": loaded.id}
    print(report.as_json(answer) if args.json else f"{tag}  {report.short(loaded.id)}")
    return ExitCode.OK


def _verify(args: argparse.Namespace, project: Project, spec: ImageSpec, build: BuildConfig, display: Display) -> int:
    """Whether the image comes out the same when it is built again."""
    from repro.engines.engine import connect
    from repro.images import verification
    from repro.images.making import Making

    gather = Making(spec, build, project, display).gather
    logs = ignored_folder(project.scratch) / "logs"
    found = verification.verify(spec, connect(), gather, display, logs=logs, pull_base=args.pull_base)
    print(report.as_json(found) if args.json else verification.text(found))
    return ExitCode.OK if found.identical else ExitCode.NO


def _answer(args: argparse.Namespace, project: Project, spec: ImageSpec, present: ImageFacts | None) -> str:
    """Whether the image is there; where it is asked for, what changed."""
    state = "up to date" if present else f"out of date: `repro rebuild` {'pulls' if spec.pushed else 'builds'} it"
    if not (args.json or args.explain):
        return f"{spec.tag}  {state}"
    explanation = _explained(project, spec, present)
    if not args.json:
        return "\n".join([f"{spec.tag}  {state}", *explanation.lines(datetime.now(timezone.utc))])
    known = {"tag": spec.tag, "spec": spec.digest, "present": bool(present)}
    return report.as_json({**known, "since": explanation.since, "changes": explanation.changes})


def _explained(project: Project, spec: ImageSpec, present: ImageFacts | None) -> Explanation:
    from repro import lockfile
    from repro.engines.engine import connect
    from repro.images import predecessor

    lock = lockfile.read(project.lock)
    locked = lock.images.get(spec.variant)
    if present and (locked is None or locked.spec == spec.digest):  # no engine has to be asked once more
        return predecessor.itself(spec, present)
    return predecessor.explained(spec, connect(), lock)


def images(args: argparse.Namespace, _display: Display) -> int:
    """What `docker image ls` cannot tell: which runs need an image."""
    from repro.cleaning import housekeeping
    from repro.engines.engine import connect

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
    from repro.cleaning import pins
    from repro.engines.engine import connect

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
    from repro import guard, lockfile
    from repro.cleaning import pruning
    from repro.engines.engine import connect

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
