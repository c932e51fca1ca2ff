"""Git LFS: pointer file -> the content that it stands for, from the store of git-lfs, which itself is not needed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from repro.code.repository import Repository, git, some
from repro.errors import BadInputError
from repro.experiment import Value

_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:ext-.*\n)*oid sha256:([0-9a-f]{64})\nsize (\d+)\n?\Z"
)
_POINTER_SIZE = 1024  # bytes; longer files are no pointers, says the specification of git-lfs


class Pointer(Value, frozen=True, kw_only=True):
    """What a pointer file says."""

    sha256: str
    size: int


def read_pointer(path: Path) -> Pointer | None:
    """The pointer in this file, None when it is any other file."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _POINTER_SIZE:
        return None
    return parse(path.read_bytes())


def parse(content: bytes) -> Pointer | None:
    """The pointer that these bytes are, None when they are anything else."""
    match = _POINTER.match(content) if len(content) <= _POINTER_SIZE else None
    return Pointer(sha256=match[1].decode(), size=int(match[2])) if match else None


class Store:
    """Where git-lfs keeps content in this repository."""

    def __init__(self, repository: Repository) -> None:
        answer = git(repository.top, "config", "-z", "--get", "lfs.storage", fine=(0, 1))
        self.path = repository.common_dir / (os.fsdecode(answer).rstrip("\0") or "lfs") / "objects"

    def find(self, pointer: Pointer) -> Path | None:
        """The file with the content, None when it was not fetched."""
        path = self.path / pointer.sha256[:2] / pointer.sha256[2:4] / pointer.sha256
        return path if path.is_file() and path.stat().st_size == pointer.size else None


def check(repository: Repository, paths: list[str]) -> tuple[str, ...]:
    """Options for a `git add` of these paths (relative to the top): none, or such that it needs no git-lfs.

    Raises:
        BadInputError: one of the project's is a pointer here, and its content is not in the store either.
    """
    rules = [repository.top / path for path in paths if path.rpartition("/")[2] == ".gitattributes"]
    rules.append(repository.common_dir / "info" / "attributes")
    if not any(b"filter=lfs" in rule.read_bytes() for rule in rules if rule.is_file()):
        return ()
    store = Store(repository)
    chosen = with_filter(repository, [path for path in paths if path.startswith(repository.prefix)])
    pointers = {path: read_pointer(repository.top / path) for path in chosen}
    lacking = [path for path, pointer in pointers.items() if pointer and not store.find(pointer)]
    if lacking:
        raise missing(lacking)
    if shutil.which("git-lfs"):
        return ()
    return ("-c", "filter.lfs.clean=", "-c", "filter.lfs.process=", "-c", "filter.lfs.required=false")


def with_filter(repository: Repository, paths: list[str], *, index: Path | None = None) -> list[str]:
    """Those paths that attributes give to Git LFS. With `index`: as the .gitattributes in it say."""
    source = ("--cached",) if index else ()
    given = os.fsencode("".join(f"{path}\0" for path in paths))
    answer = git(repository.top, "check-attr", *source, "-z", "--stdin", "filter", index=index, stdin=given)
    fields = os.fsdecode(answer).split("\0")
    return [path for path, value in zip(fields[0::3], fields[2::3], strict=False) if value == "lfs"]


def missing(paths: Iterable[str]) -> BadInputError:
    """The error about pointers without content."""
    return BadInputError(
        "Git LFS files are here as pointers only: their content was not fetched",
        evidence=some(paths),
        hints=["`git lfs pull` (needs git-lfs)"],
    )
