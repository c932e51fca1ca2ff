"""The code of a run -> all that others need of it, and all that they get to see: commits, submodules, Git LFS files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from repro import scratch
from repro.code import lfs, suspects
from repro.code.lfs import Pointer
from repro.code.repository import Repository, blobs, git, has, open_repository
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import Value
from repro.record import Code, shown
from repro.sharing.remote import SNAPSHOTS, Remote, Say

CAPTURED = "repro@localhost Working tree, captured by repro"  # by whom, and the first line


class Inner(Value, frozen=True, kw_only=True):
    """The snapshot of a submodule, or of a repository inside the project."""

    path: str  # below the repository around
    commit: str
    where: str  # the repository that has it


class Snapshot(Value, frozen=True, kw_only=True):
    """What a snapshot consists of."""

    commit: str
    inner: tuple[Inner, ...]
    pointers: dict[str, Pointer]  # path -> the Git LFS file that it stands for


class Shown(Value, frozen=True, kw_only=True):
    """What others get to see with a snapshot, as far as the remote does not have it yet."""

    commits: tuple[str, ...]  # id and first line of those that no branch there has
    uncommitted: tuple[str, ...]  # letter and path of what no commit of the user's had: A added, M changed, D gone
    suspects: tuple[str, ...]  # of these, what looks like secrets, and why


def look(repository: Repository, commit: str, prefix: str) -> Snapshot:
    """A snapshot, with those inside it, as it is in this repository.

    Raises:
        EnvironmentUnfitError: it is lost, or one inside it is.
    """
    if not has(repository, commit):
        raise EnvironmentUnfitError(
            f"the code of this run is lost here: no commit {commit[:12]} in {repository.top}",
            hints=[
                "use the repository that the run was started from",
                "`repro pull RUN`, where somebody has pushed it",
            ],
        )
    return Snapshot(
        commit=commit,
        inner=tuple(_inner(repository, repository, commit, prefix, "")),
        pointers=_pointers(repository, commit, prefix),
    )


def _inner(outer: Repository, where: Repository, commit: str, prefix: str, above: str) -> Iterator[Inner]:
    for mode, _kind, oid, path in _tree(where.top, commit, prefix):
        if mode != "160000":
            continue
        place = outer.top / above / path
        found = open_repository(place) if (place / ".git").exists() else outer
        holder = next((each for each in (found, outer) if has(each, oid)), None)
        if holder is None:
            raise EnvironmentUnfitError(
                f"the code of this run is lost here in part: no commit {oid[:12]} of {shown(path)}",
                hints=["`git submodule update --init --recursive`"],
            )
        yield Inner(path=f"{above}/{path}".lstrip("/"), commit=oid, where=str(holder.top))
        yield from _inner(outer, holder, oid, "", f"{above}/{path}".lstrip("/"))


def missing(repository: Repository, commit: str, prefix: str) -> list[str]:
    """The commits inside a snapshot that this repository has not, as far as can be told from those that it has."""
    if not has(repository, commit):
        return [commit]
    links = [oid for mode, _kind, oid, _path in _tree(repository.top, commit, prefix) if mode == "160000"]
    return [lost for oid in links for lost in missing(repository, oid, "")]


def _tree(where: Path, commit: str, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Mode, kind, id and path of what is below `prefix`; the path is that in the whole repository."""
    below = ("--", prefix) if prefix else ()
    answer = git(where, "--literal-pathspecs", "ls-tree", "-r", "-z", "--full-tree", commit, *below)
    for line in os.fsdecode(answer).split("\0")[:-1]:
        facts, path = line.split("\t", 1)
        mode, kind, oid = facts.split(" ")
        yield mode, kind, oid, path


def _pointers(repository: Repository, commit: str, prefix: str) -> dict[str, Pointer]:
    entries = {path: oid for mode, _kind, oid, path in _tree(repository.top, commit, "") if mode.startswith("100")}
    rules = [oid for path, oid in entries.items() if path.rpartition("/")[2] == ".gitattributes"]
    if not any(b"filter=lfs" in content for content in list(blobs(repository.top, rules))):
        return {}
    with scratch.folder("repro-index-") as temporary:
        index = temporary / "index"
        git(repository.top, "read-tree", commit, index=index)
        inside = [path for path in entries if path.startswith(f"{prefix}/" if prefix else "")]
        chosen = lfs.with_filter(repository, inside, index=index)
    contents = blobs(repository.top, [entries[path] for path in chosen])
    found = {path: lfs.parse(content) for path, content in zip(chosen, contents, strict=True)}
    return {path: pointer for path, pointer in found.items() if pointer}


def shown_by(repository: Repository, code: Code, snapshot: Snapshot, there: set[str]) -> Shown:
    """What the remote, which has the commits `there`, does not know yet of a snapshot."""
    asked = "".join(f"{commit}\n" for commit in there).encode()
    lines = git(repository.top, "cat-file", "--batch-check", stdin=asked).decode().splitlines()
    known = [line.split()[0] for line in lines if line.split()[1] in ("commit", "tag")]
    wanted = "\n".join([code.head, *(f"^{commit}" for commit in known)]).encode()
    listed = git(repository.top, "log", "--format=%h %s", "--stdin", stdin=wanted) if code.head else b""
    captured = [(repository.top, code.commit, "")] if code.dirty else []
    captured += [
        (Path(each.where), each.commit, f"{each.path}/")
        for each in snapshot.inner
        if git(Path(each.where), "log", "-1", "--format=%ae %s", each.commit).decode().strip() == CAPTURED
    ]
    uncommitted: list[str] = []
    suspicious: list[str] = []
    for where, commit, above in captured:
        changes = _uncommitted(where, commit) if commit not in there else []
        uncommitted += [f"{letter} {above}{shown(path)}" for letter, path in changes]
        added = [path for letter, path in changes if letter == "A"]
        suspicious += [f"{above}{each}" for each in _suspects(where, commit, added)]
    return Shown(
        commits=tuple(line for line in listed.decode("utf-8", "replace").splitlines() if line),
        uncommitted=tuple(uncommitted),
        suspects=tuple(suspicious),
    )


def _uncommitted(where: Path, commit: str) -> list[tuple[str, str]]:
    """How a captured commit differs from the one that it is on top of: git's letter and the path."""
    options = ("-r", "-z", "--root", "--no-renames", "--no-commit-id", "--name-status", "--ignore-submodules")
    fields = os.fsdecode(git(where, "diff-tree", *options, commit)).split("\0")[:-1]
    return list(zip(fields[0::2], fields[1::2], strict=True))


def _suspects(where: Path, commit: str, paths: list[str]) -> Iterator[str]:
    """Which files look like secrets. They were untracked when they were captured, and may be gone by now."""
    chosen = set(paths)
    oids = {path: oid for _mode, kind, oid, path in _tree(where, commit, "") if kind == "blob" and path in chosen}
    asked = "".join(f"{oid}\n" for oid in oids.values()).encode()
    sizes = git(where, "cat-file", "--batch-check=%(objectsize)", stdin=asked).split()
    small = [path for path, size in zip(oids, sizes, strict=True) if int(size) <= suspects.SMALL]
    with scratch.folder("repro-look-") as folder:
        for path, content in zip(small, blobs(where, [oids[path] for path in small]), strict=True):
            copy = folder / "files" / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
            if why := suspects.suspicion(folder / "files", path):
                yield f"{shown(path)}: {why}"


# to a remote, and back ------------------------------------------------------------------------------------------


def push(snapshot: Snapshot, remote: Remote, there: dict[str, str], repository: Repository, say: Say) -> None:
    """All of a snapshot. Those inside it go to the same remote, whatever remotes of their own they have.

    Raises:
        EnvironmentUnfitError: the remote cannot be reached, or does not take it; git-lfs is missing.
    """
    if snapshot.pointers:
        _require_lfs(list(snapshot.pointers))
        oids = sorted({pointer.sha256 for pointer in snapshot.pointers.values()})
        remote.lfs(say, "push", "--object-id", remote.name, *oids)
    for each in dict.fromkeys((each.where, each.commit) for each in snapshot.inner):
        where, commit = each
        if SNAPSHOTS + commit not in there:
            elsewhere = Path(where) if where != str(repository.top) else None
            remote.push([f"{commit}:{SNAPSHOTS}{commit}"], say, elsewhere)
    if SNAPSHOTS + snapshot.commit not in there:
        remote.push([f"{snapshot.commit}:{SNAPSHOTS}{snapshot.commit}"], say)


def fetch(code: Code, prefix: str, remote: Remote, there: dict[str, str], repository: Repository, say: Say) -> None:
    """All of a snapshot, into this repository; nothing is asked for that it has.

    Raises:
        EnvironmentUnfitError: the remote cannot be reached, or lacks a part; git-lfs is missing.
        BadInputError: the snapshot is not the one of the record.
    """
    while lost := missing(repository, code.commit, prefix):
        refs = [SNAPSHOTS + commit for commit in lost]
        if absent := [ref for ref in refs if ref not in there]:
            raise EnvironmentUnfitError(
                f"{remote} does not have all of the code of this run",
                evidence=absent,
                hints=["`repro push RUN` where the run was made"],
            )
        remote.fetch(refs, say)
    tree = git(repository.top, "rev-parse", f"{code.commit}^{{tree}}").decode().strip()
    if tree != code.tree:
        raise BadInputError(
            "the record names a commit with other files than it says",
            evidence=[f"commit {code.commit}", f"its tree {tree}", f"of the record {code.tree}"],
        )
    git(repository.top, "update-ref", SNAPSHOTS + code.commit, code.commit)
    pointers = _pointers(repository, code.commit, prefix)
    store = lfs.Store(repository)
    lacking = [path for path, pointer in pointers.items() if not store.find(pointer)]
    if lacking:
        _require_lfs(lacking)
        remote.lfs(say, "fetch", remote.name, SNAPSHOTS + code.commit)


def _require_lfs(paths: list[str]) -> None:
    if not shutil.which("git-lfs"):
        raise EnvironmentUnfitError(
            "git-lfs is not installed, and the code of this run has files of Git LFS",
            evidence=[f"{shown(path)}" for path in paths[:5]],
            hints=["install it (Debian, Ubuntu: `apt-get install git-lfs`)"],
        )
