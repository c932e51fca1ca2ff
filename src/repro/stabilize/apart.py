"""Stabilizing files of an experiment's, which may be made to do harm: in a process of its own, with an end to it."""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import socket
import subprocess
import sys
import time
from types import TracebackType
from typing import IO

from repro.record import Canonical
from repro.stabilize import registry

SECONDS, PACE = 10.0, 5e6  # for a file: so long, and a second more for each so many bytes
EACH = 0.01  # seconds that any file may take
PATIENCE = 60.0  # seconds that all files together may take longer than is usual for their sizes; then no more is read


class UnsettledError(Exception):
    """Time or memory were too little for a file, or it changed meanwhile: it may have a canonical digest, or none."""


class Apart:
    """Asks a process that starts with the first file it can be asked of, and goes with the `with` block."""

    def __init__(self) -> None:
        self.asked: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self.late = 0.0  # seconds
        self.used = False

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def trouble(self) -> str:
        """What to say of the stabilizers of other packages; "" when all is well."""
        return registry.trouble() if self.used else ""

    def wants(self, name: str, size: int) -> bool:
        """Whether a stabilizer is meant for it; the process starts at the first such file, and gets ready meanwhile."""
        stabilizer = registry.usable(name)
        if stabilizer is None or not 0 < size <= stabilizer.limit:
            return False
        if self.asked is None and self.late < PATIENCE:
            self.asked = _started()
        self.used = True
        return True

    def canonical(self, name: str, file: IO[bytes], sha256: str) -> Canonical | None:
        """Of an open file whose bytes have that sha256; None: no stabilizer is meant for it, or can read it.

        Raises:
            UnsettledError: nobody can tell.
        """
        size = os.fstat(file.fileno()).st_size
        if not self.wants(name, size):
            return None
        if self.late >= PATIENCE:
            raise UnsettledError(f"{name}: other files have taken too long")
        begun = time.monotonic()
        answer = self._answer(posixpath.basename(name), file, SECONDS + size / PACE)
        self.late += max(0.0, time.monotonic() - begun - EACH - size / PACE)
        if answer.get("read") != sha256:
            raise UnsettledError(f"{name}: reading it took too long or too much memory, or it has changed")
        if "sha256" not in answer:
            return None
        return Canonical(stabilizer=answer["stabilizer"], sha256=answer["sha256"])

    def _answer(self, name: str, file: IO[bytes], seconds: float) -> dict[str, str]:
        _process, asked = self.asked = self.asked or _started()
        file.seek(0)
        with contextlib.suppress(OSError, ValueError):
            asked.settimeout(seconds)
            socket.send_fds(asked, [os.fsencode(name)], [file.fileno()])
            if answer := asked.recv(1 << 16):
                found: dict[str, str] = json.loads(answer)
                return found
        self._end()  # it hangs, or has died: the next file gets another
        return {}

    def _end(self) -> None:
        if self.asked:
            process, asked = self.asked
            asked.close()
            process.kill()
            process.wait()
        self.asked = None


def _started() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "repro.stabilize.worker"],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # threads take addresses
            cwd="/",  # never where a file of the user's could pass for a module
            start_new_session=True,
        )
    return process, ours
