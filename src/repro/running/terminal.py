"""The user's terminal, connected to an interactive container: what `docker run -it` does."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import tty
from typing import Any

from repro.engines.engine import Engine


def converse(engine: Engine, container: str, socket: Any) -> None:
    """Pass bytes both ways until the container ends; the terminal is restored whatever happens."""
    stdin = sys.stdin.fileno()
    interactive = os.isatty(stdin)
    before = termios.tcgetattr(stdin) if interactive else None

    def resized(_signal: int = 0, _frame: Any = None) -> None:
        columns, rows = shutil.get_terminal_size()
        engine.resize(container, rows, columns)

    previous = signal.signal(signal.SIGWINCH, resized)
    try:
        resized()
        if interactive:
            tty.setraw(stdin, termios.TCSADRAIN)  # what was typed ahead stays
        _copy(socket, stdin)
    finally:
        signal.signal(signal.SIGWINCH, previous)
        if before is not None:
            termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _copy(socket: Any, stdin: int) -> None:
    sources = [socket, stdin]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if socket in ready:
            received = socket.recv(1 << 16)
            if not received:
                return
            os.write(sys.stdout.fileno(), received)
        if stdin in ready:
            typed = os.read(stdin, 1 << 16)
            if typed:
                socket.sendall(typed)
            else:
                sources.remove(stdin)  # piped input is over; the shell reads its end as Ctrl-D
                socket.sendall(b"\x04")
