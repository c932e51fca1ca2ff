"""The user's working tree -> Snapshot (a commit that holds uncommitted work too) -> a folder with exactly its files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from repro import scratch
from repro.code import lfs, suspects
from repro.code.checkout import write_commit
from repro.code.repository import Repository, git, open_repository, reading, remote, some
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import Value
from repro.record import Code, shown

MAX_FILE = 50_000_000  # bytes; larger untracked files are refused: they are data, and git keeps them for ever
RUN = f"{'[0-9]' * 8}-{'[0-9]' * 6}-*-{'[0-9a-f]' * 6}"
OURS = (  # never part of the code
    *("mlflow.db", "mlflow.db-*", "mlflow.db.*"),  # MLflow's, which every run writes
    *(f"{RUN}.crate.zip", ".repro-exporting-*"),  # of `repro export`, here by default
)

Say = Callable[[str], None]


class Snapshot(Value, frozen=True, kw_only=True):
    """The code as one commit: HEAD when nothing is uncommitted, else one on top of it, known to `refs/repro/` only."""

    commit: str
    tree: str
    head: str  # "": there is no commit yet
    branch: str | None  # None: detached HEAD
    remote: str | None  # URL of `origin` without credentials
    dirty: bool
    prefix: str  # of the project inside the repository, "" at its top

    def code(self) -> Code:
        """What a record keeps of it."""
        names = ("commit", "tree", "head", "branch", "remote", "dirty")
        return Code(**{name: getattr(self, name) for name in names})


class _Entry(Value, frozen=True, kw_only=True):
    """One line of the user's index."""

    tag: str  # git's letter: lower case means assume-unchanged, S skip-worktree, M conflict
    mode: str
    oid: str
    path: str

    @property
    def is_repository(self) -> bool:
        return self.mode == "160000"


class _Listing(Value, frozen=True, kw_only=True):
    """What the user's index and working tree hold."""

    tracked: list[_Entry]
    untracked: list[str]  # not ignored; a slash at the end: a repository inside this one

    @property
    def paths(self) -> list[str]:
        return [entry.path for entry in self.tracked] + self.untracked


def capture(
    root: Path, *, max_file: int | None = None, say: Say = lambda _: None, warn: Say = lambda _: None
) -> Snapshot:
    """The working tree of the repository around `root`, kept as a commit.

    HEAD, index, files, stash and branches stay untouched. The commit is on top of HEAD with a fixed author and
    date, so equal content on an equal HEAD has an equal id.
    `refs/repro/snap/<commit>` keeps it alive. Submodules and repositories inside the project are captured in the
    same way, each into itself, and the snapshot points at their snapshots. `max_file` (bytes; default:
    REPRO_SNAPSHOT_MAX_FILE, else 50 MB) is the cap for an untracked file. `warn` is told of untracked files that look
    like secrets before anything is stored.

    Raises:
        BadInputError: no repository or working tree, conflicts, submodules that are not checked out, a Git LFS
            file without its content, an untracked file over the cap, or git refuses to work here.
        RefusedError: untracked files look like secrets, and REPRO_SNAPSHOT_SECRETS is `refuse`.
        EnvironmentUnfitError: git is not installed, or its folder cannot be written.
    """
    repository = open_repository(root)
    listing = _list(repository)
    limit = _max_file() if max_file is None else max_file
    _refuse_unusable(repository, listing, limit, say)
    options = lfs.check(repository, listing.paths)
    suspects.report(repository.top, [path for path in listing.untracked if not path.endswith("/")], warn)
    inner = _nested(repository, listing)
    nested = {path: capture(repository.top / path, max_file=limit, say=say, warn=warn) for path in inner}
    try:
        tree = _write_tree(repository, listing, nested, options)
    except OSError as error:
        raise EnvironmentUnfitError("cannot make a temporary copy of git's index", evidence=str(error)) from error
    dirty = tree != repository.tree
    commit = _commit(repository, tree) if dirty else repository.head
    # Named by the commit, not by the tree: two snapshots with the same files on two HEADs must both live.
    git(repository.top, "update-ref", f"refs/repro/snap/{commit}", commit)
    return Snapshot(
        commit=commit,
        tree=tree,
        head=repository.head,
        branch=repository.branch,
        remote=remote(repository),
        dirty=dirty,
        prefix=repository.prefix.rstrip("/"),
    )


def export(snapshot: Snapshot, root: Path | Repository, destination_parent: Path, *, say: Say = lambda _: None) -> Path:
    """A folder with the project's files as they are in `snapshot`, written once below `destination_parent`.

    Only the project's own folder is exported (`snapshot.prefix`): it becomes /workspace, where the paths of the
    configuration must hold. The bytes are git's objects, so nobody's line-end settings or filters show in them;
    Git LFS pointers become the content that they point at. Files are read-only, times and modes are fixed,
    symlinks stay symlinks. Any number of processes may export at once; a half-written folder is never returned.

    Raises:
        BadInputError: the commit, or that of a submodule, or a Git LFS object is not in this repository.
        EnvironmentUnfitError: the folder cannot be written.
    """
    suffix = f"-{hashlib.sha256(os.fsencode(snapshot.prefix)).hexdigest()[:8]}" if snapshot.prefix else ""
    place = destination_parent / (snapshot.commit + suffix)
    if _is_intact(place):
        touch(place / "files")
        return place / "files"
    try:
        destination_parent.mkdir(parents=True, exist_ok=True)
        # Exports inside the project must not become part of its next snapshot.
        (destination_parent / ".gitignore").write_text("*\n")
        with scratch.folder(".writing-", destination_parent) as temporary:
            written = temporary / "export"
            written.mkdir()
            repository = open_repository(root) if isinstance(root, Path) else root
            write_commit(repository, snapshot.commit, snapshot.prefix, written / "files")
            (written / "complete.json").write_bytes(msgspec.json.encode(_measure(written / "files")))
            say(f"exported the code of {snapshot.commit[:12]}")
            _publish(written, place)
    except OSError as error:
        raise EnvironmentUnfitError(f"cannot export the code to {destination_parent}", evidence=str(error)) from error
    return place / "files"


def touch(files: Path) -> None:
    """Note that an export is in use: `repro prune` removes what was not for a week."""
    with contextlib.suppress(OSError):  # another user's, perhaps
        os.utime(files.parent)


def diff_text(snapshot: Snapshot, root: Path, *, limit: int = 1_000_000) -> str:
    """What `snapshot` adds to HEAD, for people to read: cut after `limit` bytes, binary files by name only.

    Raises:
        BadInputError: the snapshot is not in the repository of `root`.
    """
    if not snapshot.dirty:
        return ""
    revisions = (snapshot.head, snapshot.commit) if snapshot.head else ("--root", "--no-commit-id", snapshot.commit)
    options = (
        "-p",
        "-M",
        "--no-color",
        "--no-ext-diff",
        "--no-textconv",
        "--submodule=diff",
        "--ignore-submodules=none",
    )
    with reading(open_repository(root).top, "diff-tree", *options, *revisions) as output:
        text = output.read(limit + 1)
        rest = len(text) > limit
        if rest:
            text = text[: text.rfind(b"\n", 0, limit) + 1] + f"... cut: longer than {limit:,} bytes\n".encode()
            while output.read(1 << 20):  # let git end by itself: an end that we caused would look like a failure
                pass
    return text.decode("utf-8", "replace")


# --- capture ----------------------------------------------------------------------------------------------------


def _max_file() -> int:
    given = os.environ.get("REPRO_SNAPSHOT_MAX_FILE", "")
    if given and not given.isdecimal():
        raise BadInputError("REPRO_SNAPSHOT_MAX_FILE is no number of bytes", evidence=given)
    return int(given) if given else MAX_FILE


def _list(repository: Repository) -> _Listing:
    answer = git(
        repository.top, "ls-files", "-s", "-v", "-c", "-o", "-z", "--exclude-standard", *(f"-x{name}" for name in OURS)
    )
    tracked, untracked = [], []
    for line in os.fsdecode(answer).split("\0")[:-1]:
        tag, rest = line.split(" ", 1)
        if tag == "?":
            untracked.append(rest)
        else:
            facts, path = rest.split("\t", 1)
            mode, oid, stage = facts.split(" ")
            tracked.append(_Entry(tag=tag if stage == "0" else "M", mode=mode, oid=oid, path=path))
    return _Listing(tracked=tracked, untracked=untracked)


def _refuse_unusable(repository: Repository, listing: _Listing, limit: int, say: Say) -> None:
    conflicts = sorted({entry.path for entry in listing.tracked if entry.tag == "M"})
    if conflicts:
        raise BadInputError(
            "the working tree has unresolved conflicts",
            evidence=some(conflicts),
            hints=["resolve them, then `git add` these files; or `git merge --abort` / `git rebase --abort`"],
        )
    if not any(path.startswith(repository.prefix) for path in listing.paths):
        raise BadInputError(
            f"git knows no file in {repository.top / repository.prefix}",
            hints=["a .gitignore above it may list the folder: `git status --ignored`", "or it is still empty"],
        )
    sizes = {path: _size(repository.top / path) for path in listing.untracked}
    large = [f"{shown(path)}: {size:,} bytes" for path, size in sizes.items() if size > limit]
    if large:
        raise BadInputError(
            f"untracked files over {limit:,} bytes would be stored in git for ever",
            evidence=some(large),
            hints=[
                "list them in .gitignore; what a run reads from them is a dataset (configuration group `data`)",
                "or raise the limit: REPRO_SNAPSHOT_MAX_FILE=BYTES",
            ],
        )
    if sum(sizes.values()) > limit:
        say(f"storing {len(sizes):,} untracked files ({sum(sizes.values()) / 1e6:,.0f} MB) in git")


def _nested(repository: Repository, listing: _Listing) -> list[str]:
    """Submodules and repositories inside the project that are there to be captured."""
    links = [entry.path for entry in listing.tracked if entry.is_repository]
    links = [path for path in links if path.startswith(repository.prefix) and (repository.top / path).is_dir()]
    empty = [path for path in links if not (repository.top / path / ".git").exists()]
    if empty:
        raise BadInputError(
            "submodules are not checked out, so their files would be missing",
            evidence=some(empty),
            hints=["`git submodule update --init --recursive`"],
        )
    strange = [path[:-1] for path in listing.untracked if path.endswith("/") and path.startswith(repository.prefix)]
    return links + strange


def _write_tree(
    repository: Repository, listing: _Listing, nested: dict[str, Snapshot], options: tuple[str, ...]
) -> str:
    """Write the working tree's files as git objects, through a copy of the user's index; the id of the tree.

    The copy is made anew each time. Its stat cache spares the tracked files, and the user's index stays the only
    word on what is tracked; an index of our own would have to follow every change of it and of each .gitignore.
    """
    with scratch.folder("repro-index-") as folder:
        index = folder / "index"
        with contextlib.suppress(FileNotFoundError):  # nothing was ever added
            shutil.copy2(repository.git_dir / "index", index)  # with its time: git compares files' times to it
            index.chmod(0o600)
        hidden = [entry for entry in listing.tracked if _is_hidden(repository, entry)]
        if hidden:  # set anew, without the mark
            _set_entries(repository, index, ((entry.mode, entry.oid, entry.path) for entry in hidden))
        sparse = any(entry.tag in {"S", "s"} for entry in listing.tracked)  # else files outside of its cone are refused
        git(
            repository.top,
            *options,
            "add",
            "-A",
            *(["--sparse"] if sparse else []),
            "--",
            ".",
            *(f":(exclude,glob)**/{name}{below}" for name in OURS for below in ("", "/**")),
            index=index,
        )
        if nested:
            _set_entries(repository, index, (("160000", snap.commit, path) for path, snap in nested.items()))
        return git(repository.top, *options, "write-tree", index=index).decode().strip()


def _is_hidden(repository: Repository, entry: _Entry) -> bool:
    """Whether git was told to take a file as unchanged. One that is skipped and absent is a sparse checkout's."""
    if entry.tag in {"S", "s"}:
        return os.path.lexists(repository.top / entry.path)
    return entry.tag.islower()


def _set_entries(repository: Repository, index: Path, entries: Iterable[tuple[str, str, str]]) -> None:
    lines = "".join(f"{mode} {oid} 0\t{path}\0" for mode, oid, path in entries)
    git(repository.top, "update-index", "-z", "--index-info", index=index, stdin=os.fsencode(lines))


def _commit(repository: Repository, tree: str) -> str:
    parent = ("-p", repository.head) if repository.head else ()
    made = git(repository.top, "commit-tree", tree, *parent, stdin=b"Working tree, captured by repro\n")
    return made.decode().strip()


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0  # gone since it was listed


# --- export -----------------------------------------------------------------------------------------------------


class _Measure(Value, frozen=True, kw_only=True):
    """What an export weighs; the last thing written to it. Every time in it is EPOCH, so an edited file shows."""

    entries: int
    bytes: int
    newest: int  # nanoseconds


def _publish(written: Path, place: Path) -> None:
    """Move a complete export to its place, unless another process was first."""
    for attempt in range(10):
        try:
            written.rename(place)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        else:
            return
        if _is_intact(place):
            return
        with contextlib.suppress(OSError):  # someone changed it: aside with it, and again
            place.rename(written.parent / f"damaged-{attempt}")
    raise EnvironmentUnfitError(f"{place} is changed again and again while it is exported")


def _measure(folder: Path) -> _Measure:
    entries, size, newest = 0, 0, 0
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                facts = entry.stat(follow_symlinks=False)
                entries += 1
                newest = max(newest, facts.st_mtime_ns)
                if stat.S_ISDIR(facts.st_mode):
                    waiting.append(Path(entry.path))
                else:
                    size += facts.st_size
    return _Measure(entries=entries, bytes=size, newest=newest)


def _is_intact(place: Path) -> bool:
    """Whether an export is there, whole and unchanged, as far as sizes and times tell."""
    try:
        marker = msgspec.json.decode((place / "complete.json").read_bytes(), type=_Measure)
        return marker == _measure(place / "files")
    except (OSError, msgspec.DecodeError):
        return False
