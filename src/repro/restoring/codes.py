"""The code of a run: in which repositories its commit is, whole, and how it gets into a folder again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from repro import scratch
from repro.code import gitbundle, prefixes, source
from repro.code.repository import Repository, git, open_repository, reading
from repro.errors import BadInputError, ReproError
from repro.experiment import Value
from repro.project import Project, ignored_folder
from repro.record import Code, Planned, Record, RunFolder, shown
from repro.verdict import Ingredient

BUNDLE = gitbundle.NAME  # in the archive of an imported run
DECAY = (
    "no ref keeps this commit: git may remove it",
    "snapshot commit not pushed to any remote",
    "commit not pushed to any remote",
)


class Kept(Value, frozen=True, kw_only=True):
    """What keeps a commit in a repository, and where else it is known to be."""

    refs: tuple[str, ...]  # that lead to it; () when git may remove it at any time
    remotes: tuple[str, ...]  # that have it, as far as this repository knows, or as they answered


def bundle(folder: RunFolder) -> Path:
    """Where an imported run has its code."""
    return folder.archive / BUNDLE


def keeper(record: Record, folder: RunFolder) -> RunFolder:
    """The folder whose archive has the code: a run that reproduces an imported one has none of its own."""
    original = record.planned.reproduces
    if bundle(folder).is_file() or not original or original != Path(original).name:
        return folder
    return RunFolder(folder.path.parent / original)


def look(record: Record, folder: RunFolder, project: Project, *, ask: bool = False, deep: bool = False) -> Ingredient:
    """Where the code of a run is. `ask` lets remotes answer; `deep` reads every byte of it."""
    code, folder = record.planned.code, keeper(record, folder)
    found: list[str] = []
    remarks: list[str] = []
    repository = around(project)
    if repository is not None:
        problem = damage(repository, record.planned, deep=deep)
        if problem is None:
            found.append(f"repository {repository.top}")
            remarks += _standing(kept(repository, code, ask=ask), code)
        else:
            remarks.append(f"{repository.top}: {problem}")
    else:
        remarks.append(f"{project.root} is in no git repository")
    if bundle(folder).is_file():
        problem = bundle_damage(folder, record.planned, deep=deep)
        if problem is None:
            found.append(f"bundle {bundle(folder)}")
        else:
            remarks.append(f"{bundle(folder)}: {problem}")
    if not found and repository is not None and ask:
        found += [f"remote {name}" for name in having(repository, code)]
    return Ingredient(
        kind="code",
        name="",
        recorded=f"commit {code.commit}",
        found=tuple(found),
        use=found[0] if found else "",
        remark="; ".join(remarks),
    )


def _standing(found: Kept, code: Code) -> Iterator[str]:
    if not found.refs:
        yield DECAY[0]
    if not found.remotes:
        yield DECAY[1] if code.dirty else DECAY[2]


def around(project: Project) -> Repository | None:
    """The repository around a project; None where there is none that can be read."""
    try:
        return open_repository(project.root)
    except ReproError:
        return None


def kept(repository: Repository, code: Code, *, ask: bool = False) -> Kept:
    """What keeps the commit here, and which remotes have it: as last heard of them, or with `ask` as they say now."""
    lines = git(repository.top, "for-each-ref", "--format=%(refname)", "--contains", code.commit, fine=(0, 1, 129))
    refs = os.fsdecode(lines).split()
    heard = sorted({each.split("/")[2] for each in refs if each.startswith("refs/remotes/")})
    own = [each for each in refs if not each.startswith("refs/remotes/")]
    return Kept(refs=tuple(own or refs), remotes=tuple(having(repository, code) if ask else heard))


def having(repository: Repository, code: Code) -> list[str]:
    """The remotes that have the commit under one of their refs, or below one, asked now."""
    found = []
    heard = os.fsdecode(
        git(repository.top, "for-each-ref", "--format=%(objectname)", "--contains", code.commit, "refs", fine=(0, 129))
    ).split()
    for name in os.fsdecode(git(repository.top, "remote")).split():
        with contextlib.suppress(ReproError):
            lines = os.fsdecode(git(repository.top, "ls-remote", name)).splitlines()
            if {line.split("\t")[0] for line in lines} & {code.commit, *heard}:
                found.append(name)
    return found


# whether it is whole ---------------------------------------------------------------------------------------------


def damage(repository: Repository, planned: Planned, *, deep: bool = False) -> str | None:
    """What is wrong with the commit of a run in a repository; None when all of its files are there."""
    code = planned.code
    tree = git(repository.top, "rev-parse", "-q", "--verify", f"{code.commit}^{{tree}}", fine=(0, 1, 128)).decode()
    if not tree.strip():
        return f"commit {code.commit[:12]} is not there"
    if tree.strip() != code.tree:
        return f"commit {code.commit[:12]} has tree {tree[:12]}, recorded {code.tree[:12]}"
    try:
        return _incomplete(repository, code.tree, prefixes.of(repository.top, planned), deep=deep)
    except ReproError as error:
        return " ".join([error.what, *error.evidence])


def _incomplete(repository: Repository, tree: str, prefix: str, *, deep: bool) -> str | None:
    treeish = f"{tree}:{prefix}" if prefix else tree
    lines = os.fsdecode(git(repository.top, "ls-tree", "-r", "-z", "--full-tree", treeish)).split("\0")[:-1]
    entries = [(line.split("\t", 1)[0].split(" "), line.split("\t", 1)[1]) for line in lines]
    blobs = {facts[2]: path for facts, path in entries if facts[0] != "160000"}
    answer = git(repository.top, "cat-file", "--batch-check", stdin="".join(f"{oid}\n" for oid in blobs).encode())
    if missing := [line.split()[0] for line in answer.decode().splitlines() if line.endswith(" missing")]:
        return f"{shown(blobs[missing[0]])} is missing" + (f", and {len(missing) - 1} more" if missing[1:] else "")
    if deep and (wrong := next(_wrong(repository, tuple(blobs)), None)):
        return f"{shown(blobs[wrong])} is damaged"
    for facts, path in entries:
        if facts[0] == "160000":
            inner = nested(repository, f"{prefix}/{path}".lstrip("/"))
            there = inner and git(inner.top, "rev-parse", "-q", "--verify", f"{facts[2]}^{{tree}}", fine=(0, 1, 128))
            if not inner or not there:
                return f"submodule {shown(path)}: its commit {facts[2][:12]} is not there"
            if problem := _incomplete(inner, facts[2], "", deep=deep):
                return f"submodule {shown(path)}: {problem}"
    return None


def nested(repository: Repository, path: str) -> Repository | None:
    """The repository of a submodule; a bare one, as a bundle makes it, holds all commits itself."""
    if repository.bare:
        return repository
    try:
        return open_repository(repository.top / path) if (repository.top / path / ".git").exists() else None
    except ReproError:
        return None


def _wrong(repository: Repository, oids: tuple[str, ...]) -> Iterator[str]:
    """The objects whose bytes are not those that their name is the hash of."""
    with reading(
        repository.top, "cat-file", "--batch", "--buffer", stdin="".join(f"{o}\n" for o in oids).encode()
    ) as it:
        for oid in oids:
            header = it.readline().split()
            if len(header) != 3:
                yield oid
                return
            size = int(header[2])
            hasher = hashlib.sha1(usedforsecurity=False) if len(oid) == 40 else hashlib.sha256()
            hasher.update(b"blob %d\0" % size)
            while size and (block := it.read(min(size, 1 << 20))):
                hasher.update(block)
                size -= len(block)
            it.read(1)
            if hasher.hexdigest() != oid:
                yield oid


def bundle_damage(folder: RunFolder, planned: Planned, *, deep: bool = False) -> str | None:
    """What is wrong with the bundle of an imported run; None when it holds the whole commit."""
    try:
        with unbundled(folder) as repository:
            return damage(repository, planned, deep=deep)
    except ReproError as error:
        return " ".join([error.what, *error.evidence])


@contextlib.contextmanager
def unbundled(folder: RunFolder) -> Iterator[Repository]:
    """A bare repository with all that the bundle of an imported run holds; gone afterwards.

    Raises:
        BadInputError: the bundle is damaged.
    """
    with scratch.folder("repro-code-") as place:
        yield gitbundle.opened(folder.archive, place)


# getting it back -------------------------------------------------------------------------------------------------


class Exported(Value, frozen=True, kw_only=True):
    """The code of a run as it was mounted."""

    folder: Path
    place: str  # that it came from
    prefix: str  # of the project inside its repository


def materialise(record: Record, folder: RunFolder, project: Project) -> Exported:
    """A folder with the code of a run, and where it came from.

    Raises:
        BadInputError: it is nowhere; `look` says so before.
        EnvironmentUnfitError: the folder cannot be written.
    """
    planned, folder = record.planned, keeper(record, folder)
    parent = ignored_folder(project.scratch) / "code"
    repository = around(project)
    if repository is not None and damage(repository, planned) is None:
        return _exported(planned, repository, parent, f"repository {repository.top}")
    if bundle(folder).is_file() and bundle_damage(folder, planned) is None:
        with unbundled(folder) as bare:
            return _exported(planned, bare, parent, f"bundle {bundle(folder)}")
    for name in having(repository, planned.code) if repository is not None else ():
        if repository is not None and _fetched(repository, name, planned):
            return _exported(planned, repository, parent, f"remote {name}")
    raise BadInputError(f"the code of run {planned.run} is lost: commit {planned.code.commit}")


def _exported(planned: Planned, repository: Repository, parent: Path, place: str) -> Exported:
    prefix = prefixes.of(repository.top, planned)
    known = {name: getattr(planned.code, name) for name in planned.code.__struct_fields__}
    found = source.export(source.Snapshot(**known, prefix=prefix), repository, parent)
    return Exported(folder=found, place=place, prefix=prefix)


def _fetched(repository: Repository, name: str, planned: Planned) -> bool:
    own = f"refs/repro/snap/{planned.code.commit}"
    for wanted in (f"+{own}:{own}", f"+{planned.code.commit}:{own}"):
        with contextlib.suppress(ReproError):
            git(repository.top, "fetch", "-q", "--no-tags", name, wanted)
    return damage(repository, planned) is None
