"""Progress of steps on stderr: one line a step, its output folded below it while it lasts.

On a terminal the last lines of a running step are shown live and disappear when it is done; elsewhere a long step
says every ten seconds where it is; `verbose` streams everything.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from repro.errors import ExitCode, ReproError

FOLD = 6  # lines shown below a running step
HEARTBEAT_SECONDS = 10.0


class Display:
    """Where a command's steps, notices and errors go."""

    def __init__(self, *, verbose: bool = False, stream: TextIO | None = None) -> None:
        self.verbose = verbose
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty() and not verbose

    def line(self, text: str) -> None:
        """One line, now."""
        print(text, file=self.stream, flush=True)

    def notice(self, text: str) -> None:
        """Something that the user should not miss."""
        self.line(f"note: {text}")

    def notice_hints(self, hints: Iterable[str]) -> None:
        """What to try, below a notice."""
        for hint in hints:
            self.line(f"  try  {hint}")

    def error(self, error: ReproError) -> None:
        """What failed, the evidence, what to try."""
        self.line(f"repro: {error}")

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """A step with a time: `step.say` for its progress, `step.detail` for its result."""
        step = Step(self, name)
        try:
            yield step
        except BaseException:
            step.close("failed")
            raise
        step.close(step.detail)


class Step:
    """One step of a command. Lines may come from another thread."""

    def __init__(self, display: Display, name: str) -> None:
        self.display, self.name = display, name
        self.detail = "done"
        self.begun = self.spoken = time.monotonic()
        self.tail: deque[str] = deque(maxlen=FOLD)
        self.partial = b""
        self.lock = threading.Lock()
        self.region: Any = None

    def say(self, line: str) -> None:
        """One line of progress."""
        with self.lock:
            self.tail.append(line)
            if self.display.verbose:
                self.display.line(f"  | {line}")
            elif self.display.live:
                self._refresh()
            elif time.monotonic() - self.spoken > HEARTBEAT_SECONDS:
                self.spoken = time.monotonic()
                self.display.line(f"{self.name:<10} {self.spoken - self.begun:6.1f} s  {line}")

    def output(self, chunk: bytes) -> None:
        """Raw output, in pieces that need not be lines."""
        *lines, self.partial = (self.partial + chunk).split(b"\n")
        for line in lines:
            self.say(line.decode(errors="replace").rstrip("\r"))

    def close(self, detail: str) -> None:
        """The step is over; what was folded goes away."""
        if self.partial:
            self.output(b"\n")
        if self.region is not None:
            self.region.stop()
        self.display.line(f"{self.name:<10} {time.monotonic() - self.begun:6.1f} s  {detail}")

    def _refresh(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        if self.region is None:
            console = Console(file=self.display.stream)
            self.region = Live(console=console, transient=True, refresh_per_second=8, redirect_stdout=False)
            self.region.start()
        lines = [Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in self.tail]
        self.region.update(Group(Spinner("dots", f"{self.name} {time.monotonic() - self.begun:.0f} s"), *lines))


def guarded(display: Display, action: Callable[[], int]) -> int:
    """The exit code of `action`; a user's error is printed, a bug of ours keeps its traceback."""
    try:
        return int(action())
    except ReproError as error:
        display.error(error)
        return int(error.exit_code)
    except KeyboardInterrupt:
        display.line("repro: interrupted")
        return int(ExitCode.INTERRUPTED)
