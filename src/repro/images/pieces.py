"""Large files in pieces: never a whole one in memory, and a word now and then on how far it is."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from repro.manifest import BLOCK

SAY_SECONDS = 1.0
Say = Callable[[str], None]


class Progress:
    """Says once a second how far it is."""

    def __init__(self, verb: str, total: int, say: Say) -> None:
        self.verb, self.total, self.say = verb, total, say
        self.done, self.spoken = 0, time.monotonic()

    def add(self, size: int) -> None:
        """So many bytes more."""
        self.done += size
        if time.monotonic() - self.spoken >= SAY_SECONDS:
            self.spoken = time.monotonic()
            self.say(f"{self.verb} {self.done / 1e6:.0f} MB of {max(self.total, self.done) / 1e6:.0f} MB")

    def through(self, source: IO[bytes]) -> Any:
        """`source`, with everything that is read from it counted."""
        return _Counted(source, self)


class _Counted:
    def __init__(self, source: IO[bytes], progress: Progress) -> None:
        self.source, self.progress = source, progress

    def read(self, size: int = -1) -> bytes:
        block = self.source.read(size)
        self.progress.add(len(block))
        return block

    def __iter__(self) -> Iterator[bytes]:
        """For an upload in pieces: the lines of binary files can be very long or very short."""
        while block := self.read(BLOCK):
            yield block


class Stream(io.RawIOBase):
    """Chunks as a file that can be read once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.rest = chunks, b""

    def read(self, size: int = -1) -> bytes:
        while not self.rest:
            found = next(self.chunks, None)
            if found is None:
                return b""
            self.rest = found
        block, self.rest = self.rest[:size], self.rest[size:]
        return block


def hashed(source: Any) -> str:
    """The sha256 of what is left of a file."""
    hasher = hashlib.sha256()
    while block := source.read(BLOCK):
        hasher.update(block)
    return hasher.hexdigest()
