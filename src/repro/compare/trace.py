"""Two traces -> the first moment at which the runs were not the same, and what that says; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from itertools import zip_longest

from repro.experiment import Value
from repro.record import Fingerprint

INIT = re.compile(r"(init|start|begin|before)", re.IGNORECASE)
BATCH = re.compile(r"batch", re.IGNORECASE)
WEIGHTS = frozenset({"weights", "model"})


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
    batch_same: bool = False  # and the first batch

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
            return _divergence(_stage(one, other, seen), one.at, _differing(one, other), seen)
    return None


def _divergence(stage: Stage, at: str, differs: tuple[str, ...], seen: Sequence[Fingerprint]) -> Divergence:
    return Divergence(
        stage=stage,
        at=at,
        differs=differs,
        same_until=seen[-1].at if seen else "",
        init_same=any(INIT.match(moment.at) and WEIGHTS & moment.digests.keys() for moment in seen),
        batch_same=any(BATCH.search(moment.at) and moment.digests.keys() - WEIGHTS for moment in seen),
    )


def _differing(one: Fingerprint, other: Fingerprint) -> tuple[str, ...]:
    pairs = ((one.digests, other.digests), (one.values, other.values))
    return tuple(name for was, now in pairs for name in sorted({*was, *now}) if was.get(name) != now.get(name))


def _stage(one: Fingerprint, other: Fingerprint, seen: Sequence[Fingerprint]) -> Stage:
    digests = {name for name in _differing(one, other) if name in one.digests or name in other.digests}
    if INIT.match(one.at):
        return Stage.INIT if WEIGHTS & digests or not digests else Stage.ORDER
    if digests - WEIGHTS:
        return Stage.ORDER
    computed = [moment for moment in seen if not (INIT.match(moment.at) or BATCH.search(moment.at))]
    return Stage.LATER if computed else Stage.FIRST
