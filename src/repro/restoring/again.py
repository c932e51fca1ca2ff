"""A recorded run -> the same run once more, compared with it. Each attempt leaves a verification."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from repro import __version__, identity
from repro.compare import differences
from repro.compare.comparing import Side, compare
from repro.compare.tolerance import Tolerance
from repro.errors import EnvironmentUnfitError, ReproError
from repro.experiment import Value
from repro.project import Project, user_name
from repro.record import End, Host, Record, RunFolder, write_atomic
from repro.running import plan as planning
from repro.verdict import Ceiling, Ingredient, Level, Verdict, Verification


class Basis(Value, frozen=True, kw_only=True):
    """What is known before an attempt, and is the same in all of them."""

    expected: Level
    ceiling: Ceiling
    ingredients: tuple[Ingredient, ...]
    host: Host
    rebuilt: bool = False


def verified(
    original: Record, basis: Basis, *, rerun: Record | None = None, verdict: Verdict | None = None
) -> Verification:
    """The verification of one attempt; without a verdict, one that came to nothing."""
    planned = original.planned
    return Verification(
        run=planned.run,
        record=identity.record_digest(original),
        run_key=planned.run_key,
        result=identity.result_of(original),
        rerun=rerun.planned.run if rerun else None,
        rerun_record=identity.record_digest(rerun) if rerun and rerun.ended else None,
        rerun_result=identity.result_of(rerun) if rerun and rerun.ended else None,
        at=datetime.now(timezone.utc),
        by=user_name(),
        repro=__version__,
        host=basis.host,
        witness="same host" if _same_host(planned.host, basis.host) else "other host",
        expected=basis.expected,
        ceiling=basis.ceiling,
        ingredients=basis.ingredients,
        rebuilt=basis.rebuilt,
        verdict=verdict,
        reached=verdict is not None and verdict.level >= basis.expected,
    )


def _same_host(then: Host, now: Host) -> bool:
    """A name alone may be given twice; what is not known of either says nothing."""
    pairs = [(then.name, now.name), (then.cpu, now.cpu), (then.architecture, now.architecture)]
    return all(not before or not after or before == after for before, after in pairs) and then.name == now.name


def write(verification: Verification, original: RunFolder, rerun: RunFolder | None) -> Path:
    """Put it into the folder of the rerun, and a copy beside the original, where that can be; where it is.

    Raises:
        EnvironmentUnfitError: it can be in neither.
    """
    content = msgspec.json.format(msgspec.json.encode(verification), indent=2) + b"\n"
    if rerun is not None:
        write_atomic(rerun.verification, content)
    name = verification.rerun or planning.run_id("attempt", verification.at, secrets.token_bytes(3))
    place = original.verifications / f"{name}.json"
    try:
        original.verifications.mkdir(exist_ok=True)
        write_atomic(place, content)
    except OSError as error:  # another user's run: then the rerun alone has it
        if rerun is None:
            raise EnvironmentUnfitError(f"{place} cannot be written", evidence=[str(error)]) from error
        return rerun.verification
    return place


def read(original: RunFolder) -> list[Verification]:
    """The attempts at a run that left their verification beside it; what cannot be read says nothing."""
    found = []
    for path in sorted(original.verifications.glob("*.json")):
        with contextlib.suppress(OSError, msgspec.MsgspecError, RecursionError):
            found.append(msgspec.json.decode(path.read_bytes(), type=Verification))
    return found


class Repeats(Value, frozen=True, kw_only=True):
    """The other runs of `repro run --repeat` that a run is one of."""

    runs: tuple[str, ...]
    born: Level | None  # the lowest level among them; None: there are none

    @property
    def limit(self) -> tuple[Level, str] | None:
        """What follows for every later run: the level, and how many runs say so."""
        return None if self.born is None else (self.born, f"{self.born} in {len(self.runs) + 1} runs")


def repeats(record: Record, project: Project, tolerance: Tolerance | None = None) -> Repeats:
    """What `--repeat` found out about a run; with a tolerance, what it would have found with it."""
    first = record.planned.repeats or record.planned.run
    known = [each for each in read(RunFolder(project.runs / first)) if each.rerun and each.verdict]
    sides = [(each, side) for each in known if (side := side_of(project, each.rerun))]
    ours = [each for each, side in sides if side.record.planned.repeats == first]
    levels = [each.verdict.level for each in ours if each.verdict]
    if tolerance and (one := side_of(project, first)):
        levels = [compare(one, side, tolerance).level for each, side in sides if each in ours]
    others = {first, *(each.rerun for each in ours if each.rerun)} - {record.planned.run} if ours else set()
    return Repeats(runs=tuple(sorted(others)), born=min(levels, default=None))


def side_of(project: Project, run: str | None) -> Side | None:
    """A run of this project, to compare with; None where it is not there any more."""
    if run is None:
        return None
    folder = RunFolder(project.runs / run)
    try:
        return Side(record=folder.read(), folder=folder)
    except ReproError:
        return None


Execute = Callable[[planning.Plan, Callable[[RunFolder, Record], None]], tuple[Record, RunFolder]]


def attempt(
    original: Side,
    plan: planning.Plan,
    execute: Execute,
    basis: Basis,
    *,
    tolerance: Tolerance | None = None,
    others: Sequence[Side] = (),
    root: Path | None = None,
) -> tuple[Verification, Side]:
    """Run the plan, and compare what comes out with the original; `root`: a folder in the repository with the code.

    From the moment that its container runs there is a verification on disk; it has no verdict until there is one, and
    keeps none when the run was stopped or lost.

    Raises:
        EnvironmentUnfitError: no run took place, or its engine went away.
    """

    def began(folder: RunFolder, record: Record) -> None:
        write(verified(original.record, basis, rerun=record), original.folder, folder)

    try:
        record, folder = execute(plan, began)
    except BaseException:
        if not RunFolder(Path(plan.folder)).record.exists():
            write(verified(original.record, basis), original.folder, None)
        raise
    rerun = Side(record=record, folder=folder)
    verdict = None
    if record.ended and record.ended.end not in (End.KILLED, End.LOST):
        verdict = compare(original, rerun, tolerance, others)
        if (
            verdict.level < Level.BYTES
        ):  # with what differs in what went in, and one line on why, as `repro diff` says it
            verdict = differences.of(original, rerun, root or Path(plan.planned.project), verdict).verdict
    made = verified(original.record, basis, rerun=record, verdict=verdict)
    write(made, original.folder, folder)
    return made, rerun
