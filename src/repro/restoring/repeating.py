"""`repro run --repeat N`: the same plan N times, each compared with the first: what class a run is of, at its birth."""

from __future__ import annotations

from collections.abc import Callable

from repro.compare.sides import Side
from repro.engines.engine import Engine
from repro.execution import Execution
from repro.record import Record, RunFolder
from repro.restoring import again
from repro.restoring.again import Basis
from repro.running.plan import Plan
from repro.verdict import Ceiling, Level, Verification

WORDS = {
    Level.BYTES: "the same bytes",
    Level.STABILIZED: "the same bytes after stabilizers",
    Level.TOLERANCE: "numbers inside the declared tolerance",
    Level.STATISTICAL: "inside the interval of the others",
    Level.DIFFERENT: "different results",
    Level.MISSING: "results missing",
}
SHOWN = 5  # results that differ
SAME = Level.STABILIZED  # from here on, nothing differs that means anything


class Repeating:
    """The runs of one command, and what they have in common."""

    def __init__(self, first: Side, execution: Execution, engine: Engine, more: int) -> None:
        self.first, self.execution, self.engine, self.more = first, execution, engine, more
        self.made: list[Verification] = []
        self.others: list[Side] = []

    def one_more(self, plan: Plan) -> tuple[Record, RunFolder]:
        """Run the plan, and compare it with the first run.

        Raises:
            EnvironmentUnfitError: its container could not be started, or the engine went away.
        """

        def execute(planned: Plan, began: Callable[[RunFolder, Record], None]) -> tuple[Record, RunFolder]:
            return self.execution.execute(planned, self.engine, began=began)

        basis = Basis(
            expected=Level.BYTES,
            ceiling=Ceiling(level=Level.BYTES, reason=""),
            ingredients=(),
            host=self.first.record.planned.host,
        )
        made, side = again.attempt(
            self.first, plan, execute, basis, others=tuple(self.others), root=self.execution.project.root
        )
        self.made.append(made)
        self.others.append(side)
        self.execution.retell(side.folder)
        return side.record, side.folder

    @property
    def level(self) -> Level:
        """The lowest of all comparisons: the run's class."""
        return min(each.verdict.level if each.verdict else Level.MISSING for each in self.made)

    @property
    def same(self) -> bool:
        """Whether nothing differs that means anything."""
        return len(self.made) == self.more and self.level >= SAME

    def text(self) -> str:
        """The answer for people."""
        known = [each.verdict.level if each.verdict else Level.MISSING for each in self.made]
        alike = [level for level in known if level >= SAME]
        least = min(alike, default=None)
        total = self.more + 1
        words = (
            f"{WORDS[least]} in {1 + len(alike)} of {total} runs" if least else f"{total} runs, and none like the first"
        )
        lines = [f"{words}: {self.level}"]
        for verdict in (each.verdict for each in self.made if each.verdict and each.verdict.level < Level.BYTES):
            differing = [one.name for one in verdict.compared if one.level < Level.BYTES and one.role == "result"]
            lines.append(f"  {verdict.after}  {verdict.level}, {WORDS[verdict.level]}: {', '.join(differing[:SHOWN])}")
        return "\n".join(lines)
