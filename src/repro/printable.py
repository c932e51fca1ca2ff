"""Text of a container's, a file's or another program's -> text that does nothing to a terminal."""

from __future__ import annotations

import re

# what terminals act upon: CSI and its like (colours, moves), strings up to their end (titles, clipboards), two bytes
SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)
# other controls, and what turns the order of letters round
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def text(raw: str) -> str:
    """Lines as they are, without escape sequences; other control characters become visible, as `\\x07`."""
    return CONTROL.sub(_visible, SEQUENCE.sub("", raw)) if _suspicious(raw) else raw


def line(raw: str) -> str:
    """A name, say, in one line: nothing of it is left out, whatever could act upon a terminal is visible."""
    return CONTROL.sub(_visible, raw).replace("\n", "\\n").replace("\t", "\\t")


def _suspicious(raw: str) -> bool:
    return CONTROL.search(raw) is not None


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
