"""What a stabilizer is, and the form in which it gives its answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

LIMIT = 512 << 20  # bytes of a file, and of what is unpacked from it: larger ones are compared as they are
TEXT_LIMIT = 8 << 20  # of a file that is read word for word, which is slow
DEPTH = 6  # archives within archives

NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)?(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{1,18}))?")


class UnreadableError(ValueError):
    """A file is not what its name says, or is more than a stabilizer can vouch for: it stays as it is."""


class Stabilizer(NamedTuple):  # no Value: the process that reads outputs has to start fast, and msgspec takes its time
    """A pure function, and for which files it is meant. What it gives may depend on nothing but the bytes it gets.

    Whoever changes what it gives for any file raises its version. Of a file that it cannot read it raises a
    ValueError.
    """

    name: str  # letters, digits, `_ . -`
    version: int  # 1 and up
    patterns: tuple[str, ...]  # of file names without folders, as in a shell; small and capital letters are alike
    function: Callable[[bytes], bytes]
    reason: str  # why what it takes out does not belong to the result
    limit: int = LIMIT  # bytes; of a larger file it is not asked

    @property
    def label(self) -> str:
        """name@version, as records have it."""
        return f"{self.name}@{self.version}"


class Allowance:
    """How many bytes may still be unpacked from one file, all that is nested in it together."""

    def __init__(self, count: int = LIMIT) -> None:
        self.left = count

    def take(self, count: int) -> None:
        """Use up some of it.

        Raises:
            UnreadableError: there is not that much left.
        """
        if not 0 <= count <= self.left:
            raise UnreadableError("unpacked, it is too large")
        self.left -= count


def attempt(stabilizer: Stabilizer, content: bytes) -> bytes | None:
    """What a stabilizer makes of a file; None: it cannot read this one."""
    if len(content) > stabilizer.limit:
        return None
    try:
        found = stabilizer.function(content)
    except MemoryError:  # says nothing of the file: elsewhere it may be readable
        raise
    except Exception:  # noqa: BLE001 - libraries raise of everything at what an experiment may have made on purpose
        return None
    return found if isinstance(found, bytes) else None


def digest(content: Any) -> str:
    """The sha256 of bytes, or of what holds some."""
    return hashlib.sha256(content).hexdigest()


def lines(items: Iterable[Any]) -> bytes:
    """One JSON value a line, with sorted keys and nothing but ASCII: for any two lists the same only if they are."""
    return b"".join(line(item) for item in items)


def line(item: Any) -> bytes:
    """A JSON value and the end of its line."""
    return json.dumps(item, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def decimal(text: str) -> str | None:
    """The exact value of a number with a point or an exponent: `1.50` and `15E-1` are `15e-1`; None: it is none.

    Nothing is rounded, so what differs in the last digit of a thousand differs. Zero keeps its sign.
    """
    match = NUMBER.fullmatch(text)
    if not match or (match[3] is None and match[4] is None):
        return None
    sign, whole, fraction = match[1], match[2] or "", match[3] or ""
    if not whole + fraction:
        return None
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return f"{sign}0e0"
    significant = digits.rstrip("0")
    exponent = int(match[4] or "0") - len(fraction) + len(digits) - len(significant)
    return f"{sign}{significant}e{exponent}"
