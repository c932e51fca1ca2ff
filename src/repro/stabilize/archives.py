"""zip, tar, gzip and what is made of them: members sorted by name, each as its own stabilizer has it."""

from __future__ import annotations

import fnmatch
import functools
import io
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from repro.stabilize import arrays, hdf5, pages, pictures, tensorflows, texts
from repro.stabilize.form import DEPTH, Allowance, Stabilizer, UnreadableError, attempt, digest, line, lines

LEAVES = (
    pictures.PNG,
    arrays.NPY,
    hdf5.H5,
    texts.JSON,
    texts.JSON_LINES,
    texts.CSV,
    texts.TSV,
    pages.HTML,
    tensorflows.SAVED_MODEL,
    tensorflows.FINGERPRINT,
    tensorflows.EVENTS,
)

KEPT_MODE = 0o7100  # of permissions: may it be executed, and by whose rights; what else there is comes from a umask
SIZES_FOLLOW = 8  # flag of a member of a zip
UNIX = 3  # the system that a zip's permissions are of
EXTRAS = {0x0001, 0x000A, 0x5455, 0x5855, 0x7855, 0x7875, 0xD935}  # in a zip: large sizes, times, owners, alignment
TAR_TIMES_AND_OWNERS = {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "LIBARCHIVE.creationtime"}
TAR_LAYOUT = {"size", "path", "linkpath", "SCHILY.dev", "SCHILY.ino", "SCHILY.nlink"}  # or read into the member already
KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "same as",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "pipe",
}
GZIP_CHECK, GZIP_EXTRA, GZIP_NAME, GZIP_COMMENT = 2, 4, 8, 16  # flags


class Inside:
    """The inside of an archive, and of those within: how much may still be unpacked of it all."""

    def __init__(self, allowance: Allowance | None = None, depth: int = 0) -> None:
        self.allowance, self.depth = allowance or Allowance(), depth

    def deeper(self) -> Inside:
        """The inside of an archive that lies in this one."""
        if self.depth >= DEPTH:
            raise UnreadableError("archives too deep within archives")
        return Inside(self.allowance, self.depth + 1)

    def member(self, name: str, content: bytes) -> dict[str, str]:
        """What a line says of the bytes of a member: their sha256, after which stabilizer."""
        stabilizer = fitting(name, self)
        found = attempt(stabilizer, content) if stabilizer else None
        if stabilizer is None or found is None:
            return {"sha256": digest(content)}
        return {"stabilizer": stabilizer.label, "sha256": digest(found)}


def fitting(name: str, within: Inside | None = None) -> Stabilizer | None:
    """The stabilizer of ours for a file of this name; `within`: the archive that it is a member of."""
    for leaf in LEAVES:
        if matches(name, leaf.patterns):
            return leaf
    for archive in ARCHIVES:
        if matches(name, archive.patterns):
            return archive.bound(name, within)
    return None


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns is that of a file's name."""
    return _expression(patterns).match(posixpath.basename(name).lower()) is not None


@functools.cache
def _expression(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(pattern.lower()) for pattern in patterns))


# zip -------------------------------------------------------------------------------------------------------------


def unpacked_zip(content: bytes, _name: str, inside: Inside) -> bytes:
    """A line for each member: name, kind, bytes."""
    return _zip(content, inside, inside.member)


def unpacked_keras(content: bytes, _name: str, inside: Inside) -> bytes:
    """As a zip, without the time of saving, and without the addresses by which Keras says which objects are one."""

    def member(name: str, raw: bytes) -> dict[str, str]:
        if name not in ("metadata.json", "config.json"):
            return inside.member(name, raw)
        document = texts.parsed(raw)
        if name == "metadata.json" and isinstance(document, dict):
            document.pop("date_saved", None)
        if name == "config.json":
            document = texts.renumbered(document, "shared_object_id")
        return {"stabilizer": "keras", "sha256": digest(texts.written(document))}

    return _zip(content, inside, member)


def _zip(content: bytes, inside: Inside, member: Callable[[str, bytes], dict[str, str]]) -> bytes:
    """All that a zip says, but for times and owners. One with something between its members is not vouched for."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos, remark, directory = archive.infolist(), archive.comment, archive.start_dir
    if len({info.filename for info in infos}) < len(infos):
        raise UnreadableError("two members of one name")
    end, count = len(content) - 22 - len(remark), min(len(infos), 0xFFFF).to_bytes(2, "little")
    last = b"PK\5\6" + bytes(4) + count + count, len(remark).to_bytes(2, "little")
    if (content[end : end + 12], content[end + 20 : end + 22]) != last:
        raise UnreadableError("something follows the end of the zip, or it is one of several")
    _check_directory(content, directory, end)
    place, told = 0, []
    for info in sorted(infos, key=lambda each: each.header_offset):
        raw, place = _packed(content, info, place)
        about = {"name": info.filename, "kind": _zip_kind(info)} | _remark(info.comment)
        if mode := info.external_attr >> 16 & KEPT_MODE:
            about["mode"] = oct(mode)
        inside.allowance.take(info.file_size)
        told.append(about | member(info.filename, _inflated(raw, info)))
    if place != directory:
        raise UnreadableError("something lies between the members of the zip")
    return line(_remark(remark)) + lines(sorted(told, key=lambda each: each["name"]))


def _check_directory(content: bytes, place: int, end: int) -> None:
    """Python reads over lengths that are wrong in the last entry; other readers do not."""
    while content.startswith(b"PK\1\2", place):
        place += 46 + sum(int.from_bytes(content[place + at : place + at + 2], "little") for at in (28, 30, 32))
    if place != end and not (place == end - 76 and content.startswith(b"PK\6\6", place)):  # there for large zips
        raise UnreadableError("a broken zip")


def _packed(content: bytes, info: zipfile.ZipInfo, place: int) -> tuple[memoryview, int]:
    """The packed bytes of a member that begins at a place, and where the next one begins: nothing is between them."""
    head = content[place : place + 30]
    if info.header_offset != place or head[:4] != b"PK\3\4" or info.orig_filename != info.filename or info.volume:
        raise UnreadableError("something lies between the members of the zip")
    name_size, extra_size = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
    begin = place + 30 + name_size + extra_size
    name, extra = content[place + 30 : begin - extra_size], content[begin - extra_size : begin]
    _check_extra(info.extra)
    _check_extra(extra)
    if not _agrees(head, name, extra, info):
        raise UnreadableError("the zip says two things of a member")
    end = begin + info.compress_size
    after = end + (len(_trailer(content, end, info)) if info.flag_bits & SIZES_FOLLOW else 0)
    return memoryview(content)[begin:end], after


def _agrees(head: bytes, name: bytes, extra: bytes, info: zipfile.ZipInfo) -> bool:
    """Whether what stands before a member is what the directory says of it: readers go by the one or by the other."""
    crc, packed, size = _facts(info, 4)
    if head[6:10] != info.flag_bits.to_bytes(2, "little") + info.compress_type.to_bytes(2, "little"):
        return False
    if name != info.filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437"):
        return False
    if info.flag_bits & SIZES_FOLLOW:
        return True
    _crc, long_packed, long_size = _facts(info, 8)
    elsewhere = extra == b"\1\0\x10\0" + long_size + long_packed and head[18:26] == b"\xff" * 8
    return head[14:18] == crc and (elsewhere or head[18:26] == packed + size)


def _trailer(content: bytes, place: int, info: zipfile.ZipInfo) -> bytes:
    """What follows a member of which the sizes were not known before."""
    for width in (4, 8):
        for mark in (b"PK\7\x08", b""):
            expected = mark + b"".join(_facts(info, width))
            if content.startswith(expected, place) and content[place + len(expected) : place + len(expected) + 3] in (
                b"PK\3",
                b"PK\1",
            ):
                return expected
    raise UnreadableError("the zip says two things of a member")


def _facts(info: zipfile.ZipInfo, width: int) -> tuple[bytes, bytes, bytes]:
    packed, size = (each.to_bytes(8, "little")[:width] for each in (info.compress_size, info.file_size))
    return info.CRC.to_bytes(4, "little"), packed, size


def _check_extra(extra: bytes) -> None:
    while extra:
        kind, size = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        if kind not in EXTRAS or len(extra) < 4 + size:
            raise UnreadableError("the zip says more of a member than is known here")
        extra = extra[4 + size :]


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    kind = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}.get(stat.S_IFMT(mode))
    if info.is_dir() and kind in ("file", "folder"):
        return "folder"
    if (
        info.is_dir()
        or kind in (None, "folder")
        or (info.create_system != UNIX and (kind == "link" or mode & KEPT_MODE))
    ):
        raise UnreadableError("a member of the zip is of an unknown kind")
    return str(kind)


def _inflated(raw: memoryview, info: zipfile.ZipInfo) -> bytes:
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnreadableError("a member of the zip is encrypted or packed in a rare way")
    if info.compress_type == zipfile.ZIP_STORED:
        found = bytes(raw)
    else:
        found, used = _inflate(raw, info.file_size)
        if used != len(raw):
            raise UnreadableError("something lies between the members of the zip")
    if len(found) != info.file_size or zlib.crc32(found) != info.CRC:
        raise UnreadableError("a broken zip")
    return found


def _inflate(raw: memoryview, most: int) -> tuple[bytes, int]:
    """What was packed, and how many bytes it was packed in; nothing beyond what is allowed is unpacked."""
    packer = zlib.decompressobj(-zlib.MAX_WBITS)
    found = packer.decompress(raw, most + 1)
    if not packer.eof or len(found) > most:
        raise UnreadableError("packed bytes that are broken, or more than they are said to be")
    return found, len(raw) - len(packer.unused_data)


def _remark(comment: bytes) -> dict[str, str]:
    return {"comment": comment.decode("utf-8", "surrogateescape")} if comment else {}


# tar -------------------------------------------------------------------------------------------------------------


def unpacked_tar(content: bytes, _name: str, inside: Inside) -> bytes:
    """A line for each member: name, kind, where a link leads, bytes."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        told = [_tar_member(archive, member, inside) for member in archive]
        if content[archive.offset :].strip(b"\0"):
            raise UnreadableError("a broken tar")
        common = _headers(archive.pax_headers)
    _check_paths(told)
    return line(common) + lines(sorted(told, key=lambda each: str(each["name"])))


def _tar_member(archive: tarfile.TarFile, member: tarfile.TarInfo, inside: Inside) -> dict[str, Any]:
    if member.type not in KINDS:
        raise UnreadableError("a member of the tar is of an unknown kind")
    told: dict[str, Any] = {"name": member.name, "kind": KINDS[member.type]} | _headers(member.pax_headers)
    if mode := member.mode & KEPT_MODE:
        told["mode"] = oct(mode)
    if member.issym() or member.islnk():
        return told | {"to": member.linkname}
    if member.ischr() or member.isblk():
        return told | {"device": [member.devmajor, member.devminor]}
    if told["kind"] != "file":
        return told
    inside.allowance.take(member.size)
    file = archive.extractfile(member)
    found = file.read() if file else b""
    if len(found) != member.size:
        raise UnreadableError("a broken tar")
    return told | inside.member(member.name, found)


def _headers(headers: Any) -> dict[str, Any]:
    dropped = TAR_TIMES_AND_OWNERS | TAR_LAYOUT
    kept = {key: text for key, text in headers.items() if key not in dropped and not key.startswith("GNU.sparse.")}
    return {"headers": kept} if kept else {}


def _check_paths(told: list[dict[str, Any]]) -> None:
    """In which order members are unpacked may matter only where no two of them have to do with one path."""
    paths = {posixpath.normpath(each["name"]): each["kind"] for each in told}
    if len(paths) < len(told):
        raise UnreadableError("two members of one name")
    for path in paths:
        above = posixpath.dirname(path)
        while above.strip("/"):
            if paths.get(above, "folder") != "folder":
                raise UnreadableError("a member lies below another that is no folder")
            above = posixpath.dirname(above)


# gzip ------------------------------------------------------------------------------------------------------------


def unpacked_gzip(content: bytes, name: str, inside: Inside) -> bytes:
    """What is packed, as its own stabilizer has it, and what was said of it but for times."""
    about, parts, place = [], list[bytes](), 0
    while place < len(content) or not parts:
        said, begin = _gzip_header(content, place)
        part, used = _inflate(memoryview(content)[begin:], inside.allowance.left)
        inside.allowance.take(len(part))
        end = begin + used
        check = zlib.crc32(part).to_bytes(4, "little") + (len(part) & 0xFFFFFFFF).to_bytes(4, "little")
        if content[end : end + 8] != check:
            raise UnreadableError("a broken gzip")
        about.append(said)
        parts.append(part)
        place = end + 8
    inner = name[:-4] + ".tar" if name.lower().endswith(".tgz") else name[:-3]
    return lines([[each for each in about if each], inside.member(inner, b"".join(parts))])


def _gzip_header(content: bytes, place: int) -> tuple[dict[str, str], int]:
    """Name, comment and further fields of a part, and where its packed bytes begin."""
    begin, head = place, content[place : place + 10]
    if len(head) < 10 or head[:3] != b"\x1f\x8b\x08" or head[3] & 0xE0:
        raise UnreadableError("no gzip")
    flags, said = head[3], dict[str, str]()
    place += 10
    if flags & GZIP_EXTRA:
        size = int.from_bytes(content[place : place + 2], "little")
        said["extra"] = content[place + 2 : place + 2 + size].hex()
        place += 2 + size
    for flag, what in ((GZIP_NAME, "name"), (GZIP_COMMENT, "comment")):
        if flags & flag:
            end = content.index(b"\0", place)
            said[what] = content[place:end].decode("latin-1")
            place = end + 1
    if flags & GZIP_CHECK:
        if content[place : place + 2] != (zlib.crc32(content[begin:place]) & 0xFFFF).to_bytes(2, "little"):
            raise UnreadableError("a broken gzip")
        place += 2
    return said, place


# the table -------------------------------------------------------------------------------------------------------


class _Archive(NamedTuple):
    """Which function unpacks which files; it is told the file's name, which says what is in a .gz."""

    name: str
    patterns: tuple[str, ...]
    unpack: Callable[[bytes, str, Inside], bytes]
    reason: str

    def bound(self, name: str, within: Inside | None) -> Stabilizer:
        """The stabilizer for one file."""

        def function(content: bytes) -> bytes:
            return self.unpack(content, name, within.deeper() if within else Inside())

        return Stabilizer(name=self.name, version=1, patterns=self.patterns, function=function, reason=self.reason)


AS_ITS_MEMBERS = "order, compression, times and owners of members do not belong to what is in them"
OF_SAVING = "as zip; and when it was saved, and where in memory an object was, do not belong to a model"
OF_PACKING = "the time in its header does not belong to what was packed"
ARCHIVES = (
    _Archive(name="keras-zip", patterns=("*.keras",), unpack=unpacked_keras, reason=OF_SAVING),
    _Archive(name="npz", patterns=("*.npz",), unpack=unpacked_zip, reason=AS_ITS_MEMBERS),
    _Archive(name="zip", patterns=("*.zip",), unpack=unpacked_zip, reason=AS_ITS_MEMBERS),
    _Archive(name="tar", patterns=("*.tar",), unpack=unpacked_tar, reason=AS_ITS_MEMBERS),
    _Archive(name="gzip", patterns=("*.gz", "*.tgz"), unpack=unpacked_gzip, reason=OF_PACKING),
)
