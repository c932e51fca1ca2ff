"""Layers, the place where two traces part, a verdict -> one line on why the results differ; pure.

The line never says more than is known: "proven" only where everything that went in is the same, "most likely" where
something that can explain it is another one, and which part of the run it was seen in first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from repro.compare.filing import UNSETTLED
from repro.compare.layers import Difference, Layer, Weight
from repro.compare.trace import Divergence, Stage
from repro.record import End, Record
from repro.verdict import Level, Verdict

NAMED = 3  # further causes in the line
SHORT = 48  # characters of a value
# which kinds of differences are the likelier causes of what was seen first
START = (
    "seed",
    "code",
    "config",
    "packages",
    "image",
    "environment",
    "data",
    "threads",
    "gpus",
    "cpu",
    "host",
    "promises",
)
ORDER = (
    "data",
    "seed",
    "code",
    "config",
    "packages",
    "image",
    "environment",
    "threads",
    "gpus",
    "cpu",
    "host",
    "promises",
)
STEPS = (
    "code",
    "config",
    "packages",
    "image",
    "threads",
    "gpus",
    "cpu",
    "environment",
    "data",
    "seed",
    "host",
    "promises",
)
ANY = (
    "seed",
    "code",
    "config",
    "data",
    "packages",
    "image",
    "threads",
    "environment",
    "gpus",
    "cpu",
    "host",
    "promises",
)
RANKS = {Stage.INIT: START, Stage.ORDER: ORDER, Stage.FIRST: STEPS, Stage.LATER: STEPS, Stage.END: ANY}
WORDS = {
    "seed": "the seed",
    "threads": "the threads",
    "data": "the data",
    "packages": "the image's packages",
    "image": "the image",
    "cpu": "the processor",
    "gpus": "the GPUs",
    "host": "the machine",
    "promises": "what counts as a result",
}


def causes(layers: Sequence[Layer], divergence: Divergence | None) -> list[Difference]:
    """What can explain other results, the likeliest first.

    Files of the snapshot that became configuration or image are told by these layers, where these differ.
    """
    rank = RANKS[divergence.stage] if divergence else ANY
    found = [each for layer in layers for each in layer.differences if each.weight is not Weight.NONE]
    if any(each.weight is Weight.LIKELY for each in found):
        found = [each for each in found if each.kind != "code" or each.weight is Weight.LIKELY]
    return sorted(found, key=lambda each: (-each.weight, rank.index(each.kind)))


def explain(
    verdict: Verdict, layers: Sequence[Layer], divergence: Divergence | None, before: Record, after: Record
) -> str:
    """The line."""
    found = causes(layers, divergence)
    if incomplete := _incomplete(before, after):
        return f"{incomplete}, so there is no whole result to compare{_because(found)}"
    if verdict.explanation:  # there was nothing to compare
        return verdict.explanation
    if verdict.level >= Level.STABILIZED:
        return _same(verdict, layers, divergence)
    differing = [each for each in verdict.compared if each.role == "result" and each.level < Level.STABILIZED]
    if differing and all(UNSETTLED in each.remark for each in differing):
        return f"{differing[0].name} could not be read in time, so nobody can tell whether the results are the same"
    what = {
        Level.TOLERANCE: "the results are inside the tolerance and not the same to the byte",
        Level.STATISTICAL: "the results are inside the interval of the original's repeats and not the same to the byte",
    }.get(verdict.level, "the results differ")
    return f"{_differ(what, layers, found, before, after)}{_seen(divergence, before, found)}"


def _same(verdict: Verdict, layers: Sequence[Layer], divergence: Divergence | None) -> str:
    how = "to the byte" if verdict.level is Level.BYTES else "after the named stabilizers"
    line = f"the results are the same {how}"
    if differing := [layer.name for layer in layers if layer.differences]:
        line += f", although there are differences in {_listed(differing)}"
    return f"{line}; on the way there the runs differed at {divergence}" if divergence else line


def _differ(what: str, layers: Sequence[Layer], found: Sequence[Difference], before: Record, after: Record) -> str:
    keys = before.planned.run_key, after.planned.run_key
    same = all(keys) and keys[0] == keys[1]
    if found and (found[0].weight is Weight.LIKELY or not same):
        return f"{what}{_because(found)}"
    if same:
        machine = _listed([" ".join(filter(None, [each.what, _change(each)])) for each in found])
        machine = machine or "; ".join(layer.unknown for layer in layers if layer.unknown)
        others = [f"the machine ({machine})"] if machine else []
        others += [each for record in (before, after) for each in _untold(record) if each not in others]
        if others:
            told = "everything that a record tells of what went in"
            return f"{told} is the same, and {what}: non-determinism, or {' or '.join(dict.fromkeys(others))}"
        return f"proven non-determinism: everything that went in is the same, and {what}"
    if all(keys):
        return f"{what}, and nothing was found in what went in that can explain it"
    return f"{what}, and nothing that these records tell of what went in differs: non-determinism, as far as is known"


def _untold(record: Record) -> Iterator[str]:
    """What went in, and that no record tells."""
    if record.planned.network != "none":
        yield f"what came from the network ({record.planned.network})"
    if secrets := record.planned.config.get("secrets"):
        yield f"another value of a secret ({', '.join(sorted(secrets))})"


def _incomplete(before: Record, after: Record) -> str:
    """A run that has no whole result explains by itself that they differ."""
    told = []
    for record in (before, after):
        if record.ended is None:
            told.append(f"{record.planned.run} is not over")
        elif record.ended.end is not End.FINISHED:
            told.append(f"{record.planned.run} did not finish ({record.ended.end.value}: {record.ended.reason})")
    return " and ".join(told)


def _because(found: Sequence[Difference]) -> str:
    told = _grouped(found)
    if not told:
        return ""
    first, *more = told
    likely = f", most likely because of {first}"
    if not more:
        return likely
    rest = more[:NAMED] + ([f"{len(more) - NAMED} more"] if len(more) > NAMED else [])
    return f"{likely}; also different: {_listed(rest)}"


def _grouped(found: Sequence[Difference]) -> list[str]:
    """Causes in words; many of one kind (packages of an image) are one."""
    told: dict[str, list[Difference]] = {}
    for each in found:
        told.setdefault(each.kind, []).append(each)
    origin = told.pop("image", []) if "packages" in told else []  # they came with it
    causes = [_cause(kind, differences) for kind, differences in told.items()]
    if origin:
        at = list(told).index("packages")
        causes[at] += f" from {origin[0].what}" + (f" and {len(origin) - 1:,} more" if len(origin) > 1 else "")
    return causes


def _cause(kind: str, differences: Sequence[Difference]) -> str:
    first, more = differences[0], len(differences) - 1
    rest = f" and {more:,} more" if more else ""
    if kind == "code":
        place = first.detail[0] if first.detail and first.before and first.after else ""
        line = place.partition("+")[2].partition(",")[0]
        return first.what + (f":{line}" if line else "") + (f" and {more:,} more of the code" if more else " (code)")
    if kind in ("seed", "threads") and first.what in ("seed", "threads"):
        return f"{WORDS[kind]} ({_change(first)}){rest}"
    if kind in WORDS:
        return f"{WORDS[kind]} ({' '.join(filter(None, [first.what, _change(first)]))}{rest})"
    return f"{first.what} ({_change(first)}){rest}"


def _change(difference: Difference) -> str:
    before, after = (
        each and (each if len(each) <= SHORT else f"{each[: SHORT - 3]}...")
        for each in (difference.before, difference.after)
    )
    if before is None:
        return f"added {after}" if after is not None else ""
    return f"removed {before}" if after is None else f"{before} -> {after}"


def _seen(divergence: Divergence | None, record: Record, found: Sequence[Difference]) -> str:
    """What the traces tell of the place where the runs part; and where nothing else explains it, what does that."""
    hint = "" if found else f": {_hint(divergence, record)}"
    if divergence is None:
        return hint
    return f". {_place(divergence)}{hint}"


def _place(divergence: Divergence) -> str:
    init, data = divergence.init_same, divergence.data_same
    parts = [*(["initial weights"] if init else []), *(["data"] if data else [])]
    same = f", with the same {_listed(parts)}" if parts else ""
    if divergence.stage is Stage.INIT:
        return "They differ from the start, in the initial weights"
    if divergence.stage is Stage.ORDER:
        if divergence.apart:
            far = f"{divergence.apart}, too far apart for rounding"
            return f"They differ first at {divergence.at}{same} ({far}): in the data that were seen, or their order"
        return f"They differ first in the data that were seen at {divergence.at}, or their order{same}"
    if divergence.stage is Stage.FIRST:
        arithmetic = ", so it is the arithmetic that differs" if init and data else ""
        return f"They differ first at {divergence.at}{same}{arithmetic}"
    if divergence.stage is Stage.LATER:
        return f"They differ first at {divergence.at}, and are the same up to {divergence.same_until}"
    return f"Their traces part at {divergence.at}"


def _hint(divergence: Divergence | None, record: Record) -> str:
    if record.planned.config.get("deterministic") is False:
        return "the run was not asked to be deterministic"
    return {
        Stage.INIT: "an initialiser is not seeded",
        Stage.ORDER: "shuffling, sampling or augmentation is not seeded",
        Stage.FIRST: "an operation is not deterministic (threads, GPU kernels)",
        Stage.LATER: "an operation is not deterministic, or something comes in from outside (time, random numbers)",
    }.get(divergence.stage if divergence else Stage.END, "a trace (repro_run.fingerprint) would tell where it begins")


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
