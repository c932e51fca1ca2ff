"""An image as one file: an OCI image layout in a tar, which every engine's `docker load` takes, too.

Its bytes are a function of the image alone: blobs are named by their sha256 and not compressed, entries are sorted and
have no times. So the same image gives the same file, whichever engine and image store it comes from.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import posixpath
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from repro.engines import imagefacts
from repro.engines.engine import Engine
from repro.engines.imagefacts import ImageFacts
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import Value
from repro.image import SPEC_LABEL
from repro.images.pieces import Progress, Say, Stream, hashed
from repro.manifest import BLOCK

BLOBS = "blobs/sha256/"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
JSON_LIMIT = 16 << 20  # bytes; of what is read into memory


class Blob(Value, frozen=True, kw_only=True):
    """Bytes on disk."""

    path: str
    sha256: str
    size: int


class Layout(Value, frozen=True, kw_only=True):
    """The files of an OCI image layout, by their names in it."""

    small: dict[str, bytes]
    large: dict[str, Blob]
    manifest: str  # digest
    layers: tuple[str, ...]  # diff ids


class Content(Value, frozen=True, kw_only=True):
    """What is in a file that was checked."""

    tag: str
    spec: str
    layers: tuple[str, ...]  # diff ids
    settings: str  # as in a record: sha256 over environment and entry point


# writing --------------------------------------------------------------------------------------------------------


def write(engine: Engine, image: ImageFacts, tag: str, path: Path, say: Say) -> int:
    """Write the image to `path`, which appears when it is whole; its size in bytes.

    Needs room for the image twice while it lasts, and no memory to speak of.

    Raises:
        EnvironmentUnfitError: the disk is full or cannot be written, or the engine's answer is damaged.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as name:
            layout = layout_of(engine, image, tag, Path(name), say)
            partial = Path(name) / "image.tar"
            with partial.open("wb") as out:
                _pack(out, layout, say)
                out.flush()
                os.fsync(out.fileno())
                size = out.tell()
            partial.replace(path)
    except OSError as error:
        raise EnvironmentUnfitError(
            f"{path} cannot be written",
            evidence=[str(error)],
            hints=[f"it needs {2 * image.size / 1e9:.1f} GB for a moment; `-o FILE` puts it on another disk"],
        ) from error
    return size


def layout_of(engine: Engine, image: ImageFacts, tag: str, folder: Path, say: Say) -> Layout:
    """The image as an OCI image layout, its blobs in `folder`.

    Raises:
        EnvironmentUnfitError: the engine's answer is damaged.
        OSError: the disk is full or cannot be written.
    """
    try:
        config, layers = _taken_apart(engine.save(image.id), image, folder, say)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise _engines_fault(f"the engine's archive of {tag} is damaged", str(error)) from error
    described = msgspec.json.decode(Path(config.path).read_bytes())
    platform = {"architecture": described["architecture"], "os": described["os"]}
    sizes = [(layer.sha256, layer.size) for layer in layers]
    manifest, files = _frame(tag, config.sha256, config.size, sizes, platform)
    return Layout(
        small=files | {BLOBS + _sha256(manifest): manifest},
        large={BLOBS + blob.sha256: blob for blob in (config, *layers)},
        manifest=f"sha256:{_sha256(manifest)}",
        layers=image.layers,
    )


def _taken_apart(chunks: Iterator[bytes], image: ImageFacts, folder: Path, say: Say) -> tuple[Blob, list[Blob]]:
    """Configuration and layers out of what `docker save` sends, in the form of any engine."""
    blobs: dict[str, Blob] = {}
    links: dict[str, str] = {}
    say(f"asking the engine for {image.size / 1e6:.0f} MB")  # which some collect first, without a sign of life
    progress = Progress("read", image.size, say)
    with tarfile.open(fileobj=Stream(chunks), mode="r|", bufsize=BLOCK) as archive:
        for member in archive:
            name = posixpath.normpath(member.name)
            if member.isfile():
                source = archive.extractfile(member)
                assert source is not None  # noqa: S101 - it is a file
                blobs[name] = _kept(source, folder / str(len(blobs)), progress)
            elif member.issym():  # engines before 25 store a layer that comes twice once
                links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            elif member.islnk():
                links[name] = posixpath.normpath(member.linkname)

    def found(name: str) -> Blob:
        name = posixpath.normpath(name)
        if links.get(name, name) not in blobs:
            raise _engines_fault(f"the engine's archive of {image.id} is damaged", f"no {name}")
        return blobs[links.get(name, name)]

    manifest = msgspec.json.decode(Path(found("manifest.json").path).read_bytes())[0]
    config = found(manifest["Config"])
    wanted = msgspec.json.decode(Path(config.path).read_bytes())["rootfs"]["diff_ids"]
    names = manifest["Layers"]
    if len(wanted) != len(names) or tuple(wanted) != image.layers:
        raise _engines_fault(f"the engine's archive of {image.id} has other layers than the image", ", ".join(wanted))
    plain: dict[str, Blob] = {}
    for diff_id, name in zip(wanted, names, strict=True):
        if diff_id not in plain:
            plain[diff_id] = _uncompressed(found(name), diff_id, folder, progress)
    return config, [plain[diff_id] for diff_id in wanted]


def _engines_fault(what: str, evidence: str) -> EnvironmentUnfitError:
    return EnvironmentUnfitError(
        what,
        evidence=[evidence],
        hints=["repeat the command; if it stays so, `repro rebuild --no-cache` makes the image anew"],
    )


def _uncompressed(blob: Blob, diff_id: str, folder: Path, progress: Progress) -> Blob:
    """A layer as the tar that its diff id is of: the containerd store has it as it came, mostly compressed."""
    if f"sha256:{blob.sha256}" == diff_id:
        return blob
    path = Path(blob.path)
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            raise EnvironmentUnfitError(
                f"layer {diff_id} is compressed in a way that cannot be read here (gzip can)",
                hints=["export it from an engine with the classic image store"],
            )
    with gzip.open(path, "rb") as source:
        made = _kept(source, folder / f"{path.name}.tar", progress)
    path.unlink()
    if f"sha256:{made.sha256}" != diff_id:
        raise _engines_fault(f"the engine's copy of layer {diff_id} is damaged", f"its sha256 is {made.sha256}")
    return made


def _pack(out: IO[bytes], layout: Layout, say: Say) -> None:
    small, large = layout.small, layout.large
    progress = Progress("wrote", sum(blob.size for blob in large.values()), say)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted({*small, *large}):
            entry = tarfile.TarInfo(name)
            if name in small:
                entry.size = len(small[name])
                archive.addfile(entry, io.BytesIO(small[name]))
                continue
            entry.size, path = large[name].size, Path(large[name].path)
            with path.open("rb") as source:
                archive.addfile(entry, progress.through(source))
            path.unlink()  # so that the image is never on the disk twice as a whole


def archived(sizes: Mapping[str, int], blocks: Callable[[str], Iterator[bytes]]) -> Iterator[bytes]:
    """The files of a layout as the tar that `docker load` takes, piece by piece."""
    for name in sorted(sizes):
        entry = tarfile.TarInfo(name)
        entry.size = sizes[name]
        yield entry.tobuf(tarfile.PAX_FORMAT)
        yield from blocks(name)
        yield bytes(-entry.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _frame(
    tag: str, config: str, config_size: int, layers: list[tuple[str, int]], platform: dict[str, str]
) -> tuple[bytes, dict[str, bytes]]:
    """The image's manifest, and the files that make a layout of blobs: for OCI's readers, and for old engines."""
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": f"sha256:{config}", "size": config_size},
            "layers": [{"mediaType": LAYER, "digest": f"sha256:{sha256}", "size": size} for sha256, size in layers],
        }
    )
    described = {
        "mediaType": MANIFEST,
        "digest": f"sha256:{_sha256(manifest)}",
        "size": len(manifest),
        "platform": platform,
        "annotations": {
            "io.containerd.image.name": _full(tag),
            "org.opencontainers.image.ref.name": tag.rpartition(":")[2],
        },
    }
    old = {"Config": BLOBS + config, "RepoTags": [tag], "Layers": [BLOBS + sha256 for sha256, _size in layers]}
    return manifest, {
        "index.json": _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described]}),
        "manifest.json": _json([old]),
        "oci-layout": LAYOUT,
    }


def _full(tag: str) -> str:
    """A tag as the containerd store writes it."""
    first, slash, _ = tag.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return tag
    return f"docker.io/{tag}" if slash else f"docker.io/library/{tag}"


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _kept(source: Any, path: Path, progress: Progress) -> Blob:
    hasher, size = hashlib.sha256(), 0
    with path.open("wb") as out:
        while block := source.read(BLOCK):
            hasher.update(block)
            out.write(block)
            size += len(block)
            progress.add(len(block))
    return Blob(path=str(path), sha256=hasher.hexdigest(), size=size)


# reading --------------------------------------------------------------------------------------------------------


def load(engine: Engine, path: Path, say: Say) -> tuple[ImageFacts, str, ImageFacts | None]:
    """Check a file that `write` wrote, and load it; the image, its tag, and what had that tag before.

    Nothing is loaded of a damaged file.

    Raises:
        BadInputError: the file cannot be read, or a byte of it is not as it was written.
        EnvironmentUnfitError: the engine cannot take it.
    """
    try:
        with path.open("rb") as file:
            content = check(file, path, say)
            file.seek(0)
            say(f"loading {content.tag}")
            loaded, before = put(engine, content, Progress("loaded", path.stat().st_size, say).through(file))
    except OSError as error:
        raise BadInputError(
            f"{path} cannot be read", evidence=[str(error)], hints=["give the file that `repro export-image` wrote"]
        ) from error
    return loaded, content.tag, before


def put(engine: Engine, content: Content, archive: Any) -> tuple[ImageFacts, ImageFacts | None]:
    """Load an archive that was checked; the image, and what had its tag before.

    Raises:
        EnvironmentUnfitError: the engine cannot take it, or holds something else afterwards.
    """
    before = engine.image(content.tag)
    engine.load(archive)
    loaded = engine.image(content.tag)
    if loaded is None or loaded.layers != content.layers or loaded.labels.get(SPEC_LABEL) != content.spec:
        raise EnvironmentUnfitError(
            f"the engine holds something else as {content.tag} than the file does",
            evidence=[f"label {SPEC_LABEL}: {loaded.labels.get(SPEC_LABEL, 'none')}" if loaded else "no such image"],
            hints=["repeat the command: another process may have moved the tag meanwhile"],
        )
    return loaded, before


def check(file: IO[bytes], path: Path, say: Say) -> Content:
    """What is in the file, after every blob was compared with the sha256 that is its name.

    Raises:
        BadInputError: naming the blob or the file inside that is not as it was written.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            return _checked(archive, path, say)
    except (tarfile.TarError, EOFError) as error:
        raise BadInputError(
            f"{path} is no image file, or it ends in the middle",
            evidence=[str(error)],
            hints=["copy it again, or export it again"],
        ) from error


def _checked(archive: tarfile.TarFile, path: Path, say: Say) -> Content:
    members: dict[str, tarfile.TarInfo] = {}
    progress = Progress("checked", path.stat().st_size, say)
    for member in archive:
        if not member.isfile() or member.name in members:
            raise _damaged(path, f"{member.name} does not belong there")
        members[member.name] = member
        if member.name.startswith(BLOBS):
            source = archive.extractfile(member)
            assert source is not None  # noqa: S101 - it is a file
            if hashed(progress.through(source)) != member.name.removeprefix(BLOBS):
                raise _damaged(
                    path, f"blob sha256:{member.name.removeprefix(BLOBS)} has other bytes than its name says"
                )

    def read(name: str) -> bytes:
        source = archive.extractfile(members[name])
        assert source is not None  # noqa: S101 - it is a file
        return source.read(JSON_LIMIT)

    return described({name: member.size for name, member in members.items()}, read, path)


def described(sizes: Mapping[str, int], read: Callable[[str], bytes], path: Path) -> Content:
    """What a layout says of its image, if it says what we write of these blobs and nothing else.

    Raises:
        BadInputError: it does not.
    """

    def present(name: str) -> bytes:
        if name not in sizes:
            raise _damaged(path, f"{name} is missing")
        return read(name)

    try:
        return _described(sizes, present, path)
    except (msgspec.MsgspecError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _damaged(path, f"its description of the image cannot be read ({error})") from error


def _described(sizes: Mapping[str, int], read: Callable[[str], bytes], path: Path) -> Content:
    described = msgspec.json.decode(read("index.json"))["manifests"][0]
    manifest = msgspec.json.decode(read(BLOBS + described["digest"].removeprefix("sha256:")))
    config_name = manifest["config"]["digest"].removeprefix("sha256:")
    config = msgspec.json.decode(read(BLOBS + config_name))
    layers = tuple(layer["digest"] for layer in manifest["layers"])
    spec = (config.get("config", {}).get("Labels") or {}).get(SPEC_LABEL, "")
    tag = msgspec.json.decode(read("manifest.json"))[0]["RepoTags"][0]
    if not spec or not tag.endswith(f":{spec[:16]}"):
        raise BadInputError(
            f"{path} holds no image of ours: {tag} has the label {SPEC_LABEL}={spec or 'none'}",
            hints=["`docker load` takes any image"],
        )
    if list(layers) != config["rootfs"]["diff_ids"]:
        raise _damaged(path, "its layers are not those of its image")
    # what remains is a function of the blobs and the tag: whatever it says besides was not written by us
    found = [(name.removeprefix("sha256:"), _size(sizes, name, path)) for name in layers]
    platform = {"architecture": config["architecture"], "os": config["os"]}
    own, files = _frame(tag, config_name, _size(sizes, config_name, path), found, platform)
    files[BLOBS + _sha256(own)] = own
    if wrong := sorted(name for name, content in files.items() if read(name) != content):
        raise _damaged(path, f"{', '.join(wrong)} is not as `repro export-image` writes it")
    given = config.get("config") or {}
    settings = imagefacts.settings(given.get("Env") or (), given.get("Entrypoint") or ())
    return Content(tag=tag, spec=spec, layers=layers, settings=settings)


def _size(sizes: Mapping[str, int], digest: str, path: Path) -> int:
    name = BLOBS + digest.removeprefix("sha256:")
    if name not in sizes:
        raise _damaged(path, f"blob sha256:{digest.removeprefix('sha256:')} is missing")
    return sizes[name]


def _damaged(path: Path, why: str) -> BadInputError:
    return BadInputError(
        f"{path} is damaged, and nothing of it was loaded: {why}", hints=["copy it again, or export it again"]
    )
