"""Runs that start and `repro prune`, kept apart: what a run has found must be there until its container holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from repro.errors import EnvironmentUnfitError
from repro.project import cache_folder

WAIT_SECONDS = 10.0


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Nothing is pruned meanwhile; any number of runs may start at once. A prune that goes on is waited for."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a cache that cannot be written is nobody else's either
            fcntl.flock(stack.enter_context(_opened()), fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def pruning() -> Iterator[None]:
    """No run starts meanwhile.

    Raises:
        EnvironmentUnfitError: one is being started, and takes its time.
    """
    give_up = time.monotonic() + WAIT_SECONDS
    with _opened() as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise EnvironmentUnfitError(
                        "a run is being started, and needs what would be looked at here",
                        evidence=[f"{_place()} is held"],
                        hints=["repeat the command when its container runs"],
                    ) from None
                time.sleep(0.1)
            else:
                break
        yield


@contextlib.contextmanager
def _opened() -> Iterator[int]:
    _place().parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(_place(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # which lets go of the lock


def _place() -> Path:
    return cache_folder() / "locks" / "prune.lock"
