"""A run folder -> the room that it takes on the disk: a run that takes more than it may is stopped.

Also what there is to say of a disk that is full.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

from repro import printable, report
from repro.engines.refusal import ContainerGoneError
from repro.errors import EnvironmentUnfitError
from repro.experiment import Value
from repro.record import RunFolder, shown

TICK_SECONDS = 0.25
MEASURE_SECONDS = 10.0
GRACE_SECONDS = 2.0  # that a run may go on writing; one that is far beyond its limit gets none
SHARE = 50  # a measurement may take one part in so many of the time
ENTRY = 4096  # bytes that a file or folder counts at least: empty ones fill a disk as well
LARGEST = 3
FULL = 1 << 20  # bytes: less than that left is full
NO_ROOM = re.compile(rb"No space left on device|Disk quota exceeded|ENOSPC|EDQUOT")


class Room(Value, frozen=True, kw_only=True):
    """What some folders take on the disk, in bytes. `hidden`: why part of it is not known, "" when all is."""

    bytes: int
    files: int
    largest: tuple[tuple[int, str], ...]  # (bytes, name), the largest first
    hidden: str = ""


def measure(*folders: Path) -> Room:
    """The room that folders take: blocks, not lengths, so that holes are free; what has several names counts once."""
    seen: set[tuple[int, int]] = set()
    total = files = 0
    largest: list[tuple[int, str]] = []
    hidden = ""
    pending = [(str(folder), os.getuid()) for folder in folders]
    while pending:
        parent, owner = pending.pop()
        try:
            with os.scandir(parent) as found_here:
                entries = [(entry.path, entry.stat(follow_symlinks=False)) for entry in found_here]
        except FileNotFoundError:  # removed meanwhile, or one of its files was: counted the next time
            continue
        except OSError as error:
            if owner == os.getuid():  # root's are not the caller's to read
                hidden = f"{printable.line(shown(parent))[:200]}: {error.strerror}"
            continue
        for path, found in entries:
            folder = stat.S_ISDIR(found.st_mode)
            if found.st_nlink > 1 and not folder:
                if (found.st_dev, found.st_ino) in seen:
                    continue
                seen.add((found.st_dev, found.st_ino))
            size = max(ENTRY, found.st_blocks * 512)
            total, files = total + size, files + 1
            if folder:
                pending.append((path, found.st_uid))
            else:
                largest = heapq.nlargest(LARGEST, [*largest, (size, path)])
    return Room(bytes=total, files=files, largest=tuple(largest), hidden=hidden)


def held(container: str, device: int) -> int:
    """Bytes of files that have no name any more and that a container's processes have open: no folder shows them.

    Those of processes of another user cannot be seen.
    """
    found: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if container not in (process / "cgroup").read_text():
                continue
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    file = descriptor.stat()  # of what it leads to
                    if stat.S_ISREG(file.st_mode) and file.st_nlink == 0 and file.st_dev == device:
                        found[file.st_ino] = file.st_blocks * 512
        except OSError:  # it has ended, or is another user's
            continue
    return sum(found.values())


class Quota(threading.Thread):
    """Watches what a run writes, and calls `stop` with a grace time once it takes more than `limit` bytes.

    The disk's own count of free blocks tells at no cost when it is worth looking.
    """

    def __init__(self, folder: RunFolder, container: str, limit: int | None, stop: Callable[[float], None]) -> None:
        super().__init__(daemon=True, name="limit of the outputs")
        self.folder, self.container, self.limit, self.stop = folder, container, limit, stop
        self.over = threading.Event()
        self.exceeded = ""  # why the run was stopped, in words
        self._room = self._free = self._cost = 0.0
        self._measured = -MEASURE_SECONDS

    def start(self) -> None:
        """Begin to watch, where there is a limit."""
        if self.limit is not None:
            super().start()

    def run(self) -> None:
        """Until the limit is reached, or the run is over."""
        while not self.over.wait(TICK_SECONDS):
            if self._is_due() and self._is_exceeded():
                self._stop()
                return

    def _is_due(self) -> bool:
        since = time.monotonic() - self._measured
        if since < self._cost * SHARE:
            return False
        try:
            written = max(0.0, self._free - free(self.folder.path))
        except OSError:
            return False
        return since > MEASURE_SECONDS or self._room + written > (self.limit or 0)

    def _is_exceeded(self) -> bool:
        if self.limit is None or self.exceeded:
            return bool(self.exceeded)
        begun = time.monotonic()
        self._free = free(self.folder.path)
        room = measure(self.folder.outputs, self.folder.journal, self.folder.logs)
        removed = held(self.container, self.folder.outputs.stat().st_dev)
        self._room, self._measured = room.bytes + removed, time.monotonic()
        self._cost = self._measured - begun
        if room.bytes + removed > self.limit:
            self.exceeded = _too_much(room, removed, self.limit, self.folder)
        elif room.hidden:
            self.exceeded = f"part of its outputs cannot be measured, as outputs.limit needs it: {room.hidden}"
        return bool(self.exceeded)

    def _stop(self) -> None:
        while not self.over.is_set():
            try:
                self.stop(0.0 if self._room > 2 * (self.limit or 0) else GRACE_SECONDS)
            except ContainerGoneError:
                return
            except EnvironmentUnfitError:  # the engine is away for the moment
                self.over.wait(1.0)
            else:
                return

    def finish(self) -> str:
        """The container is over: why the run took too much room, in words; "" when it did not."""
        self.over.set()
        if self.ident is not None:
            self.join()
        try:
            self._is_exceeded()
        except OSError:  # the disk itself is gone
            return self.exceeded
        return self.exceeded


def _too_much(room: Room, removed: int, limit: int, folder: RunFolder) -> str:
    names = [
        f"{printable.line(shown(os.path.relpath(path, folder.path)))} ({report.size(size)})"
        for size, path in room.largest
    ]
    names += [f"removed and still open ({report.size(removed)})"] if removed else []
    return (
        f"its files take {report.size(room.bytes + removed)} on the disk, and may take {report.size(limit)}"
        f" (outputs.limit): {report.many(room.files, 'file')}, the largest {', '.join(names)};"
        " write less, or raise outputs.limit"
    )


def free(path: Path) -> int:
    """Bytes that may still be written to the disk of `path`."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def disk(path: Path) -> str:
    """A disk in words: where it is mounted, how much is free."""
    found = os.statvfs(path)
    point = path.resolve()
    while not os.path.ismount(point):
        point = point.parent
    return f"{point} ({report.size(free(path))} free of {report.size(found.f_blocks * found.f_frsize)})"


def lack_of_room(folder: RunFolder, *, ours: str) -> str:
    """What to say of a run that found no room to write; "" where nothing looks like it.

    `ours` is what the system said to us, when the log could not be written.
    """
    if ours:
        return (
            f"the disk of the run folder does not take more: {ours}: {disk(folder.path)};"
            " free some space there, or let REPRO_RUNS_DIR name another disk"
        )
    if not NO_ROOM.search(report.tail(folder.output_log)):
        return ""
    if free(folder.path) < FULL:
        return f"the disk is full: {disk(folder.path)}; free some space, or let REPRO_RUNS_DIR name another one"
    return (
        f"it says that a disk is full: {disk(folder.path)}, so it may have been /tmp or $HOME (resources.tmp),"
        " or /dev/shm (resources.shm)"
    )
