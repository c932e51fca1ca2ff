"""Each fault, done for real. Entering one is the strike; leaving it undoes what can be undone.

An act yields whether it struck: what is over already cannot be killed any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tests.faults.cases import Case
from tests.faults.stage import Stage, Terminal

KEEPER, PUBLISHER = "repro.keeper", "repro.tracking.publisher"
LOCKER = """
import sqlite3, sys, time
store = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
store.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


class Target:
    """The command that was given, and the terminal it was given on, if any."""

    def __init__(self, stage: Stage, case: Case, process: subprocess.Popen[bytes], terminal: Terminal | None) -> None:
        self.stage, self.case, self.process, self.terminal = stage, case, process, terminal
        self.killed = False  # the command: nothing can be expected of its exit code

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to the command alone; False: it is over."""
        if self.process.poll() is not None:
            return False
        self.process.send_signal(number)
        self.killed |= number == signal.SIGKILL
        return True

    def ctrl_c(self) -> bool:
        """SIGINT to the command and all that shares its terminal's foreground."""
        if self.process.poll() is not None:
            return False
        os.killpg(self.process.pid, signal.SIGINT)
        return True


@contextmanager
def _kill_command(target: Target) -> Iterator[bool]:
    yield target.signal(signal.SIGKILL)


@contextmanager
def _kill_keeper(target: Target) -> Iterator[bool]:
    yield target.stage.kill(KEEPER, seconds=_patience(target))


@contextmanager
def _kill_command_and_keeper(target: Target) -> Iterator[bool]:
    struck = target.signal(signal.SIGKILL)
    target.process.wait()
    target.stage.call("runs", "runs")  # takes it over, if it is not over
    time.sleep(target.case.lasts / 4)
    yield target.stage.kill(KEEPER, seconds=0) or struck


@contextmanager
def _kill_publisher(target: Target) -> Iterator[bool]:
    yield target.stage.kill(PUBLISHER, seconds=_patience(target))


@contextmanager
def _kill_both(target: Target) -> Iterator[bool]:
    if target.case.foreground:
        yield target.signal(signal.SIGKILL) | target.stage.kill(PUBLISHER, seconds=0)
    else:
        yield target.stage.kill(KEEPER, PUBLISHER, seconds=_patience(target))


def _patience(target: Target) -> float:
    """Seconds to wait for a process that a run in its middle will surely start."""
    return 15.0 if target.case.moment == "begun" else 0.0


@contextmanager
def _kill_engine(target: Target) -> Iterator[bool]:
    with _without_engine(target, target.stage.engine.kill):
        yield True


@contextmanager
def _restart_engine(target: Target) -> Iterator[bool]:
    with _without_engine(target, target.stage.engine.stop):
        yield True


@contextmanager
def _without_engine(target: Target, end: Callable[[], None]) -> Iterator[None]:
    begun = time.time()
    end()
    try:
        yield
    finally:
        target.stage.engine.start()
        target.stage.away = (begun, time.time())


@contextmanager
def _kill_command_and_engine(target: Target) -> Iterator[bool]:
    target.signal(signal.SIGKILL)
    with _kill_engine(target) as struck:
        yield struck


@contextmanager
def _freeze_engine(target: Target) -> Iterator[bool]:
    os.kill(target.stage.engine.pid, signal.SIGSTOP)
    try:
        yield True
    finally:
        os.kill(target.stage.engine.pid, signal.SIGCONT)


@contextmanager
def _pause_container(target: Target) -> Iterator[bool]:
    paused = _by_hand(target, lambda container: container.pause())
    yield paused
    if paused:
        _by_hand(target, lambda container: container.unpause())


@contextmanager
def _kill_container(target: Target) -> Iterator[bool]:
    yield _by_hand(target, lambda container: container.kill())


@contextmanager
def _remove_container(target: Target) -> Iterator[bool]:
    yield _by_hand(target, lambda container: container.remove(force=True))


def _by_hand(target: Target, order: Callable[[Any], None]) -> bool:
    import docker.errors

    struck = False
    for container in target.stage.containers():
        with contextlib.suppress(docker.errors.APIError):  # it is over
            order(container)
            struck = True
    return struck


@contextmanager
def _sigterm(target: Target) -> Iterator[bool]:
    yield target.signal(signal.SIGTERM)


@contextmanager
def _ctrl_c(target: Target) -> Iterator[bool]:
    yield target.ctrl_c()


@contextmanager
def _ctrl_c_twice(target: Target) -> Iterator[bool]:
    struck = target.ctrl_c()
    time.sleep(target.case.lasts / 5)
    target.ctrl_c()
    yield struck


@contextmanager
def _hang_up(target: Target) -> Iterator[bool]:
    assert target.terminal is not None
    struck = target.process.poll() is None
    target.terminal.close()
    yield struck


@contextmanager
def _restart_server(target: Target, number: signal.Signals = signal.SIGTERM) -> Iterator[bool]:
    target.stage.server.end(number)
    try:
        yield True
    finally:
        target.stage.server.start()


def _kill_server(target: Target) -> AbstractContextManager[bool]:
    return _restart_server(target, signal.SIGKILL)


@contextmanager
def _kill_publisher_and_server(target: Target) -> Iterator[bool]:
    struck = target.stage.kill(PUBLISHER, seconds=_patience(target))
    with _kill_server(target):
        yield struck


@contextmanager
def _lock_store(target: Target) -> Iterator[bool]:
    locker = subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(target.stage.project.store), str(2 * target.case.lasts)],
        stdout=subprocess.PIPE,
    )
    assert locker.stdout is not None
    struck = locker.stdout.readline() == b"locked\n"
    yield struck
    locker.stdout.close()
    locker.wait()


@contextmanager
def _fill_disk(target: Target) -> Iterator[bool]:
    filler = target.stage.small / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    yield True
    filler.unlink()


@contextmanager
def _stop(target: Target) -> Iterator[bool]:
    yield target.stage.call("stop", "stop") == 0


ACTS: dict[str, Callable[[Target], AbstractContextManager[bool]]] = {
    "kill-repro": _kill_command,
    "kill-detaching": _kill_command,
    "kill-keeper": _kill_keeper,
    "kill-repro-and-keeper": _kill_command_and_keeper,
    "kill-publisher": _kill_publisher,
    "kill-both": _kill_both,
    "kill-engine": _kill_engine,
    "restart-engine": _restart_engine,
    "freeze-engine": _freeze_engine,
    "pause-container": _pause_container,
    "sigterm": _sigterm,
    "ctrl-c": _ctrl_c,
    "ctrl-c-twice": _ctrl_c_twice,
    "hang-up": _hang_up,
    "server-restart": _restart_server,
    "server-kill": _kill_server,
    "store-locked": _lock_store,
    "disk-full": _fill_disk,
    "stop": _stop,
    "docker-kill": _kill_container,
    "docker-rm": _remove_container,
    "kill-repro-and-engine": _kill_command_and_engine,
    "kill-publisher-and-server": _kill_publisher_and_server,
}
