"""Two traces -> the first moment at which the runs were not the same, and what that says; pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from enum import Enum
from itertools import zip_longest

from repro.experiment import Value
from repro.record import Fingerprint

INIT = re.compile(r"(init|start|begin|before)", re.IGNORECASE)
WEIGHTS = "weights"
ROUNDING = 1e-2  # relative: other kernels and other orders of adding up give losses that are closer than this


class Stage(str, Enum):
    """Where in a training two runs part."""

    INIT = "init"  # the weights differ before anything was learned
    ORDER = "order"  # the data that the experiment sees, or their order
    FIRST = "first step"  # the first thing that was computed
    LATER = "later"  # it was the same for a while
    END = "end"  # one run goes on where the other has ended


class Divergence(Value, frozen=True, kw_only=True):
    """The first moment at which two traces differ."""

    stage: Stage
    at: str
    differs: tuple[str, ...]  # names of the digests and values that do
    same_until: str = ""  # the moment before, which is the same
    init_same: bool = False  # the trace tells that the weights at the start are
    data_same: bool = False  # and what was seen of the data before
    apart: str = ""  # a value that is farther apart than rounding makes it, so that it was other data

    def __str__(self) -> str:
        what = f" ({', '.join(self.differs)})" if self.differs else ""
        since = f"; the same up to {self.same_until}" if self.same_until else ""
        return f"{self.at}{what}{since}"


def first(before: Sequence[Fingerprint], after: Sequence[Fingerprint]) -> Divergence | None:
    """Where two traces part; None when they do not, or when one of them says nothing."""
    if not (before and after):
        return None
    seen: list[Fingerprint] = []
    for one, other in zip_longest(before, after):
        if one == other:
            seen.append(one)
        elif one is None or other is None or one.at != other.at:
            names = " / ".join(each.at for each in (one, other) if each)
            return _divergence(Stage.END, names, (), seen)
        else:
            stage, apart = _stage(one, other, seen)
            return _divergence(stage, one.at, _differing(one, other), seen, apart)
    return None


def _divergence(
    stage: Stage, at: str, differs: tuple[str, ...], seen: Sequence[Fingerprint], apart: str = ""
) -> Divergence:
    return Divergence(
        stage=stage,
        at=at,
        differs=differs,
        same_until=seen[-1].at if seen else "",
        init_same=any(INIT.match(moment.at) and WEIGHTS in moment.digests for moment in seen),
        data_same=any(moment.digests.keys() - {WEIGHTS} for moment in seen),
        apart=apart,
    )


def _differing(one: Fingerprint, other: Fingerprint) -> tuple[str, ...]:
    pairs = ((one.digests, other.digests), (one.values, other.values))
    return tuple(name for was, now in pairs for name in sorted({*was, *now}) if was.get(name) != now.get(name))


def _stage(one: Fingerprint, other: Fingerprint, seen: Sequence[Fingerprint]) -> tuple[Stage, str]:
    """Where it is; and the value that tells so, where the loss of a first batch must stand for the batch."""
    digests = {name for name in one.digests.keys() | other.digests if one.digests.get(name) != other.digests.get(name)}
    if INIT.match(one.at):
        return (Stage.INIT if WEIGHTS in digests or not digests else Stage.ORDER), ""
    if digests - {WEIGHTS}:
        return Stage.ORDER, ""
    if any(WEIGHTS in moment.digests or moment.values for moment in seen if not INIT.match(moment.at)):
        return Stage.LATER, ""
    started = any(INIT.match(moment.at) for moment in seen)
    watched = any(moment.digests.keys() - {WEIGHTS} for moment in seen)
    apart = _far_apart(one, other) if started and not watched and "batch" in one.at.lower() else ""
    return (Stage.ORDER if apart else Stage.FIRST), apart


def _far_apart(one: Fingerprint, other: Fingerprint) -> str:
    """A value that rounding does not explain."""
    for name in sorted(one.values.keys() & other.values.keys()):
        try:
            was, now = float.fromhex(one.values[name]), float.fromhex(other.values[name])
        except (ValueError, OverflowError):  # an experiment has written it
            continue
        if math.isfinite(was) and math.isfinite(now) and abs(was - now) > ROUNDING * max(abs(was), abs(now)):
            return f"{name} {was:.6g} -> {now:.6g}"
    return ""
