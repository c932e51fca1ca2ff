"""A comparison -> text for people; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from repro import printable, report
from repro.compare.differences import Comparison
from repro.compare.layers import Difference, Layer, Weight
from repro.record import Record
from repro.verdict import Compared, Level

SHOWN = 20  # differences of a layer; JSON has all
INDENT = 13


def text(comparison: Comparison, before: Record, after: Record) -> str:
    """Every layer, what came out, the level, and why."""
    verdict = comparison.verdict
    rows = [
        ("before", [f"{record.planned.run}  {printable.line(report.outcome(record))}" for record in (before,)]),
        ("after", [f"{record.planned.run}  {printable.line(report.outcome(record))}" for record in (after,)]),
        ("", [""]),
        *((layer.name, list(_layer(layer))) for layer in comparison.layers),
        ("trace", [trace(comparison)]),
        ("results", list(_results(verdict.compared))),
        ("level", [f"{verdict.level}  {MEANING[verdict.level]}"]),
        ("because", [printable.line(verdict.explanation)]),
    ]
    return "\n".join(line.rstrip() for name, lines in rows for line in _indented(name, lines))


MEANING = {
    Level.MISSING: "something is missing on one side",
    Level.DIFFERENT: "the results differ",
    Level.STATISTICAL: "inside the interval of the original's repeats",
    Level.TOLERANCE: "numbers inside the tolerance",
    Level.STABILIZED: "the same after stabilizers",
    Level.BYTES: "the same, byte for byte",
}


def _indented(name: str, lines: Sequence[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"{'' if number else name:<{INDENT}}{line}"


def _layer(layer: Layer) -> Iterator[str]:
    unknown = f"  ({layer.unknown})" if layer.unknown else ""
    if not layer.differences:
        yield f"same{unknown}"
        return
    for each in layer.differences[:SHOWN]:
        yield line(each)
        yield from (f"  | {printable.line(detail)}" for detail in each.detail)
    if (more := len(layer.differences) - SHOWN) > 0:
        yield f"and {report.many(more, 'more difference')}"
    if unknown:
        yield unknown.strip()


def line(difference: Difference) -> str:
    """One difference."""
    idle = "  (decides nothing)" if difference.weight is Weight.NONE else ""
    return printable.line(report.LONG_DIGEST.sub(r"\1", difference.text)) + idle


def trace(comparison: Comparison) -> str:
    """Where the runs part."""
    if not comparison.traced:
        return "not known: a run has left none (repro_run.fingerprint)"
    return printable.line(f"differs at {comparison.divergence}") if comparison.divergence else "same"


def _results(compared: Sequence[Compared]) -> Iterator[str]:
    """The worst first; what is the same is counted."""
    differing = sorted((each for each in compared if each.level is not Level.BYTES), key=lambda each: each.level)
    for each in differing[:SHOWN]:
        yield result(each)
    if (more := len(differing) - SHOWN) > 0:
        yield f"and {more:,} more that are not the same"
    same = [each for each in compared if each.level is Level.BYTES]
    if same:
        yield f"{Level.BYTES}  {', '.join(_counts(same))}"


def _counts(compared: Iterable[Compared]) -> Iterator[str]:
    kinds: list[str] = [each.kind for each in compared]
    for kind, word in (("file", "file"), ("metric", "metric"), ("exit", "end")):
        if count := kinds.count(kind):
            yield report.many(count, word)


def result(compared: Compared) -> str:
    """One result on both sides."""
    before, after = (report.LONG_DIGEST.sub(r"\1", each) or "-" for each in (compared.before, compared.after))
    short = [each if len(each) <= SHORT else f"{each[: SHORT - 3]}..." for each in (before, after)]
    remarks = [
        "by-product, not counted" if compared.role == "by-product" else "",
        compared.stabilizer or "",
        compared.remark,
    ]
    remark = f"  ({'; '.join(filter(None, remarks))})" if any(remarks) else ""
    return printable.line(f"{compared.level}  {compared.kind} {compared.name}  {short[0]} -> {short[1]}{remark}")


SHORT = 60  # characters of a value
