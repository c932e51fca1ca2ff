"""One file on both sides -> how much of it is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import msgspec

from repro import manifest
from repro.compare import intervals, leaves
from repro.compare.tolerance import Margin
from repro.experiment import Value
from repro.record import Canonical, OutputFile
from repro.stabilize.apart import Apart, UnsettledError
from repro.verdict import Compared, Level

UNSETTLED = "its stabilizer came to no end"
RENAMED = "name"  # the stabilizer of a file whose name alone is another

Repeat = tuple[Path, OutputFile]  # outputs of a run, and the file in them


class Pair(Value, frozen=True, kw_only=True):
    """A file of the original, the same file of the other run, and the outputs that they lie in."""

    before: OutputFile
    after: OutputFile
    folders: tuple[Path, Path]

    @property
    def role(self) -> Literal["result", "by-product"]:
        """A by-product only if both sides say so."""
        return "by-product" if self.before.role == self.after.role == "by-product" else "result"

    def found(self, level: Level, remark: str = "", stabilizer: str | None = None) -> Compared:
        renamed = f"there it is {self.after.path}" if self.after.path != self.before.path else ""
        return Compared(
            kind="file",
            name=self.before.path,
            level=level,
            role=self.role,
            before=identity(self.before),
            after=identity(self.after),
            stabilizer=stabilizer,
            remark="; ".join(filter(None, [remark, renamed])),
        )

    def contents(self) -> tuple[bytes, bytes] | None:
        """The bytes of both, if they still are what was recorded."""
        one, other = (
            content(folder, file) for folder, file in zip(self.folders, (self.before, self.after), strict=True)
        )
        return None if one is None or other is None else (one, other)


def identity(file: OutputFile | None) -> str:
    """A file in short."""
    return f"sha256:{file.sha256}" if file else ""


def alone(there: OutputFile, before: OutputFile | None, after: OutputFile | None) -> Compared:
    """A file that one side has and the other has not."""
    return Compared(
        kind="file",
        name=there.path,
        level=Level.MISSING,
        role=there.role,
        before=identity(before),
        after=identity(after),
        remark="it is there on one side alone",
    )


def content(outputs: Path, file: OutputFile) -> bytes | None:
    """The bytes of a file as it was recorded; None when it is gone, another one by now, or too large to be compared."""
    if file.size > leaves.LIMIT:
        return None
    try:
        with _opened(outputs, file) as opened:
            found = opened.read(file.size + 1) if file.size < leaves.LIMIT else b""
            while len(found) <= file.size and (more := opened.read(file.size + 1 - len(found))):
                found += more
    except OSError:
        return None
    return found if hashlib.sha256(found).hexdigest() == file.sha256 else None


@dataclass(frozen=True, kw_only=True)
class Means:
    """What helps to compare files. `carried`: there are metrics that are results, and all of them reach level 2.

    They speak for weights, which never come again once a bit differs.
    """

    apart: Apart
    carried: bool


def _opened(outputs: Path, file: OutputFile) -> IO[bytes]:
    """A file of the outputs; a foreign record may name what is none of them."""
    if file.path.startswith("/") or ".." in file.path.split("/"):
        raise FileNotFoundError(file.path)
    return manifest.opened(outputs / file.path)


def compare(pair: Pair, margin: Margin | None, repeats: Sequence[Repeat], means: Means) -> Compared:
    """The highest level that a file reaches; `repeats`: of it, in the original and in all its other repeats."""
    before, after = pair.before, pair.after
    if (before.sha256, before.size) == (after.sha256, after.size):
        if before.path == after.path:
            return pair.found(Level.BYTES)
        return pair.found(Level.STABILIZED, stabilizer=RENAMED)
    unsettled = ""
    try:
        if stabilizer := _stabilized(pair, means.apart):
            return pair.found(Level.STABILIZED, stabilizer=stabilizer)
    except UnsettledError as error:
        unsettled = f"{UNSETTLED} ({error})"
    found = _by_numbers(pair, margin, repeats, means)
    return msgspec.structs.replace(found, remark="; ".join(filter(None, [unsettled, found.remark])))


def _by_numbers(pair: Pair, margin: Margin | None, repeats: Sequence[Repeat], means: Means) -> Compared:
    """What their numbers say of files whose bytes differ."""
    before, remark = pair.before, ""
    if margin:
        both = pair.contents()
        if both is None:
            remark = "its numbers cannot be compared: it is gone, or not what was recorded any more"
        elif not leaves.readable(before.path):
            remark = f"its numbers cannot be compared: they are read in {', '.join(leaves.TEXTS + leaves.ARRAYS)}"
        else:
            apart = leaves.distance(before.path, *both, margin)
            if apart.same:
                return pair.found(Level.TOLERANCE, apart.remark)
            remark = apart.remark
    return _among_repeats(pair, repeats, remark, carried=means.carried)


def _stabilized(pair: Pair, apart: Apart) -> str | None:
    """The stabilizer after which both are the same bytes: by the records, or done anew where they have not the same."""
    was, now = pair.before.canonical, pair.after.canonical
    if not (was and now and was.stabilizer == now.stabilizer):
        was, now = (_canonical(*each, apart) for each in zip(pair.folders, (pair.before, pair.after), strict=True))
    return was.stabilizer if was and was == now else None


def _canonical(outputs: Path, file: OutputFile, apart: Apart) -> Canonical | None:
    """By the stabilizer of this version, if the file is there and what was recorded.

    Raises:
        UnsettledError: nobody can tell.
    """
    try:
        with _opened(outputs, file) as opened:
            return apart.canonical(file.path, opened, file.sha256)
    except OSError:
        return None


def _among_repeats(pair: Pair, repeats: Sequence[Repeat], remark: str, *, carried: bool) -> Compared:
    """Numbers for people are inside their intervals or not; of all else that varies, metrics are the judge."""
    if len(repeats) < intervals.FEWEST or not _varies([file for _, file in repeats]):
        return pair.found(Level.DIFFERENT, remark)
    if leaves.is_text(pair.before.path):
        both = pair.contents()
        texts = [content(outputs, file) for outputs, file in repeats]
        if both is None or None in texts:
            return pair.found(Level.DIFFERENT, remark or "repeats cannot be compared: a file is gone or another one")
        spread = intervals.spread(pair.before.path, [text for text in texts if text is not None], both[1])
        return pair.found(Level.STATISTICAL if spread.same else Level.DIFFERENT, spread.remark)
    varies = "it differs between the original's own repeats"
    if carried:
        return pair.found(Level.STATISTICAL, f"{varies}: the metrics speak for it")
    return pair.found(Level.DIFFERENT, "; ".join(filter(None, [remark, f"{varies}, and no metrics speak for it"])))


def _varies(files: Sequence[OutputFile]) -> bool:
    """Whether repeats have left different files behind, stabilizers applied."""
    if len({file.sha256 for file in files}) == 1:
        return False
    canonical = {(file.canonical.stabilizer, file.canonical.sha256) for file in files if file.canonical}
    return len(canonical) != 1 or not all(file.canonical for file in files)
