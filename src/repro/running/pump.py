"""A container's output -> its log, whole, and from there to whoever looks on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from repro.engines.engine import Engine
from repro.engines.refusal import ContainerGoneError
from repro.errors import EnvironmentUnfitError
from repro.record import RunFolder
from repro.secrets.masking import Masker

BLOCK = 1 << 16  # bytes
LOOK_SECONDS = 0.1
STALLED_SECONDS = 10.0
MISSED_BYTES = 16 << 10
TIMES_SECONDS = 1.0  # between two entries of the log's times


class Pump(threading.Thread):
    """Copies the container's output to its log, also through a restart of the engine, or of this program.

    The log is always the beginning of what the engine has: whoever goes on does so at its length.
    """

    def __init__(self, engine: Engine, container: str, folder: RunFolder, secrets: tuple[bytes, ...] = ()) -> None:
        super().__init__(daemon=True, name="container output")
        self.engine, self.container = engine, container
        self.secrets = secrets  # values, which the log does not show
        self.log, self.times = folder.output_log, folder.output_times
        self.delivered = 0  # bytes of the log
        self.received = 0  # bytes from the engine, some of them perhaps for the second time
        self.disk_error = ""
        self.missed = b""  # the last of what the log has no room for
        self.over = threading.Event()
        self.why = ""  # the engine keeps some of the output, in words
        self._given_up = self._complete = False
        self._noted = 0.0

    def run(self) -> None:
        """Until the container's output ends for good, or nobody wants it any more."""
        with self.log.open("ab", buffering=0) as log:
            self.delivered = log.tell()
            while not self.over.is_set():
                if self._copy(log):
                    self._complete = not self.over.is_set()
                    return
                self.over.wait(0.5)

    def _copy(self, log: BinaryIO) -> bool:
        """Everything that the engine has and will have of the output; False when it went away in between."""
        try:
            self._pass(log, follow=True)
            # an engine that is killed ends its streams like one that is done
            if self.engine.exit(self.container) is None:
                return False
            # engines stop following when the container ends, and may have sent half of what it printed last
            self.disk_error, self.missed = "", b""  # there may be room again: the engine still has all of it
            self._pass(log, follow=False)
        except ContainerGoneError:
            return True
        except EnvironmentUnfitError:
            return False
        return True

    def _pass(self, log: BinaryIO, *, follow: bool) -> None:
        """One stream from the container's first byte on, without what the log has already."""
        skip = self.delivered
        for chunk in self._masked(follow=follow):
            if self.over.is_set():  # given up; or the run may be another process's, which writes where this log ends
                return
            fresh = chunk[skip:]
            skip = max(0, skip - len(chunk))
            if fresh:
                self._write(log, fresh)

    def _masked(self, *, follow: bool) -> Iterator[bytes]:
        """The stream with secrets masked: as many bytes. Its very end comes when it is known to be the end."""
        masker = Masker(self.secrets)
        for chunk in self.engine.output(self.container, follow=follow):
            self.received += len(chunk)
            yield masker.feed(chunk)
        if not follow:
            yield masker.flush()

    def _write(self, log: BinaryIO, chunk: bytes) -> None:
        """Append to the log. On a full disk it ends where the room ended: what comes later must not close the gap."""
        if not self.disk_error:
            self._note_time()
            try:
                while chunk:
                    written = log.write(chunk)  # the last of a disk's room may take a part
                    self.delivered += written
                    chunk = chunk[written:]
            except OSError as error:  # no reason to stop the run
                self.disk_error = str(error)
        if chunk:
            self.missed = (self.missed + chunk)[-MISSED_BYTES:]

    def _note_time(self) -> None:
        now = time.time()
        if now - self._noted >= TIMES_SECONDS:
            self._noted = now
            with contextlib.suppress(OSError), self.times.open("a", encoding="ascii") as times:
                times.write(f"{int(now * 1000)} {self.delivered}\n")

    def give_up(self) -> None:
        """Whoever had the output has gone, or it is more than anybody wants: what is there is all."""
        self._given_up = True
        self.over.set()

    def hold_back(self, why: str) -> None:
        """Leave the output with the engine."""
        self.why = why
        self.over.set()

    def finish(self) -> bool:
        """The container is over: let what it printed last arrive. False: the engine holds some of it back."""
        if self.ident is None and not self.over.is_set():  # interrupted before it began
            self.start()
        before = -1
        while self.is_alive() and before != self.received:
            before = self.received
            self.join(timeout=STALLED_SECONDS)
        self.over.set()
        return not self.held_back

    @property
    def held_back(self) -> bool:
        """Whether the engine has the only copy of some output."""
        return not (self._complete or self._given_up)


class Echo(threading.Thread):
    """Passes a growing log on, in blocks. Who looks on may be slow, or go away: the log does not wait for them."""

    def __init__(self, log: Path, output: Callable[[bytes], None]) -> None:
        super().__init__(daemon=True, name="echo of the output")
        log.touch()
        self.log, self.output = log, output
        self.over = threading.Event()

    def run(self) -> None:
        """Until the end of the log, once it is over."""
        with contextlib.suppress(OSError, ValueError):  # nobody looks on any more
            for chunk in follow(self.log, self.over.is_set, pause=self.over.wait):
                self.output(chunk)

    def finish(self) -> None:
        """The log is complete: wait until it has been passed on, however long who looks on takes."""
        self.over.set()
        if self.ident is not None:
            self.join()


def follow(
    log: Path, over: Callable[[], bool], *, begin: int = 0, pause: Callable[[float], object] = time.sleep
) -> Iterator[bytes]:
    """The blocks of a growing log from byte `begin` on, until its end once it is `over`."""
    with log.open("rb") as file:
        file.seek(begin)
        while True:
            done = over()  # asked first: what was written before is read below
            if chunk := file.read(BLOCK):
                yield chunk
            elif done:
                return
            else:
                pause(LOOK_SECONDS)
