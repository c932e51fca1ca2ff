"""Two commits -> which files differ, and in which lines, as far as a person wants to see them."""

from __future__ import annotations

import os
from pathlib import Path

from repro.code import prefixes, repository
from repro.errors import ReproError
from repro.experiment import Value
from repro.record import Planned, shown

FILES = 8  # whose lines are shown
LINES = 20  # of each
ENTRY = 5  # fields of a line of `git diff --raw`


class Change(Value, frozen=True, kw_only=True):
    """A file that differs between two commits."""

    path: str  # relative to the project
    status: str  # as git has it: A added, D deleted, M changed, T of another kind
    before: str
    after: str
    lines: tuple[str, ...] = ()  # - and + lines, none of a binary file
    weight: int  # of `layers.Weight`


def changes(root: Path, was: Planned, now: Planned) -> list[Change] | None:
    """The files that differ; None when the repository around `root` does not have both commits.

    Files outside of the project are no part of the code that a run sees.
    """
    try:
        one, other = (f"{each.code.commit}:{prefixes.of(root, each)}".rstrip("/") for each in (was, now))
        raw = repository.git(root, "diff-tree", "-r", "-z", "--raw", "--no-renames", one, other)
    except ReproError:
        return None
    fields = os.fsdecode(raw).split("\0")[:-1]
    found = list(zip(fields[::2], fields[1::2], strict=True))
    listed = sorted((-_weight(path), path, entry) for entry, path in found)
    shown_lines = FILES
    result = []
    for negative, path, entry in listed:
        modes, status = entry.split()[:2], entry.split()[ENTRY - 1]
        before, after = (digest[:12] for digest in entry.split()[2:4])
        if before == after:  # executable or not
            before, after = modes[0].lstrip(":"), modes[1]
        lines = _lines(root, one, other, path) if shown_lines > 0 else ()
        shown_lines -= 1
        result.append(
            Change(path=shown(path), status=status, before=before, after=after, lines=lines, weight=-negative)
        )
    return result


def _lines(root: Path, one: str, other: str, path: str) -> tuple[str, ...]:
    """The lines of a file that differ, with the places where they do."""
    options = ("-p", "-U0", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames")
    large = ("-c", "core.bigFileThreshold=1m")  # larger files are binary ones to git, and have no lines
    text = repository.git(root, *large, "diff-tree", "-r", *options, one, other, "--", f":(literal,top){path}")
    lines = text[: 64 << 10].decode(errors="replace").splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith("@@ ")), len(lines))
    kept = [_place(line) for line in lines[first:] if line[:1] in "+-@"]
    return tuple(kept[:LINES] + ([f"... and {len(kept) - LINES} more lines"] if len(kept) > LINES else []))


def _place(line: str) -> str:
    return line.split("@@")[1].strip() if line.startswith("@@ ") else line


def _weight(path: str) -> int:
    """What becomes configuration or image is told by its own layer, and texts are seldom read by a program."""
    folder = path.partition("/")[0]
    if folder in ("docs", "tests") or path.endswith((".md", ".rst", ".gitignore", ".gitattributes")):
        return 1
    return 1 if folder in ("conf", "docker") or path == "repro.lock" else 2
