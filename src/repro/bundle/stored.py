"""A zip file whose every byte follows from the names and contents in it: nothing is compressed, no time, one order.

So the same contents give the same file, and a reader can tell of every byte whether it is as it was written; the zip
modules that there are do neither. What is written here they all read.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from repro.errors import BadInputError
from repro.experiment import Value
from repro.manifest import BLOCK

LOCAL, ENTRY, END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
END64, LOCATOR = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
UTF8 = 0x800
DATE = 1 << 5 | 1  # 1980-01-01, the first day that a zip knows
LARGE = 0xFFFFFFFF  # in a field of 32 bits: the number is in the field of 64 bits that follows
MANY = 0xFFFF
CRC_AT = 14  # in a local header
UNIX = 3 << 8
TABLE_LIMIT = 1 << 28  # bytes; of what is read into memory
NAME_LIMIT = 4096  # bytes
PROGRAMS = {"reproduce.sh"}  # that may be executed


class Member(Value, frozen=True, kw_only=True):
    """A file in the zip, or a folder, whose name ends with a slash."""

    name: str
    size: int
    crc: int


def header(member: Member) -> bytes:
    """What stands before a member's content."""
    name, large = member.name.encode(), member.size >= LARGE
    extra = struct.pack("<2H2Q", 1, 16, member.size, member.size) if large else b""
    size = LARGE if large else member.size
    version = 45 if large else 20
    fields = (version, UTF8, 0, 0, DATE, member.crc, size, size, len(name), len(extra))
    return LOCAL.pack(b"PK\3\4", *fields) + name + extra


def table(members: Sequence[Member]) -> bytes:
    """What stands after all contents: which members there are, and where."""
    lines, offset = [], 0
    for member in members:
        lines.append(_entry(member, offset))
        offset += len(header(member)) + member.size
    content = b"".join(lines)
    count, size = len(members), len(content)
    end64 = b""
    if count >= MANY or size >= LARGE or offset >= LARGE:
        end64 = END64.pack(b"PK\6\6", END64.size - 12, UNIX | 45, 45, 0, 0, count, count, size, offset)
        end64 += LOCATOR.pack(b"PK\6\7", 0, offset + size, 1)
    few = min(count, MANY)
    return content + end64 + END.pack(b"PK\5\6", 0, 0, few, few, min(size, LARGE), min(offset, LARGE), 0)


def _entry(member: Member, offset: int) -> bytes:
    name = member.name.encode()
    wide = [member.size, member.size] if member.size >= LARGE else []
    wide += [offset] if offset >= LARGE else []
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    version, size = 45 if wide else 20, min(member.size, LARGE)
    mode = 0o100755 if member.name in PROGRAMS else 0o040755 if member.name.endswith("/") else 0o100644
    fields = (UNIX | version, version, UTF8, 0, 0, DATE, member.crc, size, size, len(name), len(extra))
    return ENTRY.pack(b"PK\1\2", *fields, 0, 0, 0, mode << 16, min(offset, LARGE)) + name + extra


class Writer:
    """Writes members in the order of their names."""

    def __init__(self, out: IO[bytes]) -> None:
        self.out, self.members = out, list[Member]()

    def add(self, name: str, size: int, blocks: Iterable[bytes]) -> None:
        """A member of so many bytes; its name comes after those before it."""
        start, crc, written = self.out.tell(), 0, 0
        self.out.write(header(Member(name=name, size=size, crc=0)))
        for block in blocks:
            crc = zlib.crc32(block, crc)
            written += len(block)
            self.out.write(block)
        if written != size:
            raise ValueError(f"{name} has {written} bytes and was to have {size}")
        end = self.out.tell()
        self.out.seek(start + CRC_AT)
        self.out.write(struct.pack("<L", crc))
        self.out.seek(end)
        self.members.append(Member(name=name, size=size, crc=crc))

    def close(self) -> None:
        """Nothing comes after this."""
        self.out.write(table(self.members))


class Reader:
    """An open file that a `Writer` wrote. Its table of contents is right; contents are as they come."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        """
        Raises:
            BadInputError: the file is no bundle, or its table of contents is not as it was written.
        """
        self.file, self.path = file, path
        try:
            found = self._table()
        except (struct.error, UnicodeDecodeError, ValueError, OSError) as error:
            raise BadInputError(
                f"{path} is no bundle, or it ends in the middle",
                evidence=[str(error)],
                hints=["give the file that `repro export` wrote; copy it again"],
            ) from error
        self.members: dict[str, Member] = {}  # files
        self.folders: list[str] = []
        self.starts: dict[str, int] = {}
        offset = 0
        for member in found:
            if member.name.endswith("/"):
                self.folders.append(member.name)
            else:
                self.members[member.name] = member
            self.starts[member.name] = offset + len(header(member))
            offset = self.starts[member.name] + member.size

    def _table(self) -> list[Member]:
        length = self.file.seek(0, 2)
        end = END.unpack(self._at(length - END.size, END.size))
        count, size, offset = end[4], end[5], end[6]
        if count == MANY or LARGE in (size, offset):
            tail = self._at(length - END.size - LOCATOR.size - END64.size, END64.size)
            *_, count, size, offset = END64.unpack(tail)
        if length - offset > TABLE_LIMIT or not 0 <= length - offset - size < 1 << 10:
            raise ValueError("its last bytes do not say where its table of contents is")
        rest = self._at(offset, length - offset)
        members = list(_parsed(rest, count))
        names = [member.name.encode() for member in members]
        files = [member.name for member in members if not member.name.endswith("/")]
        others = [member for member in members if member.name.endswith("/")]
        if [member.name for member in others] != folders(files) or any(member.size or member.crc for member in others):
            raise ValueError("it has other folders than `repro export` makes")
        if names != sorted(set(names)) or table(members) != rest:
            raise ValueError("its table of contents is not as `repro export` writes it")
        return members

    def _at(self, offset: int, size: int) -> bytes:
        if offset < 0:
            raise ValueError("it is too short")
        self.file.seek(offset)
        return self.file.read(size)

    def framed(self, name: str) -> bool:
        """Whether what stands before a member's content is as it was written."""
        wanted = header(self.members.get(name) or Member(name=name, size=0, crc=0))
        return self._at(self.starts[name] - len(wanted), len(wanted)) == wanted

    def blocks(self, name: str) -> Iterator[bytes]:
        """A member's content."""
        place, left = self.starts[name], self.members[name].size
        while left:
            block = self._at(place, min(left, BLOCK))
            if not block:
                raise BadInputError(f"{self.path} ends in the middle of {name}", hints=["copy it again"])
            yield block
            place, left = place + len(block), left - len(block)

    def read(self, name: str) -> bytes:
        """A small member, whole."""
        if self.members[name].size > TABLE_LIMIT:
            raise BadInputError(f"{self.path}: {name} is larger than any that `repro export` writes")
        return b"".join(self.blocks(name))


def _parsed(content: bytes, count: int) -> Iterator[Member]:
    """Members from a table of contents; what they say besides is compared afterwards, with what it should be."""
    place = 0
    for _ in range(count):
        fields = ENTRY.unpack_from(content, place)
        crc, size, name_length, extra_length = fields[7], fields[9], fields[10], fields[11]
        place += ENTRY.size
        name = content[place : place + name_length].decode()
        place += name_length
        if size == LARGE:
            (size,) = struct.unpack_from("<Q", content, place + 4)
        place += extra_length
        yield Member(name=_safe(name), size=size, crc=crc)


def folders(names: Iterable[str]) -> list[str]:
    """The folders at the top of a bundle: those alone are in it by themselves, for readers of RO-Crates."""
    return sorted({f"{name.partition('/')[0]}/" for name in names if "/" in name})


def _safe(name: str) -> str:
    parts = name.removesuffix("/").split("/")
    if len(name.encode()) > NAME_LIMIT or "\0" in name or not set(parts).isdisjoint({"", ".", ".."}):
        raise ValueError(f"{name!r} is no name of a file inside a bundle")
    return name
