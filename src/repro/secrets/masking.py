"""Secrets out of a stream of bytes: each occurrence becomes asterisks, as many as it has bytes."""

from __future__ import annotations

import base64
import re
import urllib.parse
from collections.abc import Iterable, Iterator

SHORTEST = 4  # bytes; what is shorter occurs everywhere, and is not masked
LINES = re.compile(rb"\r?\n|\\n")  # of a key in a JSON file, too
# of a .netrc, an .env, a JSON file: programs read these and print the part that they use
PART = re.compile(rb"""password\s+(\S{4,})|=\s*["']?([^\s"']{8,})|"([^\s"]{8,})\"""")
GLANCE = 16  # bytes that are compared first


class Masker:
    """Masks a stream in pieces, also what is split between two of them.

    What goes out has the same length as what came in, so that offsets into the one are offsets into the other. Masked
    are a value's lines, its parts where it is a file of several values, its base64 form wherever it begins in one
    (HTTP's `Basic`), and its form in URLs.
    """

    def __init__(self, values: Iterable[bytes]) -> None:
        found = {form for value in values for form in _forms(value)}
        self.patterns = sorted(form for form in found if len(form) >= SHORTEST)
        self._held = b""  # the end of what came in, which may be the beginning of a secret
        self._covered = 0  # bytes of it that are known to be part of one

    def feed(self, chunk: bytes) -> bytes:
        """The next piece, masked, without the end of it that the one after it decides about."""
        if not self.patterns:
            return chunk
        seen = self._held + chunk
        shown, spans = self._masked(seen)
        hold = self._hold(seen)
        ends = [end for begin, end in spans if begin < hold]
        self._covered = max(0, max([self._covered, *ends]) - hold)
        self._held = seen[hold:]
        return shown[:hold]

    def flush(self) -> bytes:
        """What was held back: nothing comes any more."""
        shown, _spans = self._masked(self._held)
        self._held, self._covered = b"", 0
        return shown

    def whole(self, text: bytes) -> bytes:
        """A text that is complete, masked."""
        return self.feed(text) + self.flush()

    def _masked(self, seen: bytes) -> tuple[bytes, list[tuple[int, int]]]:
        spans = [span for pattern in self.patterns for span in _occurrences(pattern, seen)]
        if not spans and not self._covered:
            return seen, spans
        shown = bytearray(seen)
        for begin, end in [(0, self._covered), *spans]:
            shown[begin:end] = b"*" * (end - begin)
        return bytes(shown), spans

    def _hold(self, seen: bytes) -> int:
        """Where the earliest secret begins that `seen` may hold the beginning of; its end, when there is none."""
        hold = len(seen)
        for pattern in self.patterns:
            at = seen.find(pattern[:1], max(0, len(seen) - len(pattern) + 1), hold)
            while at >= 0:
                rest = len(seen) - at
                if seen.startswith(pattern[: min(rest, GLANCE)], at) and seen.startswith(pattern[:rest], at):
                    hold = at
                    break
                at = seen.find(pattern[:1], at + 1, hold)
        return hold


def _occurrences(pattern: bytes, seen: bytes) -> Iterator[tuple[int, int]]:
    """Also those that overlap."""
    at = seen.find(pattern)
    while at >= 0:
        yield at, at + len(pattern)
        at = seen.find(pattern, at + 1)


def _forms(value: bytes) -> Iterator[bytes]:
    for line in LINES.split(value):
        yield line.strip()
    for found in PART.findall(value):
        yield next(filter(None, found))
    bare = value.strip()
    if len(bare) < SHORTEST:
        return
    yield urllib.parse.quote(bare, safe="").encode()
    for before in range(3):  # bytes before it in what is encoded; those of their digits that depend on others go
        padded = bytes(before) + bare
        digits = base64.b64encode(padded).rstrip(b"=")
        inner = digits[(before * 8 + 5) // 6 : len(padded) * 8 // 6]
        if len(inner) >= 2 * SHORTEST:
            yield from (inner, inner.translate(bytes.maketrans(b"+/", b"-_")))
