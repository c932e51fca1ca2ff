"""The files of a run -> its artifacts, beside a local store or on a server; what is there already is left alone."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from repro.client import TrackedRun, TrackingClient, TrackingError, every_artifact
from repro.delivery import first_line
from repro.experiment import Value

UNFIT_STATUS = (400, 404, 405, 413, 414, 422)  # a server's words for one file, not for all
Files = Iterable[tuple[Path, str]]  # each with its name among the artifacts


class Amount(Value, frozen=True, kw_only=True):
    """Files and their bytes."""

    files: int = 0
    bytes: int = 0


class Shipment:
    """Files on their way. `say` hears of each step what is done, and of how much; `odd` of what was refused."""

    def __init__(
        self, files: Files, say: Callable[[Amount, Amount], None], odd: Callable[[str, str], None], *, fresh: bool
    ) -> None:
        self.files = [(path, name, path.stat().st_size) for path, name in files]
        self.total = Amount(files=len(self.files), bytes=sum(size for _path, _name, size in self.files))
        self.done = self.sent = Amount()
        self.say, self.odd, self.fresh = say, odd, fresh

    def link(self, target: Path) -> None:
        """Give the bytes a second name below `target`, on this machine."""
        for path, name, size in self.files:
            if not _linked(path, target / name, size):
                link(path, target / name)
                self._count_sent(size)
            self._advance(size)

    def upload(self, client: TrackingClient, run: TrackedRun) -> None:
        """Send them. What is there in the same size is left alone: nothing but the record changes after a run."""
        there = {} if self.fresh else {each.path: each.size for each in every_artifact(client, run)}
        for path, name, size in self.files:
            before = self.done
            if there.get(name) != size or name == "record.json":
                try:
                    client.upload(run, path, name, self._part)
                    if there.get(name) != size:
                        self._count_sent(size)
                except TrackingError as error:
                    if not error.rejected and error.status not in UNFIT_STATUS:
                        raise
                    self.odd("artifact", f"{name} ({first_line(error)})")
            self.done = before
            self._advance(size)

    def _part(self, count: int) -> None:
        self.done = Amount(files=self.done.files, bytes=self.done.bytes + count)
        self.say(self.done, self.total)

    def _advance(self, size: int) -> None:
        self.done = Amount(files=self.done.files + 1, bytes=self.done.bytes + size)
        self.say(self.done, self.total)

    def _count_sent(self, size: int) -> None:
        self.sent = Amount(files=self.sent.files + 1, bytes=self.sent.bytes + size)


def _linked(source: Path, target: Path, size: int) -> bool:
    """Whether the target is the source, or a whole copy of it."""
    try:
        found, ours = target.stat(follow_symlinks=False), source.stat()
    except FileNotFoundError:
        return False
    same = (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)
    return same or (found.st_dev != ours.st_dev and (found.st_size, found.st_mtime_ns) == (size, ours.st_mtime_ns))


def link(source: Path, target: Path) -> None:
    """The same bytes under a second name; a copy where the file systems differ."""
    target.parent.mkdir(parents=True, exist_ok=True)
    short = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]  # names may be as long as the disk allows
    temporary = target.with_name(f".{short}.repro")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, temporary, follow_symlinks=False)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)  # a full disk, or a rename between two names of one file, leaves it
