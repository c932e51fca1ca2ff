"""A folder of outputs -> the list of its files: path, size, sha256."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from repro.record import FileUsed, shown

BLOCK = 1 << 20  # bytes


def of(folder: Path) -> tuple[tuple[FileUsed, ...], tuple[str, ...]]:
    """Every regular file below `folder`, sorted by path, and the paths of what cannot be read."""
    files: list[FileUsed] = []
    unread: list[str] = []
    for path in sorted(_below(folder, unread)):
        name = _name(path, folder)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                continue
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                files.append(FileUsed(path=name, size=size, sha256=sha256(file)))
        except OSError:
            unread.append(name)
    return tuple(files), tuple(unread)


def _below(folder: Path, unread: list[str]) -> Iterator[Path]:
    def refused(error: OSError) -> None:
        unread.append(_name(Path(error.filename), folder))

    for parent, _folders, names in os.walk(folder, onerror=refused):
        yield from (Path(parent, name) for name in names)


def _name(path: Path, folder: Path) -> str:
    return shown(path.relative_to(folder).as_posix())


def sha256(file: IO[bytes]) -> str:
    """Of what is left of an open file, read in blocks."""
    hasher = hashlib.sha256()
    while block := file.read(BLOCK):
        hasher.update(block)
    return hasher.hexdigest()
