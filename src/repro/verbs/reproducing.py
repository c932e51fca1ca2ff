"""`repro reproduce`: a recorded run once more, compared with the original."""

from __future__ import annotations

import argparse
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from repro import printable, report
from repro.display import Display
from repro.errors import BadInputError, EnvironmentUnfitError, ExitCode, RefusedError, ReproError
from repro.experiment import Value
from repro.project import Project
from repro.record import End, Record, RunFolder
from repro.verbs import attesting
from repro.verbs.imaging import Add
from repro.verbs.recorded import WHICH, chosen, host_now, ingredients_text, place, row
from repro.verdict import Ceiling, Compared, Ingredient, Level, Verification

if TYPE_CHECKING:
    from repro.compare.sides import Side
    from repro.compare.tolerance import Tolerance
    from repro.engines.engine import Engine
    from repro.execution import Execution
    from repro.restoring.again import Basis
    from repro.restoring.materials import Materials, Source
    from repro.running.plan import Plan

SHOWN = 8  # results that differ
MEANING = {
    Level.MISSING: "a result is missing",
    Level.DIFFERENT: "results differ",
    Level.STATISTICAL: "inside the interval of the original's repeats",
    Level.TOLERANCE: "inside the declared tolerance",
    Level.STABILIZED: "the same bytes after stabilizers",
    Level.BYTES: "the same bytes",
}
TRY = {
    "code": "`git fetch origin 'refs/repro/*:refs/repro/*'`, or use the repository that the run was started from",
    "image": "`--rebuild` builds it anew from the recorded recipe; `repro import-image FILE` takes it from a file",
    "data": "lay its files in a folder and set REPRO_DATA_SOURCE=FOLDER",
    "secret": "provide it where the run took it from",
    "host": "use a machine with such GPUs",
    "config": "use the version of repro that recorded it",
}


class Intent(Value, frozen=True, kw_only=True):
    """What would be done: the answer of --dry-run."""

    run: str
    expected: Level
    ceiling: Ceiling
    ingredients: tuple[Ingredient, ...]


def register(add: Add) -> None:
    """The verbs of this module."""
    command = add(reproduce, "reproduce", "run a recorded run again, and say whether the same came out", json=True)
    command.add_argument("run", help=WHICH)
    command.add_argument("--expect", metavar="LEVEL", help="E0 to E5; default: the most that is possible here")
    command.add_argument("--times", type=int, default=1, metavar="N", help="run it so many times (default: 1)")
    command.add_argument("--rebuild", action="store_true", help="build the image anew, also when it is there")
    command.add_argument("--offline", action="store_true", help="ask nobody who is not on this machine")
    command.add_argument("--tolerance", metavar="FILE", help="how far numbers may be apart (TOML), for level E3")
    command.add_argument(
        "--give-secrets", action="store_true", help="let an imported or pulled run take secrets as its record says"
    )
    command.add_argument("--dry-run", action="store_true", help="print where everything would come from, run nothing")
    command.add_argument("--sign", metavar="KEY", help=f"sign what came of it, with {attesting.KEY}")


# reproduce -------------------------------------------------------------------------------------------------------


def reproduce(args: argparse.Namespace, display: Display) -> int:
    """The run of a record once more, compared with it; each attempt leaves a verification."""
    from repro.compare import comparing, tolerance
    from repro.engines.engine import connect
    from repro.execution import Execution
    from repro.restoring import again, consent
    from repro.running import sweep

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the end of a terminal is not the end of a run
    if args.times < 1:
        raise BadInputError(f"--times {args.times}: at least once")
    expected = level(args.expect) if args.expect else None
    signer = attesting.signer(args.sign) if args.sign else None  # nobody runs for hours to hear of a wrong passphrase
    margins = tolerance.read(Path(args.tolerance)) if args.tolerance else None
    project = place(args.run)
    sweep.at_start(project, display.notice)
    original = chosen(project, args.run, display)
    require_result(original.record)
    if margins:
        comparing.check(margins, original)
    execution = Execution(project, display)
    execution.prevent_pruning()
    try:
        engine = connect()
        source, basis = assess(original, project, engine, args, expected, margins)
        _show_plan(original, basis, args, display)
        consent.require(original.folder, source.experiment, built=source.builds, given=args.give_secrets)
        try:
            refuse(original.record, basis, explicit=expected is not None)
        except EnvironmentUnfitError:
            if not args.dry_run:
                again.write(again.verified(original.record, basis), original.folder, None)
            raise
        if args.dry_run:
            return ExitCode.OK
        attempts = Attempts(original, engine, execution, source, basis, margins)
        made = []
        for each in attempts.run(("reproduce", args.run), args.times):
            made.append(each)
            if signer and each.verdict and each.rerun:
                attesting.signed(each, signer, original.folder, each.rerun, display)
    finally:
        execution.close()
    print(report.as_json(made) if args.json else "\n".join(answer(original, made, attempts.layers)), flush=True)
    return ExitCode.OK if all(each.reached for each in made) else ExitCode.NO


def level(text: str) -> Level:
    """E3, or 3.

    Raises:
        BadInputError: neither.
    """
    if found := re.fullmatch(r"[Ee]?([0-5])", text):
        return Level(int(found[1]))
    raise BadInputError(
        f"--expect {text}: no such level",
        hints=[", ".join(f"{each} ({MEANING[each]})" for each in reversed(Level))],
    )


def require_result(record: Record) -> None:
    """Only what came to its end by itself, and well, has results to compare with.

    Raises:
        BadInputError: the run did not.
    """
    if record.ended is None or record.ended.end is not End.FINISHED:
        raise BadInputError(
            f"run {record.planned.run} has no result to compare with: {report.outcome(record)}",
            hints=[
                "`repro attach` waits for its end"
                if record.ended is None
                else f"`repro verify {record.planned.run}` tells whether it could be run again"
            ],
        )


def assess(
    original: Side,
    project: Project,
    engine: Engine,
    args: argparse.Namespace,
    expected: Level | None,
    margins: Tolerance | None,
) -> tuple[Source, Basis]:
    """Where everything is, what may be expected here, and what is expected."""
    from repro.restoring import again, ceiling, consent, frozen, ingredients
    from repro.restoring.again import Basis
    from repro.restoring.materials import Source

    record = original.record
    thawed = frozen.thaw(record)
    depth = ingredients.Depth(rebuild=args.rebuild)
    found = ingredients.look(record, original.folder, project, engine, offline=args.offline, depth=depth)
    host = host_now(engine, record)
    most = ceiling.of(record, host, found, born=again.repeats(record, project, margins).limit)
    basis = Basis(expected=most.level if expected is None else expected, ceiling=most, ingredients=found, host=host)
    source = Source(
        experiment=thawed.experiment,
        ingredients=found,
        rebuild=args.rebuild,
        offline=args.offline,
        foreign=consent.is_foreign(original.folder),
    )
    return source, basis


def refuse(record: Record, basis: Basis, *, explicit: bool) -> None:
    """Say no before anything is done, where the answer is known.

    Raises:
        EnvironmentUnfitError: an ingredient is lost, or the record is not what was written.
        RefusedError: more is expected than is possible here.
    """
    from repro import identity
    from repro.restoring import ceiling, ingredients

    if changed := list(identity.contradictions(record)):  # it would be another run, or another result, by this name
        raise EnvironmentUnfitError(
            f"run {record.planned.run} cannot be run again: its record was changed after the run",
            evidence=changed,
            hints=[
                f"`repro verify {record.planned.run}` tells all that has changed",
                "take record.json from another copy of the run folder, from its bundle, or with `repro pull`",
            ],
        )
    if lost := ingredients.lost(basis.ingredients):
        raise EnvironmentUnfitError(
            f"run {record.planned.run} cannot be run again: {', '.join(map(ceiling.name, lost))} lost",
            evidence=[f"{ceiling.name(each)}: {each.recorded}\n{each.remark or 'nowhere'}" for each in lost],
            hints=[f"{each.kind}: {TRY[each.kind]}" for each in lost],
        )
    if explicit and basis.expected > basis.ceiling.level:
        raise RefusedError(
            f"{basis.expected} is out of reach here: {basis.ceiling.level} is the most that may be expected",
            evidence=[basis.ceiling.reason],
            hints=[f"--expect {basis.ceiling.level}, or a machine like the one that it ran on"],
        )


class Attempts:
    """The attempts of one command at one run."""

    def __init__(
        self,
        original: Side,
        engine: Engine,
        execution: Execution,
        source: Source,
        basis: Basis,
        tolerance: Tolerance | None,
    ) -> None:
        self.original, self.engine, self.execution = original, engine, execution
        self.source, self.basis, self.tolerance = source, basis, tolerance
        self.layers = "the same layers"

    def run(self, argv: tuple[str, ...], times: int) -> Iterator[Verification]:
        """One after the other.

        Raises:
            EnvironmentUnfitError: something cannot be had, or the engine went away.
            KeyboardInterrupt: Ctrl-C; the run is over, and recorded.
        """
        from repro.restoring import again
        from repro.restoring.materials import Workshop, gather

        project, display = self.execution.project, self.execution.display
        with ExitStack() as stack:
            here = Workshop(project=project, engine=self.engine, display=display, stack=stack)
            try:
                materials = gather(self.original, self.source, here)
            except ReproError:
                again.write(again.verified(self.original.record, self.basis), self.original.folder, None)
                raise
            self.basis = msgspec.structs.replace(self.basis, rebuilt=materials.rebuilt)
            if not materials.same_image:
                self.layers = "OTHER LAYERS"
                display.notice("the image was built anew and is not the same: its layers differ from the recorded ones")
            for number in range(times):
                if number:
                    self.execution.prevent_pruning()
                yield self._once(materials, argv)

    def _once(self, materials: Materials, argv: tuple[str, ...]) -> Verification:
        from repro.restoring import again
        from repro.restoring.materials import plan
        from repro.running import stopping

        record, project = self.original.record, self.execution.project

        def execute(planned: Plan, began: Callable[[RunFolder, Record], None]) -> tuple[Record, RunFolder]:
            return self.execution.execute(planned, self.engine, began=began)

        others = (again.side_of(project, run) for run in again.repeats(record, project).runs)
        made, rerun = again.attempt(
            self.original,
            plan(record, project, self.source, materials, argv),
            execute,
            self.basis,
            tolerance=self.tolerance,
            others=[each for each in others if each],
            root=project.root,
        )
        self.execution.retell(rerun.folder)
        self.execution.tracked(rerun.record, rerun.folder, self.source.experiment.tracking.wait)
        if stopping.interrupted(rerun.folder):
            raise KeyboardInterrupt
        if rerun.record.state == End.LOST.value:
            raise EnvironmentUnfitError(
                f"the rerun {rerun.record.planned.run} was lost", evidence=[report.outcome(rerun.record)]
            )
        return made


# for people ------------------------------------------------------------------------------------------------------


def _show_plan(original: Side, basis: Basis, args: argparse.Namespace, display: Display) -> None:
    if args.dry_run and args.json:
        intent = Intent(
            run=original.record.planned.run,
            expected=basis.expected,
            ceiling=basis.ceiling,
            ingredients=basis.ingredients,
        )
        print(report.as_json(intent))
        return
    from repro.restoring import consent

    record, folder = original.record, original.folder
    lines = [f"run {record.planned.run} once more", *ingredients_text(basis.ingredients)]
    network = record.planned.network
    if consent.is_foreign(folder):
        who = printable.line(f"{record.planned.host.user} on {record.planned.host.name}")
        root = ", as root in the container" if record.planned.config.get("user") == "root" else ""
        lines.append(f"by        {who}, not you: their code runs{root}")
    lines.append(f"network   {network}" + ("" if network == "none" else ": what it fetches may differ"))
    lines.append(row("ceiling", f"{basis.ceiling.level}", basis.ceiling.reason))
    lines.append(row("expected", f"{basis.expected}", MEANING[basis.expected]))
    if args.dry_run:
        print("\n".join(lines))
    else:
        for line in lines:
            display.line(line)


def answer(original: Side, made: Sequence[Verification], layers: str) -> Iterator[str]:
    """What came of the attempts; `layers`: how those of an image that was built anew compare."""
    for each in made:
        came = each.verdict.level if each.verdict else None
        same = each.reached and came is not None and came >= Level.STATISTICAL  # less is nobody's idea of it
        word = "reproduced" if same else "NOT reproduced"
        said = f"{came}, {MEANING[came]}" if came is not None else "no verdict: it was stopped"
        yield f"{original.record.planned.name}: {word} ({said})"
        yield f"  run      {each.run}"
        image = f"  with an image built anew, of {layers}" if each.rebuilt else ""
        yield f"  rerun    {each.rerun}  on the {each.witness}{image}"
        yield f"  expected {each.expected}" + (f"  ({each.ceiling.reason})" if each.ceiling.reason else "")
        if each.verdict:
            results = [one for one in each.verdict.compared if one.role == "result"]
            yield f"  compared {report.many(len(results), 'result')}"
            yield from _differing(results)
            if each.verdict.explanation:
                yield f"  why      {each.verdict.explanation}"
        yield f"  record   {original.folder.verifications / f'{each.rerun}.json'}"


def _differing(results: Sequence[Compared]) -> Iterator[str]:
    differing = [one for one in results if one.level < Level.BYTES]
    for one in differing[:SHOWN]:
        because = one.stabilizer or one.remark
        yield f"  {one.level}       {one.kind} {one.name}" + (f": {because}" if because else "")
    if differing[SHOWN:]:
        yield f"           and {len(differing) - SHOWN} more (--json lists all)"
