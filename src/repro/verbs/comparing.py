"""`repro diff A B`: what two runs have in common, what not, and why."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from repro import report
from repro.display import Display
from repro.errors import BadInputError, EnvironmentUnfitError, ExitCode
from repro.project import Project
from repro.verbs.imaging import Add

if TYPE_CHECKING:
    from repro.compare.layers import Difference
    from repro.compare.sides import Side

WHICH = "run id, MLflow run id, a unique prefix, latest, or a run's folder"


def register(add: Add) -> None:
    """The verb with its arguments."""
    command = add(diff, "diff", "compare two runs: what went in, what came out, and why it differs", json=True)
    command.add_argument("before", metavar="A", help=WHICH)
    command.add_argument("after", metavar="B", help="the same")
    command.add_argument("--tolerance", metavar="FILE", help="how far numbers may be apart (TOML, docs/diff.md)")
    command.add_argument("--deep", action="store_true", help="read both images, and name the files that differ")
    command.add_argument("--html", metavar="FILE", help="write a page with the layers and plots of the metrics")
    command.add_argument("--png", metavar="FILE", help="write the plots alone")


def diff(args: argparse.Namespace, display: Display) -> int:
    """Two runs, compared; the exit code says whether their results are the same."""
    from repro.compare import comparing, differences, tolerance, wording
    from repro.verdict import Level

    project = Project.find(Path.cwd())
    before, after = _side(project, args.before), _side(project, args.after)
    margins = tolerance.read(Path(args.tolerance)) if args.tolerance else None
    if margins:
        comparing.check(margins, before, after)
    files: tuple[Difference, ...] = ()
    if args.deep:
        from repro.compare import deep
        from repro.engines.engine import connect

        with display.step("images") as step:
            files = deep.files(connect(), before.record.planned.image, after.record.planned.image, step.say)
            step.detail = report.many(len(files), "file") + " not the same"
    found = differences.between(before, after, project.root, margins, _repeats(project, before), files)
    if args.html or args.png:
        from repro.compare import pages, plots

        curves = plots.diverging(before, after, found.verdict)
        if args.html:
            _write(Path(args.html), pages.page(found, before.record, after.record, curves).encode())
            display.line(f"page     {args.html}")
        if args.png:
            _write(Path(args.png), plots.png(curves))
            display.line(f"plots    {args.png}")
    print(report.as_json(found) if args.json else wording.text(found, before.record, after.record))
    return ExitCode.OK if found.verdict.level >= Level.STATISTICAL else ExitCode.NO


def _side(project: Project, wanted: str) -> Side:
    from repro.compare.sides import Side
    from repro.record import RunFolder
    from repro.tracking.lookup import find

    if "/" in wanted:
        folder = RunFolder(Path(wanted))
        return Side(record=folder.read(), folder=folder)
    record, folder = find(project, wanted)
    return Side(record=record, folder=folder)


def _repeats(project: Project, before: Side) -> list[Side]:
    """The other runs of the `--repeat` that a run is one of; each has left a verification with the first."""
    from repro.compare.sides import Side
    from repro.record import RunFolder

    first = before.record.planned.repeats or before.record.planned.run
    names = [first, *(path.stem for path in RunFolder(project.runs / first).verifications.glob("*.json"))]
    found = []
    for folder in (RunFolder(project.runs / name) for name in names):
        with contextlib.suppress(BadInputError):  # it was removed
            record = folder.read()
            if first in (record.planned.run, record.planned.repeats):
                found.append(Side(record=record, folder=folder))
    return found


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror}") from None
    except OSError as error:
        raise EnvironmentUnfitError(f"{path} cannot be written: {error.strerror}") from None
