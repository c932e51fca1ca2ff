"""The files of a run -> its artifacts, beside a local store or on a server; what is there already is left alone."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from repro import manifest
from repro.experiment import Value
from repro.record import RunFolder
from repro.tracking.client import TrackedModel, TrackedRun, TrackingClient, TrackingError, every_artifact
from repro.tracking.delivery import first_line

UNFIT_STATUS = (400, 404, 405, 413, 414, 422)  # a server's words for one file, not for all


class Item(Value, frozen=True, kw_only=True):
    """A file, the run or model of MLflow's that it belongs to, and its name there.

    `edited`: it was made just now, in the place of one of the run's.
    """

    path: Path
    name: str
    place: TrackedRun | TrackedModel
    edited: bool


class Amount(Value, frozen=True, kw_only=True):
    """Files and their bytes."""

    files: int = 0
    bytes: int = 0


class Shipment:
    """Files on their way. `say` hears of each step what is done, and of how much; `odd` of what was refused."""

    def __init__(
        self,
        files: Iterable[Item],
        say: Callable[[Amount, Amount], None],
        odd: Callable[[str, str], None],
        *,
        fresh: bool,
    ) -> None:
        self.files = [(item, item.path.stat().st_size) for item in files]
        self.total = Amount(files=len(self.files), bytes=sum(size for _item, size in self.files))
        self.done = self.sent = Amount()
        self.say, self.odd, self.fresh = say, odd, fresh

    def link(self, folder: Callable[[TrackedRun | TrackedModel], Path | None]) -> None:
        """Give the bytes a second name in the `folder` of each run or model, on this machine."""
        for item, size in self.files:
            if target := folder(item.place):
                try:
                    self._link(item, target / item.name, size)
                except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:  # something else is there
                    self.odd("artifact", f"{item.name} ({error.strerror})")
            self._advance(size)

    def _link(self, item: Item, target: Path, size: int) -> None:
        there = _equal if item.edited else _linked
        if not there(item.path, target, size):
            link(item.path, target)
            self._count_sent(size)

    def upload(self, client: TrackingClient) -> None:
        """Send them. What is there in the same size is left alone: nothing but the record changes after a run."""
        known: dict[str, dict[str, int | None]] = {}
        for item, size in self.files:
            if item.place.id not in known:
                listed = () if self.fresh else every_artifact(client, item.place)
                known[item.place.id] = {each.path: each.size for each in listed}
            there = known[item.place.id].get(item.name)
            before = self.done
            if there != size or item.name == "record.json":
                try:
                    client.upload(item.place, item.path, item.name, self._part)
                    if there != size:
                        self._count_sent(size)
                except TrackingError as error:
                    if not error.rejected and error.status not in UNFIT_STATUS:
                        raise
                    self.odd("artifact", f"{item.name} ({first_line(error)})")
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


def artifacts(folder: RunFolder) -> Iterator[tuple[Path, str]]:
    """The files of a run that MLflow shows, with their names there. No links: the container made the outputs."""
    for path in (folder.config_yaml, folder.record, folder.diff, folder.verification):
        if path.is_file():
            yield path, path.name
    ignored = manifest.matcher(manifest.wanted(folder.read().planned).ignore)
    for path, name in sorted(manifest.walk(folder.outputs)):
        if not ignored(name):
            yield path, f"outputs/{name}"
    for top in (folder.logs, folder.inputs):
        for parent, _folders, names in os.walk(top):
            for name in sorted(names):
                path = Path(parent) / name
                if path.is_file() and not path.is_symlink():
                    yield path, path.relative_to(folder.path).as_posix()


def _linked(source: Path, target: Path, size: int) -> bool:
    """Whether the target is the source, or a whole copy of it."""
    try:
        found, ours = target.stat(follow_symlinks=False), source.stat()
    except FileNotFoundError:
        return False
    same = (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)
    return same or (found.st_dev != ours.st_dev and (found.st_size, found.st_mtime_ns) == (size, ours.st_mtime_ns))


def _equal(source: Path, target: Path, size: int) -> bool:
    try:
        return target.stat(follow_symlinks=False).st_size == size and target.read_bytes() == source.read_bytes()
    except FileNotFoundError:
        return False


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
