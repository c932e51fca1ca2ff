"""What a bundle is made of: the names in it, and the one form of a record that names a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from repro import identity
from repro.experiment import Value
from repro.record import Record

RECORD, CANONICAL, MANIFEST, FETCH = "record.json", "record.canonical.json", "manifest-sha256.txt", "fetch.txt"
CODE_BUNDLE, CODE, IMAGE, DATA, OUTPUTS, INSIDE = "code.bundle", "code/", "image/", "data/", "outputs/", "inside/"
# of a run folder, as they are; the rest is a machine's own: leases, how far MLflow has come
KEPT = (
    RECORD,
    "config.json",
    "config.yaml",
    "uncommitted.diff.txt",
    "resources.jsonl",
    "stop.json",
    "verification.json",
)
KEPT_FOLDERS = ("inputs/", "logs/", "journal/", "verifications/")


class Entry(Value, frozen=True, kw_only=True):
    """A file of a bundle to be: in memory, or on disk."""

    size: int
    sha256: str
    path: str | None = None
    content: bytes = b""
    passing: bool = False  # may be removed when it is written: it takes room


def of_bytes(content: bytes) -> Entry:
    """Content in memory."""
    return Entry(size=len(content), sha256=hashlib.sha256(content).hexdigest(), content=content)


def canonical(record: Record) -> bytes:
    """The one form of a record; its sha256 names the run."""
    return identity.canonical(record)


def listed(content: bytes) -> Iterator[tuple[str, str]]:
    """Names and digests in a list of `sha256sum`.

    Raises:
        ValueError: it is none.
    """
    for line in content.decode().splitlines():
        escaped = line.startswith("\\")
        digest, gap, name = line.removeprefix("\\").partition("  ")
        if len(digest) != 64 or not gap:
            raise ValueError(f"{line!r} is no line of sha256sum")
        yield (_unescaped(name) if escaped else name), digest


def _unescaped(name: str) -> str:
    pieces = name.split("\\\\")
    return "\\".join(piece.replace("\\n", "\n").replace("\\r", "\r") for piece in pieces)


def files_below(folder: Path, prefix: str) -> dict[str, Path]:
    """Regular files of a folder of ours, by their names in a bundle."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    wanted = (path for path in found if "__pycache__" not in path.parts and not path.name.startswith("."))
    return {prefix + path.relative_to(folder).as_posix(): path for path in wanted}


def part(files: Mapping[str, int], prefix: str) -> dict[str, int]:
    """Those below a folder, by their names in it, with their sizes."""
    return {name.removeprefix(prefix): size for name, size in files.items() if name.startswith(prefix)}
