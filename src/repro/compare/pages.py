"""A comparison -> one HTML page that needs nothing else: no script, no request, light and dark."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from repro import printable, report
from repro.compare import plots, wording
from repro.compare.differences import Comparison
from repro.compare.layers import Difference, Layer, Weight
from repro.record import Record
from repro.verdict import Compared, Level

PAGE = Path(__file__).with_name("page.html")
FILES_SHOWN = 200  # rows of results
COLOURS = {
    plots.BEFORE: "var(--before)",
    plots.AFTER: "var(--after)",
    plots.APART: "var(--apart)",
    plots.INK: "var(--muted)",
    plots.GRID: "var(--line)",
}


def page(comparison: Comparison, before: Record, after: Record, curves: Sequence[plots.Curves]) -> str:
    """The whole page; whatever comes from a run is escaped."""
    verdict = comparison.verdict
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=_text(f"{before.planned.run} and {after.planned.run}"),
        before=_run(before, "before"),
        after=_run(after, "after"),
        level=_text(str(verdict.level)),
        tone=_tone(verdict.level),
        explanation=_text(verdict.explanation),
        layers="\n".join([*map(_layer, comparison.layers), _trace(comparison)]),
        results="\n".join(_results(verdict.compared)),
        plots="\n".join(map(_plot, curves)) or '<p class="quiet">No metric differs.</p>',
    )


def _text(raw: str) -> str:
    return html.escape(printable.line(raw))


def _tone(level: Level) -> str:
    """Green, amber or red; the level says it in letters, too."""
    if level >= Level.STABILIZED:
        return "good"
    return "fair" if level >= Level.STATISTICAL else "bad"


def _run(record: Record, side: str) -> str:
    planned = record.planned
    facts = [
        report.outcome(record),
        f"{planned.image.tag}",
        f"commit {planned.code.commit[:12]}" + (" (uncommitted changes)" if planned.code.dirty else ""),
        f"{planned.host.name}" + (f", {planned.host.cpu}" if planned.host.cpu else ""),
    ]
    items = "".join(f"<li>{_text(fact)}</li>" for fact in facts if fact)
    return f'<section class="run {side}"><h2>{side}</h2><h3>{_text(planned.run)}</h3><ul>{items}</ul></section>'


def _layer(layer: Layer) -> str:
    unknown = f'<p class="quiet">{_text(layer.unknown)}</p>' if layer.unknown else ""
    if not layer.differences:
        return _row(layer.name, "same", '<span class="same">same</span>' + unknown)
    return _row(layer.name, "differs", "".join(map(_difference, layer.differences)) + unknown)


def _row(name: str, state: str, content: str) -> str:
    return f'<div class="layer {state}"><dt>{_text(name)}</dt><dd>{content}</dd></div>'


def _difference(each: Difference) -> str:
    idle = ' <span class="quiet">(decides nothing)</span>' if each.weight is Weight.NONE else ""
    change = ""
    if each.before is not None or each.after is not None:
        was, now = (
            f'<del class="value">{_short(each.before)}</del>' if each.before is not None else "",
            f'<ins class="value">{_short(each.after)}</ins>' if each.after is not None else "",
        )
        change = f" {was} {now}"
    lines = "".join(_code_line(line) for line in each.detail)
    detail = f"<pre>{lines}</pre>" if lines else ""
    return f'<div class="difference"><span class="what">{_text(each.what)}</span>{change}{idle}{detail}</div>'


def _short(value: str) -> str:
    text = report.LONG_DIGEST.sub(r"\1", value)
    return _text(text if len(text) <= 400 else f"{text[:397]}...")


def _code_line(line: str) -> str:
    tone = {"-": "old", "+": "new"}.get(line[:1], "place")
    if tone == "old" and line[1:2].isdigit() and " +" in line:  # the place: -3 +3
        tone = "place"
    return f'<span class="{tone}">{_text(line)}</span>\n'


def _trace(comparison: Comparison) -> str:
    state = "differs" if comparison.divergence else "same"
    if not comparison.traced:
        return _row("trace", "same", f'<span class="quiet">{_text(wording.trace(comparison))}</span>')
    return _row("trace", state, f'<span class="{state}">{_text(wording.trace(comparison))}</span>')


def _results(compared: Sequence[Compared]) -> Iterator[str]:
    ordered = sorted(compared, key=lambda each: (each.role != "result", each.level, each.kind, each.name))
    for each in ordered[:FILES_SHOWN]:
        remarks = [each.stabilizer or "", each.remark, "by-product, not counted" if each.role == "by-product" else ""]
        cells = [
            f'<td><span class="badge {_tone(each.level)}">{each.level}</span></td>',
            f"<td>{_text(each.kind)}</td>",
            f'<td class="name">{_text(each.name)}</td>',
            f'<td class="value">{_short(each.before) or "–"}</td>',
            f'<td class="value">{_short(each.after) or "–"}</td>',
            f'<td class="quiet">{_text("; ".join(filter(None, remarks)))}</td>',
        ]
        yield f"<tr>{''.join(cells)}</tr>"
    if (more := len(ordered) - FILES_SHOWN) > 0:
        yield f'<tr><td colspan="6" class="quiet">and {more:,} more: <code>repro diff --json</code></td></tr>'


def _plot(curves: plots.Curves) -> str:
    drawn = plots.svg(curves)
    for colour, variable in COLOURS.items():
        drawn = drawn.replace(f": {colour}", f": {variable}")
    return f'<figure role="img" aria-label="{_text(curves.name)}">{drawn}</figure>'
