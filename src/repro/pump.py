"""A container's output -> its log, whole, and from there to whoever looks on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repro.engine import Engine
from repro.errors import EnvironmentUnfitError
from repro.refusal import ContainerGoneError

BLOCK = 1 << 16  # bytes
LOOK_SECONDS = 0.1
STALLED_SECONDS = 10.0
MISSED_BYTES = 16 << 10


class Pump(threading.Thread):
    """Copies the container's output to its log, also through a restart of the engine."""

    def __init__(self, engine: Engine, container: str, log: Path) -> None:
        super().__init__(daemon=True, name="container output")
        self.engine, self.container, self.log = engine, container, log
        self.delivered = 0
        self.disk_error = ""
        self.missed = b""  # the last of what the log has no room for
        self.over = threading.Event()

    def run(self) -> None:
        """Until the container's output ends for good, or nobody wants it any more."""
        with self.log.open("wb", buffering=0) as log:
            while not self._copy(log) and not self.over.wait(0.5):
                pass

    def _copy(self, log: Any) -> bool:
        """Everything that the engine has and will have of the output; False when it went away in between."""
        try:
            self._pass(log, follow=True)
            # an engine that is killed ends its streams like one that is done
            if self.engine.exit(self.container) is None:
                return False
            # engines stop following when the container ends, and may have sent half of what it printed last
            self._pass(log, follow=False)
        except ContainerGoneError:
            return True
        except EnvironmentUnfitError:
            return False
        return True

    def _pass(self, log: Any, *, follow: bool) -> None:
        """One stream from the container's first byte on, without those delivered before."""
        skip = self.delivered
        for chunk in self.engine.output(self.container, follow=follow):
            fresh = chunk[skip:]
            skip = max(0, skip - len(chunk))
            self.delivered += len(fresh)
            if fresh:
                self._write(log, fresh)
            if self.over.is_set():  # given up
                return

    def _write(self, log: Any, chunk: bytes) -> None:
        try:
            log.write(chunk)
        except OSError as error:  # a full disk must not stop the run
            self.disk_error = str(error)
            self.missed = (self.missed + chunk)[-MISSED_BYTES:]

    def give_up(self) -> None:
        """Whoever had the output has gone: what is there is all."""
        self.over.set()

    def finish(self) -> bool:
        """The container is over: let what it printed last arrive. False: the engine holds some of it back."""
        if self.ident is None:  # interrupted before it began
            self.start()
        before = -1
        while self.is_alive() and before != self.delivered:
            before = self.delivered
            self.join(timeout=STALLED_SECONDS)
        self.over.set()
        return not self.is_alive()


class Echo(threading.Thread):
    """Passes a growing log on, in blocks. Who looks on may be slow, or go away: the log does not wait for them."""

    def __init__(self, log: Path, output: Callable[[bytes], None]) -> None:
        super().__init__(daemon=True, name="echo of the output")
        log.touch()
        self.log, self.output = log, output
        self.over = threading.Event()

    def run(self) -> None:
        """Until the end of the log, once it is over."""
        try:
            with self.log.open("rb") as log:
                while True:
                    over = self.over.is_set()  # asked first: what was written before is read below
                    if chunk := log.read(BLOCK):
                        self.output(chunk)
                    elif over:
                        return
                    else:
                        self.over.wait(LOOK_SECONDS)
        except (OSError, ValueError):  # nobody looks on any more
            return

    def finish(self) -> None:
        """The log is complete: wait until it has been passed on, however long who looks on takes."""
        self.over.set()
        if self.ident is not None:
            self.join()
