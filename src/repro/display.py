"""Progress of steps on stderr: one line a step, its output folded below it while it lasts.

On a terminal the last lines of a running step are shown live and disappear when it is done; elsewhere a long step
says every ten seconds where it is; `verbose` streams everything.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from repro import printable
from repro.errors import ExitCode, ReproError

FOLD = 6  # lines shown below a running step
HEARTBEAT_SECONDS = 10.0
HEARTBEAT_WIDTH = 100  # characters
SIGPIPE_CODE = 141  # what a shell reports of `cat FILE | head`
LINE_LIMIT = 64 << 10  # bytes; a longer line is shown in parts
APPEAR_SECONDS = 0.4


class Display:
    """Where a command's steps, notices and errors go."""

    def __init__(self, *, verbose: bool = False, stream: TextIO | None = None) -> None:
        self.verbose = verbose
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty() and not verbose
        self.region: Any = None  # what the running step draws

    def line(self, text: str) -> None:
        """One line, now; above what a step has drawn. Whatever is in it, it does nothing else to the terminal."""
        text = printable.text(text)
        with suppress(OSError, ValueError):  # a terminal that has gone, `2>&1 | head`: no reason to end a run
            if self.region is None:
                print(text, file=self.stream, flush=True)
            else:
                self.region.console.print(text, markup=False, highlight=False, soft_wrap=True)

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
    def step(self, name: str, *, fold: bool = True) -> Iterator[Step]:
        """A step with a time: `step.say` for its progress, `step.detail` for its result.

        Without `fold` nothing is shown below it: for a step that draws on the terminal by itself.
        """
        step = Step(self, name, live=self.live and fold)
        try:
            yield step
        except BaseException as error:
            step.close("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        step.close(step.detail)


class Step:
    """One step of a command. Lines may come from another thread."""

    def __init__(self, display: Display, name: str, *, live: bool) -> None:
        self.display, self.name, self.live = display, name, live
        self.detail = "done"
        self.begun = self.spoken = time.monotonic()
        self.tail: deque[str] = deque(maxlen=FOLD)
        self.partial = b""
        self.lock = threading.Lock()
        self.closed = False
        # most steps are over before anybody could read of them, and drawing has to be imported first
        self.appearance = threading.Timer(APPEAR_SECONDS, self._appear)
        self.appearance.daemon = True
        if live:
            self.appearance.start()

    @property
    def seconds(self) -> float:
        """Since its beginning."""
        return time.monotonic() - self.begun

    def say(self, line: str) -> None:
        """One line of progress."""
        with self.lock:
            self.tail.append(line)
            if self.display.verbose:
                self.display.line(f"  | {line}")
            elif not self.live and time.monotonic() - self.spoken > HEARTBEAT_SECONDS:
                self.spoken = time.monotonic()
                self.display.line(f"{self.name:<10} {self.seconds:6.1f} s  {shorten(line)}")

    def output(self, chunk: bytes) -> None:
        """Raw output, in pieces that need not be lines. Of a line that is drawn over (a progress bar), the last."""
        *lines, self.partial = (self.partial + chunk).split(b"\n")
        for line in lines:
            self.say(_drawn_over(line))
        self.partial = self.partial[self.partial.rstrip(b"\r").rfind(b"\r") + 1 :]
        if len(self.partial) > LINE_LIMIT:
            self.say(_drawn_over(self.partial))
            self.partial = b""

    def close(self, detail: str) -> None:
        """The step is over; what was folded goes away."""
        if self.partial:
            self.output(b"\n")  # it is a line, whole or not
        self.appearance.cancel()
        with self.lock:
            self.closed = True
            if self.display.region is not None:
                with suppress(OSError, ValueError):  # the terminal has gone
                    self.display.region.stop()
                self.display.region = None
        self.display.line(f"{self.name:<10} {self.seconds:6.1f} s  {detail}")

    def _appear(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        spinner = Spinner("dots")
        with self.lock:
            if not self.closed:
                console = Console(file=self.display.stream)
                region = Live(
                    console=console,
                    transient=True,
                    refresh_per_second=8,
                    redirect_stdout=False,
                    redirect_stderr=False,
                    get_renderable=lambda: self._drawn(spinner),
                )
                region.start(refresh=True)
                self.display.region = region

    def _drawn(self, spinner: Any) -> Any:
        from rich.console import Group
        from rich.text import Text

        spinner.update(text=f"{self.name} {self.seconds:.0f} s")
        shown = [*self.tail, *([_drawn_over(self.partial)] if self.partial else [])][-FOLD:]
        lines = [Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in shown]
        return Group(spinner, *lines)


def _drawn_over(line: bytes) -> str:
    return printable.text(line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace"))


def shorten(line: str) -> str:
    """A line of another program's as a sign of life: pip, say, names a hundred packages in one."""
    return line if len(line) <= HEARTBEAT_WIDTH else f"{line[:HEARTBEAT_WIDTH].rstrip()} …"


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
    except BrokenPipeError:  # who reads our answer has seen enough: `repro logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains when it flushes at its end
        return SIGPIPE_CODE
