"""The original's repeats -> the interval that one more run falls into, with 95 % probability.

It is the rule of CORE-Bench (Siegel et al. 2024): mean ± t(.975, n-1) · s · sqrt(1 + 1/n), a *prediction* interval for
one further value. Failing to find a difference would be no evidence of sameness; to be inside a range that was fixed
before is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from repro.compare import leaves
from repro.experiment import Value

FEWEST = 3  # repeats, the original among them
PROBABILITY = 0.95


class Interval(Value, frozen=True, kw_only=True):
    """Where one more value is to be expected."""

    low: float
    high: float
    count: int  # of the values that it is from

    def holds(self, value: float) -> bool:
        """Whether a value is inside; none that is not finite is."""
        return math.isfinite(value) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"95 % prediction interval [{self.low:.6g}, {self.high:.6g}] of {self.count} runs"


def interval(values: Sequence[float]) -> Interval | None:
    """The prediction interval for one more value; None for fewer than three values, or one that is not finite."""
    count = len(values)
    if count < FEWEST or not all(math.isfinite(value) for value in values):
        return None
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    reach = float(stdtrit(count - 1, (1 + PROBABILITY) / 2)) * deviation * math.sqrt(1 + 1 / count)
    return Interval(low=min(mean - reach, *values), high=max(mean + reach, *values), count=count)


def spread(name: str, repeats: Sequence[bytes], after: bytes) -> leaves.Distance:
    """Whether each number in a file is inside the interval of the same number in the repeats, and all else is equal."""
    try:
        read = [leaves.texts(name, content) for content in repeats]
        last = leaves.texts(name, after)
    except leaves.UnreadableError as error:
        return leaves.Distance(same=False, remark=f"its numbers cannot be compared: {error}")
    if any([place for place, _ in each] != [place for place, _ in last] for each in read):
        return leaves.Distance(same=False, remark="other structure")
    for index, (place, now) in enumerate(last):
        was = [each[index][1] for each in read]
        if all(type(each) is type(now) and each == now for each in was):
            continue
        expected = _interval(was) if leaves.is_number(now) else None
        if expected is None or not expected.holds(float(now)):
            return leaves.Distance(same=False, remark=f"{place}: {now!r} is outside its {expected or 'repeats'}")
    return leaves.Distance(same=True, remark=f"each number inside its 95 % prediction interval of {len(repeats)} runs")


def _interval(values: Sequence[object]) -> Interval | None:
    """Of numbers that vary; where all are equal, anything else is another value."""
    if not all(map(leaves.is_number, values)) or len(set(values)) == 1:
        return None
    try:
        return interval([float(value) for value in values])  # type: ignore[arg-type]
    except OverflowError:
        return None
