"""The metrics of two runs that part -> plots, as SVG for a page and as PNG. The only door to matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from repro.compare import points
from repro.compare.points import Point
from repro.compare.sides import Side
from repro.experiment import Value
from repro.verdict import Level, Verdict

SHOWN = 12  # metrics
POINTS = 2000  # of a curve; more cannot be seen
BEFORE, AFTER, APART = "#2a78d6", "#eb6834", "#4a3aa7"
INK, GRID = "#52514e", "#dddbd5"


class Curves(Value, frozen=True, kw_only=True):
    """One metric of both runs."""

    name: str
    before: tuple[Point, ...]
    after: tuple[Point, ...]

    @property
    def apart(self) -> tuple[Point, ...]:
        """After minus before, at the steps that both have once."""
        was, now = dict(self.before), dict(self.after)
        return tuple((step, now[step] - was[step]) for step in sorted(was.keys() & now.keys()))


def diverging(before: Side, after: Side, verdict: Verdict) -> tuple[Curves, ...]:
    """The metrics that are not the same, as far as the journals tell their points; results come first."""
    names = [each for each in verdict.compared if each.kind == "metric" and each.level is not Level.BYTES]
    names.sort(key=lambda each: (each.role != "result", each.level, each.name))
    was, now = (points.read(side.record, side.folder) for side in (before, after))
    found = [
        Curves(name=each.name, before=tuple(was.get(each.name, ())), after=tuple(now.get(each.name, ())))
        for each in names
    ]
    return tuple(each for each in found if each.before or each.after)[:SHOWN]


def svg(curves: Curves) -> str:
    """One metric: both runs on the left, their difference on the right."""
    figure, _ = _figure([curves])
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def png(curves: Sequence[Curves]) -> bytes:
    """All of them, one below the other."""
    figure, _ = _figure(curves)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _figure(curves: Sequence[Curves]) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "repro",  # the same page from the same runs
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "xtick.color": INK,
        "ytick.color": INK,
        "text.parse_math": False,
        "axes.formatter.useoffset": False,
    }
    mpl.rcParams.update(style)
    rows = max(1, len(curves))
    figure = Figure(figsize=(9, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for row, each in zip(axes, curves, strict=False):
        _curve(row[0], each.before, BEFORE, "before", style="-")
        _curve(row[0], each.after, AFTER, "after", style="--")
        row[0].set_title(_visible(each.name), loc="left")
        row[0].legend(frameon=False, loc="best")
        _curve(row[1], each.apart, APART, "after - before", style="-")
        row[1].axhline(0, color=INK, linewidth=0.6)
        row[1].set_title("after − before", loc="left", fontweight="normal")
    if not curves:
        axes[0][0].text(0.5, 0.5, "no metric differs", ha="center", va="center", transform=axes[0][0].transAxes)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def _curve(axis: Any, curve: Sequence[Point], colour: str, label: str, *, style: str) -> None:
    every = max(1, math.ceil(len(curve) / POINTS))
    kept = [point for number, point in enumerate(curve) if number % every == 0 or number == len(curve) - 1]
    marker = "o" if len(kept) <= 40 else ""
    axis.plot(
        [step for step, _ in kept],
        [value if math.isfinite(value) else math.nan for _, value in kept],
        style,
        color=colour,
        label=label,
        marker=marker,
        markersize=3.5,
        linewidth=1.6,
    )


def _visible(name: str) -> str:
    """XML holds no control characters, and a title no line break."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)[:80]
