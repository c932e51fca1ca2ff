"""HTML: as it is written, but for the pictures inside it."""

from __future__ import annotations

import base64
import binascii
import re

from repro.stabilize.form import TEXT_LIMIT, Stabilizer, UnreadableError, attempt, digest, lines
from repro.stabilize.pictures import PNG

EMBEDDED = re.compile(rb"(src=[\"']?)data:image/png;base64,([A-Za-z0-9+/]+={0,2})(?=[\"'\s>])")


def page(content: bytes) -> bytes:
    """Text between the embedded pictures byte for byte, these as `png-pixels` has them; ends of line as in HTML.

    Spaces and the order of attributes stay: whether they matter is for a browser and the page's own scripts to say.
    """
    if b"\0" in content:
        raise UnreadableError("not in an encoding that contains ASCII")
    parts: list[list[str]] = []
    place = 0
    for match in EMBEDDED.finditer(content):
        picture = _picture(match[2])
        if picture is None:  # stays text
            continue
        parts += [["text", _text(content[place : match.end(1)])], [PNG.label, digest(picture)]]
        place = match.end()
    return lines([*parts, ["text", _text(content[place:])]])


def _picture(encoded: bytes) -> bytes | None:
    try:
        return attempt(PNG, base64.b64decode(encoded, validate=True))
    except binascii.Error:
        return None


def _text(content: bytes) -> str:
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").decode("utf-8", "surrogateescape")


HTML = Stabilizer(
    name="html",
    version=1,
    patterns=("*.html", "*.htm"),
    function=page,
    reason="as png-pixels, of the pictures inside it",
    limit=TEXT_LIMIT,
)
