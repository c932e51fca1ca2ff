"""Two images, as `docker save` writes them -> the files in which they differ; pure.

A layer is known by its diff id, the sha256 of its tar: equal ids are equal bytes, of content, times, owners and modes.
Only where the ids differ, the files of the two layers are held against each other.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import tarfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from repro.errors import EnvironmentUnfitError
from repro.experiment import Value
from repro.images import causes

BLOCK = 1 << 18
JSON_LIMIT = 8 << 20  # bytes of a member that is read as JSON; what is larger is a layer
XATTR = "SCHILY.xattr."
KINDS = {
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.LNKTYPE: "hard link",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "pipe",
}
GZIP = b"\x1f\x8b"


class Entry(Value, frozen=True, kw_only=True):
    """All that a layer holds of one path."""

    kind: str
    mode: str
    owner: str
    time: float
    link: str
    content: str  # sha256
    size: int
    timeless: str  # sha256 of the content without the time in its header, where its format has one; else as `content`
    xattrs: dict[str, str]


class Layer(Value, frozen=True, kw_only=True):
    """One layer of an image."""

    diff_id: str
    made_by: str  # the instruction, as the image's history has it
    entries: dict[str, Entry]  # by path, in the order of the tar


class Difference(Value, frozen=True, kw_only=True):
    """A path that is not the same in both layers."""

    path: str
    what: dict[str, tuple[Any, Any]]  # what differs -> in the first, in the second; `there`: it is in one alone
    cause: str
    remedy: str


class LayerDifference(Value, frozen=True, kw_only=True):
    """Two layers in the same place that are not the same."""

    number: int  # from 1, the base's first layer
    made_by: str
    diff_ids: tuple[str, str]
    paths: int  # that the first has
    differences: tuple[Difference, ...]  # by path


# reading --------------------------------------------------------------------------------------------------------


def read(archive: Iterable[bytes], known: Collection[str] = ()) -> tuple[Layer, ...]:
    """The layers of an image archive, read once and from front to back, lowest first.

    Engines up to 24 write `<id>/layer.tar`, later ones the blobs of an OCI layout; both add a manifest.json.

    Args:
        archive: what `docker save` writes for one image, in pieces.
        known: diff ids whose files nobody will ask for; they are skipped where the archive names layers by them.

    Raises:
        EnvironmentUnfitError: it is of another form.
    """
    documents: dict[str, Any] = {}
    layers: dict[str, dict[str, Entry]] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Chunks(iter(archive))), mode="r|") as outer:
            for member in outer:
                if member.issym() or member.islnk():  # a layer that an image has twice
                    folder = posixpath.dirname(member.name) if member.issym() else ""
                    links[member.name] = posixpath.normpath(posixpath.join(folder, member.linkname))
                elif member.isfile() and f"sha256:{posixpath.basename(member.name)}" not in known:
                    stream = _peekable(outer, member)
                    if member.size < JSON_LIMIT and stream.peek(1)[:1] in (b"{", b"["):
                        documents[member.name] = json.load(stream)
                    elif member.name.endswith(".tar") or (member.name.startswith("blobs/") and not _is_zstd(stream)):
                        layers[member.name] = _entries(stream)
        (manifest,) = documents["manifest.json"]
        history = [step for step in documents[manifest["Config"]].get("history") or () if not step.get("empty_layer")]
        diff_ids = documents[manifest["Config"]]["rootfs"]["diff_ids"]
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        raise EnvironmentUnfitError(
            "the image that the engine sent cannot be read", evidence=[f"{type(error).__name__}: {error}"]
        ) from error
    found = []
    for number, (name, diff_id) in enumerate(zip(manifest["Layers"], diff_ids, strict=True)):
        made_by = history[number].get("created_by", "") if len(history) == len(diff_ids) else ""
        entries = layers.get(links.get(name, name))
        if entries is None and diff_id not in known:
            raise EnvironmentUnfitError(f"layer {number + 1} of the image that the engine sent cannot be read")
        found.append(Layer(diff_id=diff_id, made_by=made_by, entries=entries or {}))
    return tuple(found)


class _Chunks(io.RawIOBase):
    """Pieces of bytes, as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._chunks, b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _is_zstd(stream: io.BufferedReader) -> bool:
    return stream.peek(4)[:4] == b"\x28\xb5\x2f\xfd"


def _peekable(archive: tarfile.TarFile, member: tarfile.TarInfo) -> io.BufferedReader:
    stream = archive.extractfile(member)
    assert stream is not None  # noqa: S101 - it is a regular file
    return io.BufferedReader(stream)  # type: ignore[arg-type] # it has readinto


def _entries(stream: io.BufferedReader) -> dict[str, Entry]:
    """The paths of a layer, which some engines have compressed."""
    mode = "r|gz" if stream.peek(2)[:2] == GZIP else "r|"
    with tarfile.open(fileobj=stream, mode=mode) as layer:  # type: ignore[call-overload]
        return {posixpath.normpath(member.name): _entry(layer, member) for member in layer}


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    content, timeless = _digests(archive, member) if member.isreg() else ("", "")
    device = f"{member.devmajor}:{member.devminor}" if member.isdev() and not member.isfifo() else ""
    return Entry(
        kind="file" if member.isreg() else KINDS.get(member.type, repr(member.type)),
        mode=f"{member.mode & 0o7777:o}",
        owner=f"{member.uid}:{member.gid}",
        time=float(member.mtime),
        link=member.linkname or device,
        content=content,
        size=member.size if member.isreg() else 0,
        timeless=timeless,
        xattrs={key[len(XATTR) :]: value for key, value in member.pax_headers.items() if key.startswith(XATTR)},
    )


def _digests(archive: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[str, str]:
    whole, timeless = hashlib.sha256(), hashlib.sha256()
    stream = archive.extractfile(member)
    assert stream is not None  # noqa: S101 - it is a regular file
    block = stream.read(BLOCK)
    whole.update(block)
    timeless.update(_without_time(member.name, block))
    while block := stream.read(BLOCK):
        whole.update(block)
        timeless.update(block)
    return whole.hexdigest(), timeless.hexdigest()


def _without_time(name: str, begin: bytes) -> bytes:
    """The first bytes of a file, without the time that its format puts there."""
    if begin[:2] == GZIP:
        return begin[:4] + begin[8:]
    if name.endswith(".pyc"):  # magic number, flags, time and size of the source, or its hash
        return begin[:4] + begin[16:]
    return begin


# comparing ------------------------------------------------------------------------------------------------------


def compare(first: Sequence[Layer], second: Sequence[Layer]) -> tuple[LayerDifference, ...]:
    """The layers that differ, with the paths that do; layers are held against each other by their place."""
    found = []
    for number in range(max(len(first), len(second))):
        one = first[number] if number < len(first) else ABSENT
        other = second[number] if number < len(second) else ABSENT
        if one.diff_id != other.diff_id:
            found.append(
                LayerDifference(
                    number=number + 1,
                    made_by=one.made_by or other.made_by,
                    diff_ids=(one.diff_id, other.diff_id),
                    paths=len(one.entries),
                    differences=tuple(_differences(one, other)),
                )
            )
    return tuple(found)


ABSENT = Layer(diff_id="", made_by="", entries={})


def _differences(one: Layer, other: Layer) -> Iterator[Difference]:
    for path in sorted({*one.entries, *other.entries}):
        first, second = one.entries.get(path), other.entries.get(path)
        if first == second:
            continue
        what = _what(first, second)
        timeless = first is not None and second is not None and first.timeless == second.timeless
        cause = causes.of(path, frozenset(what), made_by=one.made_by or other.made_by, only_time_inside=timeless)
        yield Difference(path=path, what=what, cause=cause.text, remedy=cause.remedy)


def _what(first: Entry | None, second: Entry | None) -> dict[str, tuple[Any, Any]]:
    if first is None or second is None:
        return {"there": (first is not None, second is not None)}
    if first.kind != second.kind:
        return {"kind": (first.kind, second.kind)}
    names = [name for name in Entry.__struct_fields__ if name != "timeless"]
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
