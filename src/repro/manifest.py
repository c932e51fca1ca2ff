"""A folder of outputs -> the list of its files: path, size, sha256. The experiment made it: nothing is trusted."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from repro import printable, tolerant
from repro.errors import BadInputError
from repro.experiment import Outputs, Value
from repro.record import OutputFile, Planned, shown
from repro.stabilize.apart import Apart, UnsettledError

BLOCK = 1 << 20  # bytes
HOLES = 16 << 30  # bytes of nothing in a file, as a program can make them without end; reading them takes real time
DEPTH = 256  # folders within folders; Python's own tools fail at some more
SAY_SECONDS = 10.0


class Listing(Value, frozen=True, kw_only=True):
    """The regular files of a folder, sorted by path, and what is not among them."""

    files: tuple[OutputFile, ...] = ()
    unread: tuple[str, ...] = ()  # paths of what cannot be read, is nothing but holes, or lies too deep
    ignored: int = 0  # files that the patterns keep out
    trouble: str = ""  # with canonical digests, in one line

    @property
    def remark(self) -> str:
        """What to say of the files that are not listed, or not as they should; "" when all is well."""
        if not self.unread:
            return self.trouble
        first = printable.line(self.unread[0])[:200]
        why = "they cannot be read, are nothing but holes, or lie too deep"
        unlisted = f"{len(self.unread)} of its outputs are not listed ({why}), as {first}"
        return "; ".join(filter(None, (unlisted, self.trouble)))


def wanted(planned: Planned) -> Outputs:
    """What the configuration of a run says of its outputs; records of earlier versions say nothing."""
    return tolerant.read(planned.config.get("outputs") or {}, Outputs)[0]


def of(
    folder: Path,
    ignore: Sequence[str] = (),
    say: Callable[[str], None] = lambda _line: None,
    *,
    by_products: Sequence[str] = (),
) -> Listing:
    """Every regular file below `folder` that no pattern of `ignore` fits; `say` is told where a long listing is.

    Patterns of `by_products` fit files that may differ between two runs that are the same.
    """
    progress = _Progress(say)
    unread: list[str] = []
    files: list[OutputFile] = []
    ignored = 0
    fits, may_differ = matcher(ignore), matcher(by_products, "outputs.by_products")
    found = sorted(walk(folder, lambda name: unread.append(shown(name))))
    with Apart() as apart:
        _get_ready(apart, ((path, name) for path, name in found if not fits(name)))
        for path, name in found:
            if fits(name):
                ignored += 1
                continue
            try:
                file = listed(path, name, apart, progress.read)
                files.append(msgspec.structs.replace(file, role="by-product") if may_differ(name) else file)
            except OSError:
                unread.append(shown(name))
            progress.files += 1
            progress.read(0)
        trouble = "; ".join(filter(None, (apart.trouble, _unsettled(files))))
    return Listing(files=tuple(files), unread=tuple(sorted(unread)), ignored=ignored, trouble=trouble)


def _get_ready(apart: Apart, files: Iterable[tuple[Path, str]]) -> None:
    """Let stabilizers be loaded while the first files are hashed, if there is a file for them at all."""
    for path, name in files:
        with contextlib.suppress(OSError):
            if apart.wants(name, path.lstat().st_size):
                return


def _unsettled(files: Sequence[OutputFile]) -> str:
    found = [file.path for file in files if file.unsettled and file.role == "result"]
    if not found:
        return ""
    why = "reading them took too long or too much memory, so nobody can tell whether they come again"
    return f"{len(found)} of its results have no canonical digest ({why}), as {printable.line(found[0])[:200]}"


def listed(path: Path, name: str, apart: Apart, read: Callable[[int], None] = lambda _count: None) -> OutputFile:
    """One file: size, sha256, and its canonical digest where a stabilizer can read it.

    Raises:
        OSError: it cannot be read, or is no regular file any more.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        wanted = apart.wants(name, size)  # it gets ready while the file is hashed
        digest = sha256(file, read)
        canonical, unsettled = None, False
        try:
            canonical = apart.canonical(name, file, digest) if wanted else None
        except UnsettledError:
            unsettled = True
    return OutputFile(path=shown(name), size=size, sha256=digest, canonical=canonical, unsettled=unsettled)


def walk(folder: Path, refused: Callable[[str], None] = lambda _name: None) -> Iterator[tuple[Path, str]]:
    """Each regular file that can be listed below a folder, and its name relative to that; links are not followed.

    `refused` gets the names of folders that cannot be read or lie too deep, and of files that are nothing but holes.
    """
    pending = [""]
    while pending:
        parent = pending.pop()
        try:
            with os.scandir(folder / parent) as entries:
                for entry in entries:
                    name = f"{parent}/{entry.name}" if parent else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        (pending.append if name.count("/") < DEPTH else refused)(name)
                    elif entry.is_file(follow_symlinks=False):
                        if _is_hollow(entry):
                            refused(name)
                        else:
                            yield folder / name, name
        except OSError:
            refused(parent or ".")


def _is_hollow(entry: os.DirEntry[str]) -> bool:
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:  # its folder may be listed and not entered: who opens it is told
        return False
    return found.st_size - found.st_blocks * 512 > HOLES


def opened(path: Path) -> IO[bytes]:
    """A regular file of the experiment's to read; whatever has taken its place meanwhile is an OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(f"{path} is no file any more")
    return os.fdopen(descriptor, "rb", buffering=0)


def matcher(patterns: Iterable[str], key: str = "outputs.ignore") -> Callable[[str], bool]:
    """Whether a name fits patterns as in a .gitignore.

    Raises:
        BadInputError: one of them is none.
    """
    lines = list(patterns)
    if not lines:
        return lambda _name: False
    import pathspec

    try:
        found: Any = pathspec.GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise BadInputError(
            f"configuration: {key} holds what is no pattern of a .gitignore",
            evidence=[str(error)],
            hints=["as in a .gitignore: '*.tmp', 'checkpoints/', '!checkpoints/last.npz'"],
        ) from error
    return lambda name: bool(found.match_file(name))


class _Progress:
    """Tells now and then how far a listing has come."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.files, self.bytes = say, 0, 0
        self.due = time.monotonic() + SAY_SECONDS

    def read(self, count: int) -> None:
        self.bytes += count
        if time.monotonic() > self.due:
            self.due = time.monotonic() + SAY_SECONDS
            self.say(f"listing the outputs: {self.files:,} files, {self.bytes / 1e9:,.1f} GB")


def sha256(file: IO[bytes], read: Callable[[int], None] = lambda _count: None) -> str:
    """Of what is left of an open file, read in blocks; `read` is told the size of each."""
    hasher = hashlib.sha256()
    while block := file.read(BLOCK):
        hasher.update(block)
        read(len(block))
    return hasher.hexdigest()
