"""The verbs of bundles: `repro export`, `repro import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from repro import report
from repro.display import Display
from repro.errors import ExitCode
from repro.project import Project
from repro.tracking.lookup import find
from repro.verbs.imaging import Add

SUFFIX = ".crate.zip"


def register(add: Add) -> None:
    """The verbs with their arguments."""
    command = add(export, "export", "a run in one file, with everything that it takes to run it again", json=True)
    command.add_argument("run", nargs="?", default="latest", help="as for show")
    command.add_argument("-o", "--output", metavar="FILE", help=f"default: RUN{SUFFIX}, here")
    command.add_argument("--thin", action="store_true", help="without image and data, which are listed in their place")
    command = add(bring, "import", "check such a file, and bring its run into this project", json=True)
    command.add_argument("bundle", help="what export wrote")


def export(args: argparse.Namespace, display: Display) -> int:
    """A run as one file; the same run gives the same bytes."""
    from repro.bundle import exporting
    from repro.engines.engine import connect

    project = Project.find(Path.cwd())
    record, folder = find(project, args.run)
    path = Path(args.output or f"{record.planned.run}{SUFFIX}").absolute()
    with display.step("export") as step:
        done = exporting.export(record, folder, project, path, engine=connect, thin=args.thin, say=step.say)
        step.detail = f"{done.run}, {report.many(done.files, 'file')}, {report.size(done.size)}"
    print(report.as_json(done) if args.json else done.file)
    return ExitCode.OK


def bring(args: argparse.Namespace, display: Display) -> int:
    """The run of a bundle, in the project around this folder, or in this folder where there is none."""
    from repro.bundle import importing
    from repro.engines.engine import connect

    path = Path(args.bundle).absolute()
    with display.step("import") as step:
        done = importing.bring(path, importing.project_at(Path.cwd()), engine=connect, say=step.say)
        step.detail = f"{done.run}  {', '.join(done.new) or 'was here'}"
    for notice in done.notices:
        display.notice(notice)
    if done.lacks:
        display.notice(f"the bundle is a thin one, without {', '.join(done.lacks)}: its fetch.txt says where from")
    print(report.as_json(done) if args.json else f"{done.run}\n  record   {done.record}\n  folder   {done.folder}")
    return ExitCode.OK
