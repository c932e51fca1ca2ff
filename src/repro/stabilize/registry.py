"""A file's name -> its stabilizer: ours, and those that other packages add by an entry point."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from repro.errors import BadInputError
from repro.stabilize import archives
from repro.stabilize.form import Stabilizer, attempt, digest

if TYPE_CHECKING:
    from repro.record import Canonical

GROUP = "repro.stabilizers"  # of entry points, each a Stabilizer
OURS = (*archives.LEAVES, *archives.ARCHIVES)
PATTERNS = tuple(pattern for each in OURS for pattern in each.patterns)


def find(name: str) -> Stabilizer | None:
    """The stabilizer for a file of this name. Those of other packages come first, by their names.

    Raises:
        BadInputError: an entry point of another package is broken.
    """
    for each in others():
        if archives.matches(name, each.patterns):
            return each
    return built_in(name)


@functools.cache
def trouble() -> str:
    """What is wrong with the stabilizers of other packages, in one line; "" when nothing is."""
    try:
        others()
    except BadInputError as error:
        return f"{error.what} ({'; '.join(error.evidence)})"
    return ""


def usable(name: str) -> Stabilizer | None:
    """As `find`; while one of another package is broken, ours alone."""
    return built_in(name) if trouble() else find(name)


def built_in(name: str) -> Stabilizer | None:
    """The one of ours."""
    return archives.fitting(name) if archives.matches(name, PATTERNS) else None  # most of many files match none


def applicable(name: str) -> str | None:
    """name@version of the stabilizer for a file of this name.

    Raises:
        BadInputError: an entry point of another package is broken.
    """
    found = find(name)
    return found.label if found else None


def stabilized(name: str, content: bytes) -> tuple[bytes, str] | None:
    """What is left of a file, and name@version of what took the rest out; None: none is meant for it, or can read it.

    Here, in this process: for files of an experiment's see `apart`.

    Raises:
        BadInputError: an entry point of another package is broken.
    """
    stabilizer = find(name)
    found = attempt(stabilizer, content) if stabilizer else None
    return None if stabilizer is None or found is None else (found, stabilizer.label)


def canonical(name: str, content: bytes) -> Canonical | None:
    """The same, as records have it.

    Raises:
        BadInputError: an entry point of another package is broken.
    """
    from repro.record import Canonical  # not on top: the process that reads outputs has to start fast

    found = stabilized(name, content)
    return Canonical(stabilizer=found[1], sha256=digest(found[0])) if found else None


def reason(label: str) -> str:
    """Why what a stabilizer takes out does not belong to a result; "" for one that is not installed here.

    Raises:
        BadInputError: an entry point of another package is broken.
    """
    known = (*others(), *archives.LEAVES, *(each.bound("", None) for each in archives.ARCHIVES))
    return next((each.reason for each in known if each.label == label), "")


@functools.cache
def others() -> tuple[Stabilizer, ...]:
    """The stabilizers of other packages, by name.

    Raises:
        BadInputError: an entry point of another package is broken.
    """
    from importlib.metadata import entry_points

    found: dict[str, Stabilizer] = {}
    taken = {each.name for each in OURS}
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else "a package"
        try:
            loaded = point.load()
        except Exception as error:  # whatever importing another's module may raise
            raise _broken(package, point.name, f"{type(error).__name__}: {error}") from error
        if not isinstance(loaded, Stabilizer):
            raise _broken(package, point.name, f"{point.value} is no Stabilizer but {type(loaded).__name__}")
        if problem := _problem(loaded, taken | found.keys()):
            raise _broken(package, point.name, problem)
        found[loaded.name] = loaded
    return tuple(found[name] for name in sorted(found))


def _problem(loaded: Stabilizer, taken: set[str]) -> str:
    """Why a stabilizer cannot be used; nothing checks a value that is made in Python."""
    patterns = loaded.patterns
    if not isinstance(loaded.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", loaded.name):
        return f"name is {loaded.name!r}, and has to be letters, digits, `_ . -`"
    if loaded.name in taken:
        return f"the name {loaded.name} is taken"
    if type(loaded.version) is not int or loaded.version < 1:
        return f"version is {loaded.version!r}, and has to be a whole number from 1 on"
    if not isinstance(patterns, tuple) or not patterns or not all(isinstance(each, str) for each in patterns):
        return f"patterns is {patterns!r}, and has to be a tuple of file names as in a shell"
    if not isinstance(loaded.reason, str) or not loaded.reason.strip():
        return "it gives no reason why what it takes out does not belong to a result"
    return "" if callable(loaded.function) else f"function is {loaded.function!r}, which cannot be called"


def _broken(package: str, name: str, why: str) -> BadInputError:
    return BadInputError(
        f"the stabilizer {name} of {package} cannot be used",
        evidence=[why],
        hints=[f"correct the entry point {name} (group {GROUP}) of {package}, or `pip uninstall {package}`"],
    )
