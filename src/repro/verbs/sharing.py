"""The verbs of sharing: `repro push`, `repro pull`. Nothing leaves this machine that was not asked for and told."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from repro import report
from repro.display import Display
from repro.errors import EnvironmentUnfitError, ExitCode, RefusedError
from repro.project import Project
from repro.record import shown
from repro.verbs.imaging import Add

if TYPE_CHECKING:
    from repro.record import Record, RunFolder
    from repro.sharing.pulling import Pulled
    from repro.sharing.pushing import Push

LISTED = 20  # of each kind
REMOTE = "name or address of a git remote (default: origin)"


def register(add: Add) -> None:
    """The verbs with their arguments."""
    command = add(
        push, "push", "give a run to others: code and record to a git remote, its image to a registry", json=True
    )
    command.add_argument("run", nargs="?", default="latest", help="run id, MLflow run id, a unique prefix, or latest")
    command.add_argument("--remote", default="origin", help=REMOTE)
    command.add_argument("--outputs", action="store_true", help="send the outputs, too; git keeps them for ever")
    command.add_argument("--no-image", action="store_true", help="leave the image where it is")
    command.add_argument("--dry-run", action="store_true", help="only list what it would publish")
    command.add_argument("--force", action="store_true", help="also files that look like secrets")

    command = add(pull, "pull", "get a run that somebody has pushed; without RUN, list those that there are", json=True)
    command.add_argument("run", nargs="?", help="run id, a unique prefix of it, MLflow run id, or latest")
    command.add_argument("--remote", default="origin", help=REMOTE)
    command.add_argument("--image", action="store_true", help="pull its image now, too")


def push(args: argparse.Namespace, display: Display) -> int:
    """Say what is published, publish it, the record last."""
    from repro.code.repository import open_repository
    from repro.sharing import images, pushing
    from repro.sharing.remote import Remote
    from repro.tracking.lookup import find

    project = Project.find(Path.cwd())
    record, folder = find(project, args.run)
    repository = open_repository(project.root)
    remote = Remote(repository, args.remote)
    with display.step("look") as step:
        there = remote.refs(step.say)
        plan = pushing.plan(record, folder, repository, there, remote, outputs=args.outputs)
        step.detail = f"{plan.run} to {remote}"
    name = None if args.no_image else images.repository(record)
    listing = _listing(plan, name or f"not sent ({'--no-image' if args.no_image else 'no `image.registry`'})")
    if args.dry_run:
        print(report.as_json({"push": plan, "image": name}) if args.json else "\n".join(listing))
        return ExitCode.OK
    for line in listing:
        display.line(line)
    if plan.shown.suspects and not args.force:
        raise RefusedError(
            "uncommitted files that look like secrets would be published with the code",
            evidence=plan.shown.suspects,
            hints=["nothing was sent; list them in .gitignore and run anew", "--force publishes them all the same"],
        )
    digest = _push_image(record, folder, name, display) if name else None
    with display.step("code") as step:
        pushing.send_code(plan, remote, repository, there, step.say)
        step.detail = f"{plan.snapshot.commit[:12]} {'was there' if plan.there else 'sent'}"
    with display.step("record") as step:
        sent = pushing.send_record(record, folder, remote, repository, step.say, outputs=args.outputs)
        step.detail = f"sha256 {plan.record[:12]} {'sent' if sent else 'was there'}"
    answer = {"run": plan.run, "record": plan.record, "remote": str(remote), "snapshot": plan.snapshot.commit}
    print(report.as_json({**answer, "image": digest, "sent": sent}) if args.json else f"`repro pull {plan.run}`")
    return ExitCode.OK


def _push_image(record: Record, folder: RunFolder, name: str, display: Display) -> str | None:
    from repro.engines.engine import connect
    from repro.sharing import images

    with display.step("image") as step:
        digest = images.push(record, name, connect(), step.say)
        if digest:
            images.note(folder, digest)
        step.detail = digest or f"{record.planned.image.tag} is not on this engine any more: not sent"
    return digest


def _listing(plan: Push, image: str) -> list[str]:
    """What a push publishes, for a person."""
    seen, packed = plan.shown, plan.packed
    size = report.size(sum(packed.files.values()))
    code = f"{plan.snapshot.commit[:12]}, which it has" if plan.there else plan.snapshot.commit[:12]
    lines = [f"run      {plan.run}  record sha256 {plan.record[:12]}", f"to       {plan.remote}", f"code     {code}"]
    if not plan.there:
        lines += _some(f"{report.many(len(seen.commits), 'commit')} that it does not have", seen.commits)
        lines += _some(f"{report.many(len(seen.uncommitted), 'uncommitted change')}", seen.uncommitted)
    lines += _some("inside it", [f"{shown(each.path)} {each.commit[:12]}" for each in plan.snapshot.inner])
    lines += _some("files of Git LFS", [shown(path) for path in plan.snapshot.pointers])
    lines += [f"files    {report.many(len(packed.files), 'file')}, {size}: {', '.join(list(packed.files)[:LISTED])}"]
    lines += [f"not      {path}: {why}" for path, why in packed.left_out.items()]
    return [*lines, f"image    {image}"]


def _some(what: str, lines: tuple[str, ...] | list[str]) -> list[str]:
    if not lines:
        return []
    more = [f"           … and {len(lines) - LISTED:,} more"] if len(lines) > LISTED else []
    return [f"         {what}:", *(f"           {line}" for line in lines[:LISTED]), *more]


def pull(args: argparse.Namespace, display: Display) -> int:
    """A run folder and its code, from a git remote."""
    from repro.code.repository import open_repository
    from repro.sharing import pulling
    from repro.sharing.remote import Remote, runs

    project = Project.find(Path.cwd())
    remote = Remote(open_repository(project.root), args.remote)
    with display.step("look") as step:
        there = remote.refs(step.say)
        step.detail = f"{remote} has {report.many(len(runs(there)), 'run')}"
    if args.run is None:
        rows = [{"run": run, "here": (project.runs / run).exists()} for run in reversed(runs(there))]
        lines = [f"{row['run']}  {'here' if row['here'] else ''}".rstrip() for row in rows]
        print(report.as_json(rows) if args.json else "\n".join(lines) or f"{remote} has no runs")
        return ExitCode.OK
    tracked = pulling.ask_tracking(args.run, _tracking_uri(project)) if pulling.MLFLOW_ID.fullmatch(args.run) else None
    run = pulling.choose(args.run, there, tracked)
    with display.step("run") as step:
        uri = partial(_tracking_uri, project)
        pulled = pulling.fetch(run, project, remote, there, step.say, tracked=tracked, uri=uri)
        step.detail = _outcome(pulled)
    image = _pull_image(project, run, display) if args.image else None
    if args.json:
        print(report.as_json({"pulled": pulled, "image": image}))
    else:
        print(pulled.folder)
    return ExitCode.OK


def _outcome(pulled: Pulled) -> str:
    if pulled.new:
        return f"{pulled.run}, code {pulled.snapshot[:12]}"
    added = f"{report.many(len(pulled.added), 'file')} added" if pulled.added else "nothing is new"
    return f"{pulled.run} was here; {added}"


def _tracking_uri(project: Project) -> str:
    from repro import config
    from repro.tracking import tracking

    return tracking.resolve_uri(config.compose_tracking_uri(project), project)


def _pull_image(project: Project, run: str, display: Display) -> str:
    from repro.engines.engine import connect
    from repro.record import RunFolder
    from repro.sharing import images

    folder = RunFolder(project.runs / run)
    with display.step("image") as step:
        try:
            found = images.pull(folder.read(), folder, connect(), step.say)
        except EnvironmentUnfitError as error:
            raise EnvironmentUnfitError(
                error.what, evidence=error.evidence, hints=["run and code are here", *error.hints]
            ) from error
        step.detail = report.short(found.id)
    return found.id
