"""A commit -> its files in a folder, from git's objects alone: nobody's filters or line ends show in them."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import IO, cast

from repro import scratch
from repro.code import lfs
from repro.code.repository import EPOCH, Repository, git, has, open_repository, reading
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import Value
from repro.record import shown


class _Blob(Value, frozen=True, kw_only=True):
    """One line of a tree."""

    mode: str
    oid: str
    path: str


def write_commit(repository: Repository, commit: str, prefix: str, folder: Path) -> None:
    """Make `folder` and write the files below `prefix` of a commit into it; modes and times depend on nothing else.

    Raises:
        BadInputError: the commit, or that of a submodule, or a Git LFS object is not in this repository.
    """
    _write_project(repository, commit, prefix, folder)
    for parent, _, _ in os.walk(folder, topdown=False):
        Path(parent).chmod(0o755)
        os.utime(parent, (EPOCH, EPOCH))


def _write_project(repository: Repository, commit: str, prefix: str, folder: Path) -> None:
    """Files below `prefix` of a commit; then, in the same way, those of the repositories inside it."""
    treeish = f"{commit}:{prefix}" if prefix else commit
    lines = os.fsdecode(git(repository.top, "ls-tree", "-r", "-z", "--full-tree", treeish)).split("\0")[:-1]
    split = [(line.split("\t", 1)[0].split(" "), line.split("\t", 1)[1]) for line in lines]
    entries = [_Blob(mode=facts[0], oid=facts[2], path=path) for facts, path in split]
    if any(not set(entry.path.split("/")).isdisjoint({"", ".", "..", ".git"}) for entry in entries):
        raise BadInputError(f"commit {commit} holds file names that lead out of its folder")
    folder.mkdir()
    for parent in sorted({str(PurePosixPath(entry.path).parent) for entry in entries}):
        (folder / parent).mkdir(parents=True, exist_ok=True)
    _write_blobs(repository.top, [entry for entry in entries if entry.mode != "160000"], folder)
    _resolve_lfs(repository, commit, prefix, [entry for entry in entries if entry.mode.startswith("100")], folder)
    for entry in entries:
        if entry.mode == "160000":
            inner = _open_nested(repository, f"{prefix}/{entry.path}".lstrip("/"), entry.oid)
            _write_project(inner, entry.oid, "", folder / entry.path)


def _open_nested(repository: Repository, path: str, commit: str) -> Repository:
    if repository.bare:
        return repository
    if (repository.top / path / ".git").exists():
        inner = open_repository(repository.top / path)
        if has(inner, commit) or not has(repository, commit):
            return inner
    if has(repository, commit):  # it came with a pulled run: all commits of one are in the repository around
        return repository
    raise BadInputError(
        f"the submodule {shown(path)} is not checked out, and the snapshot needs its commit {commit[:12]}",
        hints=["`git submodule update --init --recursive`"],
    )


def _write_blobs(where: Path, entries: list[_Blob], folder: Path) -> None:
    asked = "".join(f"{entry.oid}\n" for entry in entries).encode()
    links = []
    with reading(where, "cat-file", "--batch", "--buffer", stdin=asked) as objects:
        for entry in entries:
            header = objects.readline().split()
            if len(header) != 3 or header[1] != b"blob":
                raise BadInputError(
                    f"the repository at {where} lacks a file of the snapshot: {shown(entry.path)}",
                    evidence=b" ".join(header).decode("utf-8", "replace"),
                    hints=["`git fsck` tells what else is missing", "a shallow or partial clone: fetch the rest"],
                )
            size = int(header[2])
            if entry.mode == "120000":
                links.append((folder / entry.path, objects.read(size)))
            else:
                _write_file(folder / entry.path, objects, size, executable=entry.mode == "100755")
            objects.read(1)
    for link, target in links:  # last, so that no file is ever written through one
        link.symlink_to(os.fsdecode(target))
        os.utime(link, (EPOCH, EPOCH), follow_symlinks=False)


def _write_file(path: Path, content: IO[bytes], size: int, *, executable: bool) -> None:
    with path.open("xb", buffering=0) as file:
        while size:
            piece = content.read(min(size, 1 << 20))
            if not piece:
                raise EnvironmentUnfitError(f"the content of {path.name} ended before its length")
            file.write(piece)
            size -= len(piece)
        os.fchmod(file.fileno(), 0o555 if executable else 0o444)
        os.utime(file.fileno(), (EPOCH, EPOCH))


def _resolve_lfs(repository: Repository, commit: str, prefix: str, entries: list[_Blob], folder: Path) -> None:
    """Put the content in place of each Git LFS pointer that was exported."""
    base = f"{prefix}/" if prefix else ""
    found = {base + entry.path: (entry, lfs.read_pointer(folder / entry.path)) for entry in entries}
    pointers = {path: (entry, pointer) for path, (entry, pointer) in found.items() if pointer}
    if not pointers:
        return
    with scratch.folder("repro-index-") as temporary:
        index = temporary / "index"
        git(repository.top, "read-tree", commit, index=index)
        chosen = lfs.with_filter(repository, list(pointers), index=index)
    store = lfs.Store(repository)
    contents = {path: store.find(pointers[path][1]) for path in chosen}
    if lacking := [path for path, content in contents.items() if not content]:
        raise lfs.missing(lacking)
    for path, content in contents.items():
        entry, pointer = pointers[path]
        (folder / entry.path).unlink()
        with cast(Path, content).open("rb") as file:
            _write_file(folder / entry.path, file, pointer.size, executable=entry.mode == "100755")
