"""A tolerance file -> how far numbers may be apart and still be called the same. Declared before a run, by a person."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from repro.errors import BadInputError
from repro.experiment import Value

PATTERN = frozenset("*?[")
EXAMPLE = '[metrics]\n"test_accuracy" = {abs = 0.001}\n[files]\n"results.json" = {rel = 1e-6}'


class Margin(Value, frozen=True, kw_only=True):
    """How far a number may be from the original's: by `abs`, or by `rel` of the original, whichever is more."""

    abs: float = 0.0
    rel: float = 0.0
    last: bool = False  # of a metric: only its last value counts, not every point

    def holds(self, before: float, after: float) -> bool:
        """Whether a number is close enough to the original one; one that is not finite must be the same."""
        if before == after or (before != before and after != after):  # noqa: PLR0124 - both are no number
            return True
        try:
            distance = abs(before - after)
            return math.isfinite(distance) and distance <= max(self.abs, self.rel * abs(before))
        except OverflowError:  # an integer beyond all floats
            return False

    def __str__(self) -> str:
        parts = [f"{name} {value:g}" for name, value in (("abs", self.abs), ("rel", self.rel)) if value]
        return ", ".join([*(parts or ["0"]), *(["last value"] if self.last else [])])


class Tolerance(Value, frozen=True, kw_only=True):
    """The margins of metrics and files, by name or by a shell's pattern."""

    metrics: dict[str, Margin] = msgspec.field(default_factory=dict)
    files: dict[str, Margin] = msgspec.field(default_factory=dict)

    def metric(self, name: str) -> Margin | None:
        """What is declared for a metric."""
        return _declared(self.metrics, name)

    def file(self, path: str) -> Margin | None:
        """What is declared for the numbers in a file."""
        return _declared(self.files, path)


def _declared(margins: Mapping[str, Margin], name: str) -> Margin | None:
    if name in margins:
        return margins[name]
    return next((margin for pattern, margin in margins.items() if fnmatch.fnmatchcase(name, pattern)), None)


def read(path: Path) -> Tolerance:
    """The tolerance that a TOML file declares.

    Raises:
        BadInputError: it cannot be read, or says what is no tolerance.
    """
    try:
        content = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise BadInputError(
            f"{path} cannot be read: {error.strerror}", hints=[f"it looks like this:\n{EXAMPLE}"]
        ) from None
    except (msgspec.DecodeError, ValueError) as error:
        raise BadInputError(
            f"{path} is no TOML", evidence=[str(error)], hints=[f"it looks like this:\n{EXAMPLE}"]
        ) from None
    _known(path, "", content, ("metrics", "files"))
    parts: dict[str, dict[str, Margin]] = {}
    for part, entries in content.items():
        if not isinstance(entries, dict):
            raise BadInputError(f"{path}: {part} is no table", hints=[f"it looks like this:\n{EXAMPLE}"])
        parts[part] = {name: _margin(path, part, name, entry) for name, entry in entries.items()}
    if not any(parts.values()):
        raise BadInputError(f"{path} declares no tolerance", hints=[f"it looks like this:\n{EXAMPLE}"])
    return Tolerance(metrics=parts.get("metrics", {}), files=parts.get("files", {}))


def _margin(path: Path, part: str, name: str, entry: Any) -> Margin:
    place = f'{part}."{name}"'
    if not isinstance(entry, dict):
        raise BadInputError(f"{path}: {place} is no table", hints=["a tolerance is {abs = 0.001} or {rel = 1e-6}"])
    _known(path, place, entry, ("abs", "rel", "last") if part == "metrics" else ("abs", "rel"))
    last = entry.get("last", False)
    if not isinstance(last, bool):
        raise BadInputError(f"{path}: {place}.last is {last!r}, neither true nor false")
    numbers = {key: _number(path, f"{place}.{key}", entry[key]) for key in ("abs", "rel") if key in entry}
    if not numbers:
        raise BadInputError(f"{path}: {place} declares neither abs nor rel")
    if numbers.get("rel", 0.0) >= 1:
        raise BadInputError(f"{path}: {place}.rel is {numbers['rel']:g}: 1 is the whole value", hints=["1 % is 0.01"])
    return Margin(**numbers, last=last)


def _number(path: Path, place: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise BadInputError(f"{path}: {place} is {value!r}, no number from 0 up")
    return float(value)


def _known(path: Path, place: str, entries: Mapping[str, Any], keys: Iterable[str]) -> None:
    known = list(keys)
    for key in entries:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise BadInputError(f"{path}: unknown key {'.'.join(filter(None, [place, key]))}", hints=[hint])


def check(tolerance: Tolerance, metrics: Iterable[str], files: Iterable[str]) -> None:
    """Refuse a tolerance for what a run does not have: a misspelt name would be a tolerance that nobody applies.

    Raises:
        BadInputError: a name that no metric, no file of the run fits.
    """
    for kind, declared, there in (("metric", tolerance.metrics, [*metrics]), ("file", tolerance.files, [*files])):
        for name in declared:
            if not any(name == each or fnmatch.fnmatchcase(each, name) for each in there):
                near = [] if PATTERN & set(name) else difflib.get_close_matches(name, there, n=1)
                has = f"it has {', '.join(sorted(there)[:10])}" if there else "it has none"
                raise BadInputError(
                    f"the tolerance names {name!r}, and the run has no such {kind}",
                    hints=[f"did you mean {near[0]}?" if near else has],
                )
