"""PNG: the pixels, and what decides how they look."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from repro.stabilize.form import Stabilizer, UnreadableError, digest, lines

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = 64 << 20  # in one picture; Pillow warns from some more on
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
EXACT = {(0, depth) for depth in (1, 2, 4, 8, 16)} | {(3, depth) for depth in (1, 2, 4, 8)} | {(2, 8), (4, 8), (6, 8)}
MOVING = {b"acTL", b"fcTL", b"fdAT"}
TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
OF_THE_WRITER = {b"Software", b"Creation Time", b"date:create", b"date:modify", b"date:timestamp"}  # keywords of texts


def pixels(content: bytes) -> bytes:
    """Size, kind and values of the pixels, and all else that is in the file but for times and the writer's name.

    Palette, transparency, gamma, colour profile, resolution and texts stay. How it was compressed is left out.
    """
    chunks = list(_chunks(content))
    header, rest = _header(chunks), chunks[1:-1]
    width, height, depth, colour = header[:4]
    if (colour, depth) not in EXACT:  # Pillow would halve 16 bits
        raise UnreadableError(f"colour type {colour} with {depth} bits")
    if not 0 < width * height * CHANNELS[colour] <= PIXELS:
        raise UnreadableError("too many pixels")
    others = [(kind, data) for kind, data in rest if kind != b"IDAT" and not _is_of_the_writer(kind, data)]
    for kind, _data in others:
        if kind in MOVING or (kind != b"PLTE" and not kind[0] & 0x20):
            raise UnreadableError("a moving picture, or of a later standard")
    _check_packed(b"".join(data for kind, data in rest if kind == b"IDAT"), header)
    mode, values = _decoded([chunks[0], *((kind, data) for kind, data in rest if kind in (b"PLTE", b"IDAT"))])
    shape = {"width": width, "height": height, "depth": depth, "colour": colour, "mode": mode}
    return lines([shape | {"pixels": digest(values)}, *([kind.decode("ascii"), digest(data)] for kind, data in others)])


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The parts of a PNG, each with its name; a broken one is none."""
    if not content.startswith(SIGNATURE):
        raise UnreadableError("no PNG")
    place = len(SIGNATURE)
    while place < len(content):
        head = content[place : place + 8]
        if len(head) < 8 or not head[4:].isalpha():
            raise UnreadableError("a broken PNG")
        size = int.from_bytes(head[:4], "big")
        data, check = content[place + 8 : place + 8 + size], content[place + 8 + size : place + 12 + size]
        if len(check) < 4 or zlib.crc32(head[4:] + data) != int.from_bytes(check, "big"):
            raise UnreadableError("a broken PNG")
        yield head[4:], data
        place += 12 + size


def _header(chunks: list[tuple[bytes, bytes]]) -> tuple[int, ...]:
    kinds = [kind for kind, _data in chunks]
    if len(kinds) < 3 or (kinds[0], kinds[-1]) != (b"IHDR", b"IEND") or len(chunks[0][1]) != 13 or chunks[-1][1]:
        raise UnreadableError("a broken PNG")
    if any(kinds.count(kind) > 1 for kind in (b"IHDR", b"IEND", b"PLTE")):
        raise UnreadableError("a broken PNG")
    return struct.unpack(">IIBBBBB", chunks[0][1])


def _check_packed(packed: bytes, header: tuple[int, ...]) -> None:
    """Some readers forgive a wrong checksum, or too much, and some do not: such a file is not as a sound one."""
    width, height, depth, colour, _method, _filter, interlaced = header
    row = (width * depth * CHANNELS[colour] + 7) // 8 + 1
    most = row * height + (16 * height + 64 if interlaced else 0)  # passes have rows of their own
    unpacker = zlib.decompressobj()
    found = unpacker.decompress(packed, most + 1)
    if not unpacker.eof or unpacker.unused_data or len(found) > most or (len(found) < most and not interlaced):
        raise UnreadableError("a broken PNG")


def _is_of_the_writer(kind: bytes, data: bytes) -> bool:
    return kind == b"tIME" or (kind in TEXTS and data.partition(b"\0")[0] in OF_THE_WRITER)


def _decoded(chunks: list[tuple[bytes, bytes]]) -> tuple[str, bytes]:
    """Pillow's word for the kind of pixels, and these; of what else was in the file it gets nothing."""
    from PIL import Image

    picture = io.BytesIO()
    picture.write(SIGNATURE)
    for kind, data in [*chunks, (b"IEND", b"")]:
        picture.write(len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big"))
    picture.seek(0)
    with Image.open(picture, formats=("PNG",)) as image:
        return image.mode, image.tobytes()


PNG = Stabilizer(
    name="png-pixels",
    version=1,
    patterns=("*.png",),
    function=pixels,
    reason="how a picture was compressed, when, and by which software is not to be seen in it",
)
