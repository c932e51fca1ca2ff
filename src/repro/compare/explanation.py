"""Layers, the place where two traces part, a verdict -> one line on why the results differ; pure.

The line never says more than is known: "proven" only where everything that went in is the same, "most likely" where
something that can explain it is another one, and which part of the run it was seen in first.
"""

from __future__ import annotations

from collections.abc import Sequence

from repro.compare.layers import Difference, Layer, Weight
from repro.compare.trace import Divergence, Stage
from repro.record import End, Record
from repro.verdict import Level, Verdict

NAMED = 3  # further causes in the line
# which kinds of differences are the likelier causes of what was seen first
START = ("seed", "code", "config", "packages", "image", "environment", "data", "threads", "gpus", "cpu", "host")
ORDER = ("data", "seed", "code", "config", "packages", "image", "environment", "threads", "gpus", "cpu", "host")
STEPS = ("code", "config", "packages", "image", "threads", "gpus", "cpu", "environment", "data", "seed", "host")
ANY = ("seed", "code", "config", "data", "packages", "image", "threads", "environment", "gpus", "cpu", "host")
RANKS = {Stage.INIT: START, Stage.ORDER: ORDER, Stage.FIRST: STEPS, Stage.LATER: STEPS, Stage.END: ANY}
GROUPS = {"packages": "the packages of the image", "image": "the image", "data": "the data", "threads": "threads"}


def causes(layers: Sequence[Layer], divergence: Divergence | None) -> list[Difference]:
    """What can explain other results, the likeliest first."""
    rank = RANKS[divergence.stage] if divergence else ANY
    found = [each for layer in layers for each in layer.differences if each.weight is not Weight.NONE]
    return sorted(found, key=lambda each: (-each.weight, rank.index(each.kind)))


def explain(
    verdict: Verdict, layers: Sequence[Layer], divergence: Divergence | None, before: Record, after: Record
) -> str:
    """The line."""
    if incomplete := _incomplete(before, after):
        return _with_causes(incomplete, layers, divergence)
    if verdict.explanation:  # there was nothing to compare
        return verdict.explanation
    if verdict.level >= Level.STABILIZED:
        return _same(verdict, layers, divergence)
    return _differ(verdict, layers, divergence, before, after)


def _same(verdict: Verdict, layers: Sequence[Layer], divergence: Divergence | None) -> str:
    how = "to the byte" if verdict.level is Level.BYTES else "after the stabilizers named above"
    line = f"the results are the same {how}"
    if differing := [layer.name for layer in layers if layer.differences]:
        line += f", although there are differences in {_listed(differing)}"
    if divergence:
        line += f"; on the way there the runs differed at {divergence}"
    return line


def _differ(
    verdict: Verdict, layers: Sequence[Layer], divergence: Divergence | None, before: Record, after: Record
) -> str:
    what = {
        Level.TOLERANCE: "the results are inside the tolerance, not the same to the byte",
        Level.STATISTICAL: "the results are inside the interval of the original's repeats, not the same to the byte",
    }.get(verdict.level, "the results differ")
    seen = _seen(divergence)
    keys = before.planned.run_key, after.planned.run_key
    same_key = all(keys) and keys[0] == keys[1]
    found = causes(layers, divergence)
    if found and (found[0].weight is Weight.LIKELY or not same_key):
        return _with_causes(f"{what}{seen}", layers, divergence)
    if found:
        machine = f"non-determinism, or {_listed(_grouped(found))}"
        return f"everything that went in is the same, and {what}{seen}: {machine}. {_hint(divergence, before)}"
    if same_key and any(layer.unknown for layer in layers):
        unknown = "; ".join(layer.unknown for layer in layers if layer.unknown)
        return f"everything that went in is the same, and {what}{seen}: non-determinism, or another machine ({unknown})"
    if same_key:
        proven = "proven non-determinism: everything that went in is the same"
        return f"{proven}, and {what}{seen}. {_hint(divergence, before)}"
    if all(keys):
        return f"{what}{seen}; of what went in, nothing was found that can explain it"
    return f"{what}{seen}; nothing that these records tell of what went in differs: non-determinism, as far as is known"


def _incomplete(before: Record, after: Record) -> str:
    """A run that has no whole result explains by itself that they differ."""
    told = []
    for record in (before, after):
        if record.ended is None:
            told.append(f"{record.planned.run} is not over")
        elif record.ended.end is not End.FINISHED:
            told.append(f"{record.planned.run} {record.ended.end.value} ({record.ended.reason})")
    return " and ".join(told)


def _with_causes(line: str, layers: Sequence[Layer], divergence: Divergence | None) -> str:
    found = _grouped(causes(layers, divergence))
    if not found:
        return line
    first, *more = found
    likely = f"{line}: most likely because of {first}"
    if not more:
        return likely
    rest = more[:NAMED] + ([f"{len(more) - NAMED} more differences"] if len(more) > NAMED else [])
    return f"{likely}; there {'is' if len(more) == 1 else 'are'} also {_listed(rest)}"


def _grouped(found: Sequence[Difference]) -> list[str]:
    """Causes in words; many of one kind (packages of an image) are one."""
    told: dict[str, list[Difference]] = {}
    for each in found:
        told.setdefault(each.kind, []).append(each)
    return [_cause(kind, differences) for kind, differences in told.items()]


def _cause(kind: str, differences: Sequence[Difference]) -> str:
    first = differences[0].text
    if kind == "code":
        places = [place for each in differences for place in each.detail[:1] if place[:1] == "-"]
        names = [each.what for each in differences]
        line = places[0].partition("+")[2].partition(",")[0].strip() if places else ""
        first = f"the code: {names[0]}" + (f":{line}" if line else "")
        return first + (f" and {_many(len(names) - 1, 'more file')}" if len(names) > 1 else "")
    word = {"seed": "the seed: ", "config": "the configuration: ", "environment": "the environment: "}.get(kind, "")
    word = word or (f"{GROUPS[kind]}: " if kind in GROUPS else "the machine: ")
    return f"{word}{first}" + (f" and {len(differences) - 1} more" if len(differences) > 1 else "")


def _seen(divergence: Divergence | None) -> str:
    """What the traces tell of the place where the runs part."""
    if divergence is None:
        return ""
    init, batch = divergence.init_same, divergence.batch_same
    same = _listed([*(["the initial weights"] if init else []), *(["the first batch"] if batch else [])])
    so_far = f"{same} {'are' if init else 'is'} the same" if same else ""
    told = {
        Stage.INIT: "from the start, the initial weights (seed, initialiser or library version)",
        Stage.ORDER: f"in the data that were seen at {divergence.at} (their order, or the data)",
        Stage.FIRST: f"first at {divergence.at}"
        + (" (arithmetic: kernels, threads, processor or driver)" if init and batch else ""),
        Stage.LATER: f"first at {divergence.at}, the same up to {divergence.same_until} (a non-deterministic operation,"
        " or state from outside)",
        Stage.END: f"in what was recorded on the way, at {divergence.at}",
    }[divergence.stage]
    return f", {told}" + (f"; {so_far}" if so_far and divergence.stage is not Stage.LATER else "")


def _hint(divergence: Divergence | None, record: Record) -> str:
    if record.planned.config.get("deterministic") is False:
        return "The run was not asked to be deterministic (deterministic=false)"
    return {
        Stage.INIT: "An initialiser is not seeded",
        Stage.ORDER: "Shuffling, sampling or augmentation is not seeded",
        Stage.FIRST: "An operation is not deterministic: look at threads and GPU kernels",
        Stage.LATER: "An operation is not deterministic, or the run reads time, random numbers or files from outside",
    }.get(divergence.stage if divergence else Stage.END, "A trace would tell where: repro_run.fingerprint(...)")


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
