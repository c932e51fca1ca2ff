"""What of a run folder travels <-> a commit whose tree holds just that. What comes from a remote is not trusted.

It is text that tells what the run was: record, configuration, inputs, metrics, log, verifications. Outputs travel when
that is asked for; the record has their hashes in any case.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from repro import foreign, identity, scratch
from repro.code.repository import Repository, blobs, git, reading
from repro.errors import EnvironmentUnfitError, RefusedError
from repro.experiment import Value
from repro.record import Record, RunFolder, shown, write_atomic
from repro.tracking import store, tracking

RECORD = "record.json"
NEEDED = (RECORD, "config.yaml", "config.json", "uncommitted.diff.txt", "stop.json", "verification.json")
TRACKING = "tracking.json"
OPTIONAL = ("resources.jsonl", TRACKING, "shared.json")
NEEDED_FOLDERS, OPTIONAL_FOLDERS = ("inputs", "verifications"), ("journal", "logs")
OUTPUTS = "outputs"
FILE_LIMIT = 16 << 20  # bytes: of an optional file; git keeps everything for ever
LIMIT = 64 << 20  # bytes, of all of it
ENTRIES = 100_000  # files, of all of it
BLOCK = 1 << 16
SIGNED = ".intoto.jsonl"
DIGEST = re.compile(rb"^record sha256:([0-9a-f]{64})$", re.MULTILINE)


class Packed(Value, frozen=True, kw_only=True):
    """What of a run folder travels: path in it -> size in bytes; and what does not, with the reason."""

    files: dict[str, int]
    left_out: dict[str, str]


class _Entry(Value, frozen=True, kw_only=True):
    mode: str
    oid: str
    size: int
    path: str


def choose(folder: RunFolder, record: Record, *, outputs: bool) -> Packed:
    """What travels of this folder. Only plain files do: an experiment may have left links to anything.

    Raises:
        RefusedError: it is more than git should keep.
    """
    files: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for path, size in _candidates(folder, record, outputs=outputs):
        optional = path.split("/")[0] in (*OPTIONAL, *OPTIONAL_FOLDERS)
        if optional and size > FILE_LIMIT:
            left_out[path] = f"{size / 1e6:,.0f} MB are more than {FILE_LIMIT / 1e6:,.0f}"
        elif "\n" in path or shown(path) != path:
            left_out[shown(path)] = "its name"
        else:
            files[path] = size
    if not outputs and record.ended and record.ended.outputs:
        left_out[OUTPUTS] = f"{len(record.ended.outputs):,} files; --outputs sends them, too"
    if sum(files.values()) > LIMIT:
        largest = sorted(files, key=lambda path: files[path], reverse=True)[:5]
        raise RefusedError(
            f"the files of run {record.planned.run} are {sum(files.values()) / 1e6:,.0f} MB,"
            f" and more than {LIMIT / 1e6:,.0f} MB are not for git",
            evidence=[f"{shown(path)}  {files[path] / 1e6:,.1f} MB" for path in largest],
            hints=["without --outputs: the record has their hashes"] if outputs else [],
        )
    return Packed(files=files, left_out=left_out)


def _candidates(folder: RunFolder, record: Record, *, outputs: bool) -> Iterator[tuple[str, int]]:
    for name in (*NEEDED, *OPTIONAL):
        if name != TRACKING or _tracked_for_all(folder):
            yield from _plain(folder.path, name)
    for name in (*NEEDED_FOLDERS, *OPTIONAL_FOLDERS):
        if (folder.path / name).is_symlink():
            continue
        for parent, _folders, files in os.walk(folder.path / name):
            inside = Path(parent).relative_to(folder.path).as_posix()
            for file in sorted(files):
                yield from _plain(folder.path, f"{inside}/{file}")
    for output in record.ended.outputs if outputs and record.ended else ():
        steps = [folder.path / OUTPUTS / part for part in ["", *map(str, Path(output.path).parents)]]
        if not any(step.is_symlink() for step in steps):
            yield from _plain(folder.path, f"{OUTPUTS}/{output.path}")


def _tracked_for_all(folder: RunFolder) -> bool:
    """Whether MLflow has all of a run, where others see it: else they would send it once more."""
    known = tracking.state(folder)
    return known is not None and tracking.complete(folder) and store.sqlite_file(known.uri) is None


def _plain(place: Path, name: str) -> Iterator[tuple[str, int]]:
    try:
        facts = (place / name).lstat()
    except OSError:  # it is not there, or its name is not in UTF-8
        return
    if stat.S_ISREG(facts.st_mode) and not Path(name).name.startswith("."):  # half-written ones begin with a dot
        yield name, facts.st_size


def pack(repository: Repository, folder: RunFolder, record: Record, packed: Packed, parent: str | None) -> str:
    """A commit with these files, on top of what the remote has of the run: equal files, equal commit.

    What others have added there stays, and signatures are joined line by line. `parent` is in the repository.

    Raises:
        RefusedError: the remote has another record under the id of this run.
    """
    digest = identity.record_digest(record)
    before = {entry.path: entry for entry in _listed(repository, parent, record.planned.run)} if parent else {}
    if parent and (theirs := _told(repository, parent)) != digest:
        raise RefusedError(
            f"the remote has another record of run {record.planned.run}",
            evidence=[f"here    sha256 {digest}", f"there   sha256 {theirs}"],
            hints=["one of them was changed after the run; `git log` of its ref tells who pushed there"],
        )
    oids = _stored(repository, folder, list(packed.files))
    lines = {path: f"100644 {oid} 0\t{path}\0" for path, oid in oids.items() if not _kept(path, before)}
    for path in (path for path in oids if path.endswith(SIGNED) and path in before):
        joined = _joined(git(repository.top, "cat-file", "blob", before[path].oid), (folder.path / path).read_bytes())
        oid = git(repository.top, "hash-object", "-w", "--stdin", stdin=joined).decode().strip()
        lines[path] = f"100644 {oid} 0\t{path}\0"
    with scratch.folder("repro-index-") as temporary:
        index = temporary / "index"
        git(repository.top, "read-tree", parent or "--empty", index=index)
        given = os.fsencode("".join(lines.values()))
        git(repository.top, "update-index", "-z", "--index-info", index=index, stdin=given)
        tree = git(repository.top, "write-tree", index=index).decode().strip()
    if parent and tree == git(repository.top, "rev-parse", f"{parent}^{{tree}}").decode().strip():
        return parent
    message = f"Run {record.planned.run}\n\nrecord sha256:{digest}\nsnapshot {record.planned.code.commit}\n"
    above = ("-p", parent) if parent else ()
    return git(repository.top, "commit-tree", tree, *above, stdin=message.encode()).decode().strip()


def _kept(path: str, before: Mapping[str, object]) -> bool:
    """What is there is never replaced: the record, and what others say of it."""
    return path in before and path.split("/", maxsplit=1)[0] in (*NEEDED, *NEEDED_FOLDERS)


def _stored(repository: Repository, folder: RunFolder, paths: list[str]) -> dict[str, str]:
    given = os.fsencode("".join(f"{folder.path.absolute() / path}\n" for path in paths))
    answer = git(repository.top, "hash-object", "-w", "--no-filters", "--stdin-paths", stdin=given)
    return dict(zip(paths, answer.decode().split(), strict=True))


def _joined(theirs: bytes, ours: bytes) -> bytes:
    lines = dict.fromkeys(line for line in [*theirs.split(b"\n"), *ours.split(b"\n")] if line.strip())
    return b"".join(line + b"\n" for line in lines)


# the way back ---------------------------------------------------------------------------------------------------


class Parcel:
    """A run as a remote has it: checked, and not yet a folder."""

    def __init__(self, repository: Repository, commit: str, run: str) -> None:
        """Raises EnvironmentUnfitError: it is not what the ref says, or holds what no run folder has."""
        self._repository, self.run = repository, run
        self._entries = _listed(repository, commit, run)
        if sum(entry.size for entry in self._entries) > LIMIT:
            raise _strange(run, f"it is larger than {LIMIT / 1e6:,.0f} MB")
        if wrong := [shown(entry.path) for entry in self._entries if not _allowed(entry)]:
            raise _strange(run, f"it holds {wrong[0]}")
        try:
            raw = next(iter(self._contents([entry for entry in self._entries if entry.path == RECORD])))[1]
            self.record: Record = msgspec.json.decode(raw, type=Record)
            self.digest: str = identity.record_digest(self.record)
        except StopIteration:
            raise _strange(run, f"it holds no {RECORD}") from None
        except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors
            raise _strange(run, f"its record cannot be read: {error}") from error
        if self.record.planned.run != run:
            raise _strange(run, f"its record is of run {self.record.planned.run}")
        if found := foreign.strange(self.record):
            raise _strange(run, found[0])
        if self.digest != (told := _told(repository, commit)):
            raise _strange(run, f"its record has the sha256 {self.digest}, and its commit tells {told}")

    def write(self, folder: Path) -> None:
        """All its files into a new folder, the record last.

        Raises:
            EnvironmentUnfitError: an output is not the one of the record, or the folder cannot be written.
        """
        for path, content in self._checked(sorted(self._entries, key=lambda entry: entry.path == RECORD)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)

    def add(self, folder: RunFolder) -> list[str]:
        """What a folder of the same run lacks, added: verifications of others, their signatures, outputs."""
        added, place = [], folder.path.resolve()
        entries = [entry for entry in self._entries if entry.path.startswith(("verifications/", f"{OUTPUTS}/"))]
        for path, content in self._checked(entries):
            target = place / path
            if not target.resolve().is_relative_to(place):  # a link that an experiment has left leads elsewhere
                continue
            before = target.read_bytes() if target.is_file() else None
            wanted = content if before is None else _joined(before, content) if path.endswith(SIGNED) else before
            if wanted != before:
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(target, wanted)
                added.append(path)
        return added

    def _checked(self, entries: list[_Entry]) -> Iterator[tuple[str, bytes]]:
        """Paths and contents; an output is the one of the record, or the whole is refused."""
        known = {file.path: file.sha256 for file in self.record.ended.outputs} if self.record.ended else {}
        for path, content in self._contents(entries):
            output = path.removeprefix(f"{OUTPUTS}/") if path.startswith(f"{OUTPUTS}/") else None
            if output is not None and hashlib.sha256(content).hexdigest() != known.get(output):
                raise _strange(self.run, f"the output {shown(output)} is not the one of its record")
            yield path, content

    def _contents(self, entries: list[_Entry]) -> Iterator[tuple[str, bytes]]:
        contents = blobs(self._repository.top, [entry.oid for entry in entries])
        yield from zip((entry.path for entry in entries), contents, strict=True)


def _listed(repository: Repository, commit: str, run: str) -> list[_Entry]:
    """What a commit holds. A few trees, each ten times in the next one, are a thousand million files: nobody sent them.

    Raises:
        EnvironmentUnfitError: it holds more than any run, or is no commit.
    """
    if git(repository.top, "cat-file", "-t", commit).strip() != b"commit":
        raise _strange(run, "its ref is of no commit")
    found, rest = [], b""
    with reading(repository.top, "ls-tree", "-r", "-l", "-z", "--full-tree", commit) as listing:
        while block := listing.read(BLOCK):
            *lines, rest = (rest + block).split(b"\0")
            for line in map(os.fsdecode, lines):
                mode, _kind, oid, size = line.split("\t", 1)[0].split()
                path = line.split("\t", 1)[1]
                found.append(_Entry(mode=mode, oid=oid, size=0 if size == "-" else int(size), path=path))
            if len(found) > ENTRIES or len(rest) > BLOCK:
                raise _strange(run, f"it holds more than {ENTRIES:,} files")
    return found


def _told(repository: Repository, commit: str) -> str:
    found = DIGEST.search(git(repository.top, "cat-file", "commit", commit))
    return found[1].decode() if found else "none"


def _allowed(entry: _Entry) -> bool:
    first, *rest = entry.path.split("/")
    if entry.mode != "100644" or not {"", ".", "..", ".git"}.isdisjoint(entry.path.split("/")):
        return False
    names = (*NEEDED_FOLDERS, *OPTIONAL_FOLDERS, OUTPUTS) if rest else (*NEEDED, *OPTIONAL)
    return first in names


def _strange(run: str, why: str) -> EnvironmentUnfitError:
    return EnvironmentUnfitError(
        f"what the remote has of run {run} is not what `repro push` sends",
        evidence=[why],
        hints=["nothing of it was kept; `git log` of its ref tells who pushed it"],
    )
