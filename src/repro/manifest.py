"""A folder of outputs -> the list of its files: path, size, sha256."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from repro.record import FileUsed

BLOCK = 1 << 20  # bytes


def of(folder: Path) -> tuple[tuple[FileUsed, ...], tuple[str, ...]]:
    """Every regular file below `folder`, sorted by path, and the paths of what cannot be read.

    A byte of a name that is not UTF-8 is written as `\\xe9`.
    """
    files: list[FileUsed] = []
    unread: list[str] = []
    for path in sorted(_below(folder, unread)):
        name = _name(path.relative_to(folder))
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                files.append(FileUsed(path=name, size=size, sha256=sha256(file)))
        except OSError:
            unread.append(name)
    return tuple(files), tuple(unread)


def _below(folder: Path, unread: list[str]) -> list[Path]:
    def refused(error: OSError) -> None:
        unread.append(_name(Path(error.filename).relative_to(folder)))

    found = []
    for parent, _folders, names in os.walk(folder, onerror=refused):
        for name in names:
            path = Path(parent, name)
            if stat.S_ISREG(path.lstat().st_mode):
                found.append(path)
    return found


def _name(path: Path) -> str:
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def sha256(file: BinaryIO) -> str:
    """Of what is left of an open file, read in blocks."""
    hasher = hashlib.sha256()
    while block := file.read(BLOCK):
        hasher.update(block)
    return hasher.hexdigest()
