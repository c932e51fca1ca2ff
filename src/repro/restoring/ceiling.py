"""The most that may be expected of a run on this machine, before anything is run; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from repro.record import Host, Record
from repro.restoring import held
from repro.running import determinism
from repro.stabilize import pairing
from repro.verdict import Ceiling, Ingredient, Level

# what numeric libraries choose their code by; all others (cache hints, virtualisation, mitigations) change no number
DECIDING = re.compile(
    r"(sse\w*|ssse3|avx\w*|fma4?|f16c|bmi[12]|popcnt|abm|amx\w*|xop|"  # x86
    r"asimd\w*|neon|sve\w*|sme\w*|fphp|bf16|i8mm)"  # Arm
)
Limit = tuple[Level, str]


def of(
    record: Record, host: Host, ingredients: Iterable[Ingredient] = (), *, born: tuple[Level, str] | None = None
) -> Ceiling:
    """What may be expected of `record` on `host`; `born`: what its own repeats came to, and how many there were.

    Where nothing speaks against the same bytes, but something is not known, the reason says so.
    """
    limits = [*_lost(ingredients), *_cpu(record, host), *_gpus(record, host), *_nature(record, born)]
    lowest = min((level for level, _ in limits), default=Level.BYTES)
    reasons = dict.fromkeys(reason for level, reason in limits if level == lowest)
    return Ceiling(level=lowest, reason="; ".join(reasons))


def deciding(flags: Iterable[str]) -> frozenset[str]:
    """The instruction sets among a processor's flags that decide which code a numeric library runs."""
    return frozenset(flag for flag in flags if DECIDING.fullmatch(flag))


def portable(record: Record) -> bool:
    """Whether the run was told to compute the same on every processor of an architecture."""
    return record.planned.config.get("deterministic") == determinism.PORTABLE


def _lost(ingredients: Iterable[Ingredient]) -> Iterator[Limit]:
    for each in ingredients:
        if not each.use:
            yield Level.MISSING, f"{name(each)} is lost: {each.remark or 'it is nowhere'}"
        elif each.kind == "image" and each.use.startswith(held.RECIPE):
            yield Level.BYTES, "unknown: the image has to be built anew, and may become another"


def name(ingredient: Ingredient) -> str:
    """An ingredient in words."""
    return f"{ingredient.kind} {ingredient.name}".rstrip()


def _cpu(record: Record, host: Host) -> Iterator[Limit]:
    then = record.planned.host
    before, now = then.architecture or _machine(then.system), host.architecture or _machine(host.system)
    if before and now and before != now:
        yield Level.STATISTICAL, f"the processor is {now} here and was {before}"
        return
    if not then.cpu_flags or not host.cpu_flags:
        where = (
            "the record does not say on which processor it ran" if not then.cpu_flags else "this processor is unknown"
        )
        yield Level.BYTES, f"unknown: {where}"
        return
    missing, new = (
        deciding(then.cpu_flags) - deciding(host.cpu_flags),
        deciding(host.cpu_flags) - deciding(then.cpu_flags),
    )
    if not missing and not new:
        return
    differing = [f"it has no {_some(missing)}"] if missing else []
    differing += [f"it has {_some(new)} more"] if new else []
    text = f"another processor ({host.cpu or 'unknown'}) than the run had ({then.cpu or 'unknown'}): "
    text += " and ".join(differing)
    if portable(record):
        yield Level.BYTES, f"{text}; the run was `deterministic: portable`"
    else:
        yield Level.TOLERANCE, text


def _machine(system: str) -> str:
    """x86_64 for linux/amd64."""
    machine = system.rpartition("/")[2]
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _some(flags: Iterable[str], most: int = 4) -> str:
    known = sorted(flags)
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")


def _gpus(record: Record, host: Host) -> Iterator[Limit]:
    """Bits are the same on GPUs of one architecture and model, as many, with one driver; on others they are not."""
    had = record.started.gpus if record.started else "none"
    if had == "none":
        return
    then = record.planned.host.gpus
    if not then or not host.gpus:
        yield Level.BYTES, "unknown: the GPUs of the run, or those here"
        return
    before, now = ({each.architecture for each in gpus} for gpus in (then, host.gpus))
    if before != now:
        yield Level.STATISTICAL, f"GPU architecture {_list(now)} here, {_list(before)} there"
        return
    for what, field in (("GPU", "name"), ("GPU driver", "driver")):
        before, now = ({getattr(each, field) for each in gpus} for gpus in (then, host.gpus))
        if before != now:
            yield Level.TOLERANCE, f"{what} {_list(now)} here, {_list(before)} there"
    if had == "all" and len(then) > len(host.gpus):
        yield Level.TOLERANCE, f"{len(host.gpus)} GPUs here, {len(then)} there"


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "unknown"


def _nature(record: Record, born: tuple[Level, str] | None) -> Iterator[Limit]:
    if born is not None and born[0] < Level.BYTES:
        # what differs by chance may still be inside the interval that the repeats give
        yield max(born[0], Level.STATISTICAL), f"it was not the same in its own repeats ({born[1]})"
    outputs = record.ended.outputs if record.ended else ()
    if any(pairing.pairing_name(file.path) != file.path for file in outputs if file.role == "result"):
        yield Level.STABILIZED, "TensorBoard's event files have the time in them and in their names"
    if record.planned.network != "none":
        yield (
            Level.BYTES,
            f"unknown: it had a network ({record.planned.network}), and what came from there is not recorded",
        )
