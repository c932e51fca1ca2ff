"""Two runs -> everything that differs, from causes to results, with one line on why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from repro.compare import comparing, explanation, layers, trace
from repro.compare.sides import Side
from repro.compare.tolerance import Tolerance
from repro.experiment import Value
from repro.verdict import Verdict


class Comparison(Value, frozen=True, kw_only=True):
    """Two runs compared, layer by layer."""

    layers: tuple[layers.Layer, ...]  # of what went in, in causal order
    traced: bool  # both runs have left a trace
    divergence: trace.Divergence | None
    verdict: Verdict
    causes: tuple[str, ...]  # that can explain other results, the likeliest first
    run_key: str  # same, differs, or "" where a record is too old to have one


def between(
    before: Side,
    after: Side,
    root: Path | None,
    tolerance: Tolerance | None = None,
    others: Sequence[Side] = (),
    files: Sequence[layers.Difference] = (),
) -> Comparison:
    """The whole comparison; `root` is a folder in the repository that has the code of the runs, if there is one.

    `others`: further runs of what `before` was; `files`: those of the images that differ, where somebody has looked.
    """
    return of(before, after, root, comparing.compare(before, after, tolerance, others), files)


def of(
    before: Side, after: Side, root: Path | None, verdict: Verdict, files: Sequence[layers.Difference] = ()
) -> Comparison:
    """The same for a verdict that is there already: it comes back with its explanation."""
    found = layers.of(before, after, root)
    if files:
        found = tuple(
            msgspec.structs.replace(each, differences=(*each.differences, *files)) if each.name == "image" else each
            for each in found
        )
    traces = [side.record.ended.trace if side.record.ended else () for side in (before, after)]
    parted = trace.first(*traces)
    line = explanation.explain(verdict, found, parted, before.record, after.record)
    keys = [side.record.planned.run_key for side in (before, after)]
    return Comparison(
        layers=found,
        traced=all(traces),
        divergence=parted,
        verdict=msgspec.structs.replace(verdict, explanation=line),
        causes=tuple(each.text for each in explanation.causes(found, parted)),
        run_key="" if not all(keys) else "same" if keys[0] == keys[1] else "differs",
    )
