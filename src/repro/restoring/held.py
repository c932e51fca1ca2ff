"""The image of a run: on this engine by its id or with equal content, in its registry, in an archive, in its recipe."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from repro import lockfile, scratch
from repro.engines import registry
from repro.engines.engine import Engine
from repro.engines.imagefacts import ImageFacts
from repro.errors import ReproError
from repro.experiment import Experiment, Value
from repro.image import SPEC_LABEL
from repro.images import oci
from repro.images.pieces import Stream
from repro.manifest import BLOCK
from repro.project import Project
from repro.recipe.spec import ImageSpec
from repro.record import ImageUsed, RunFolder

ARCHIVE = "image.tar"  # as `repro export-image` writes it
LAYOUT = "image"  # the same, as a folder
HERE, REGISTRY, ARCHIVE_WORD, RECIPE = "this engine", "registry", "archive", "its recipe"  # begin the name of a place
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5"
Say = Callable[[str], None]


class Here(Value, frozen=True, kw_only=True):
    """An image on this engine that can stand for a recorded one."""

    image: ImageFacts
    how: str  # by which of its identities it was found
    remark: str = ""


def on_engine(used: ImageUsed, engine: Engine) -> Here | None:
    """The recorded image on an engine: by its id, else one with the same layers and configuration."""
    found = engine.image(used.id)
    if found is not None and _same_layers(used, found):
        return Here(image=found, how="by its id")
    for other in engine.images(f"{SPEC_LABEL}={used.spec}") if used.layers else ():
        if other.layers != used.layers or other.platform.split("/")[:2] != used.platform.split("/")[:2]:
            continue
        if used.config and other.config:
            if used.config == other.config:
                return Here(image=other, how="by its configuration and layers, under another id")
        elif not used.settings or used.settings == other.settings:
            return Here(
                image=other,
                how="by its layers, under another id",
                remark="" if used.settings else "the same layers; the record does not tell its settings",
            )
    return None


def _same_layers(used: ImageUsed, found: ImageFacts) -> bool:
    return not used.layers or found.layers == used.layers  # records of earlier versions list none


def archives(folder: RunFolder) -> list[Path]:
    """Where an imported run may have its image: a file, or the same as a folder."""
    return [place for place in (folder.archive / ARCHIVE, folder.archive / LAYOUT) if place.exists()]


def archive_damage(place: Path, used: ImageUsed, *, deep: bool = False) -> str | None:
    """What is wrong with an archived image; None when it is the recorded one. `deep` reads every byte."""
    try:
        with as_file(place) as path:
            if deep:
                with path.open("rb") as file:
                    layers = oci.check(file, path, lambda _line: None).layers
            else:
                layers = _archived_layers(path)
    except ReproError as error:
        return error.what
    except (OSError, tarfile.TarError, msgspec.MsgspecError, LookupError, TypeError) as error:
        return f"cannot be read: {error}"
    return None if not used.layers or layers == used.layers else "holds another image"


@contextlib.contextmanager
def as_file(place: Path) -> Iterator[Path]:
    """An archived image as one file, as `oci.load` takes it."""
    if place.is_file():
        yield place
        return
    with scratch.folder("repro-image-") as temporary:
        path = temporary / ARCHIVE
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for each in sorted(file for file in place.rglob("*") if file.is_file()):
                archive.add(each, each.relative_to(place).as_posix(), recursive=False)
        yield path


def _archived_layers(path: Path) -> tuple[str, ...]:
    """The layers that an archive says it has; its headers alone are read."""
    with tarfile.open(path, "r:") as archive:

        def read(name: str) -> Any:
            source = archive.extractfile(name)
            assert source is not None  # noqa: S101 - it is a file
            return msgspec.json.decode(source.read(oci.JSON_LIMIT))

        described = read("index.json")["manifests"][0]["digest"]
        manifest = read(oci.BLOBS + described.removeprefix("sha256:"))
        names = set(archive.getnames())
        layers = tuple(layer["digest"] for layer in manifest["layers"])
        if missing := [each for each in layers if oci.BLOBS + each.removeprefix("sha256:") not in names]:
            raise LookupError(f"layer {missing[0]} is missing")
        return layers


def in_registry(used: ImageUsed, engine: Engine) -> tuple[bool, str]:
    """Whether the registry still has the recorded repo digest, asked now; else why not."""
    if used.digest is None:
        return False, "never pushed: no registry has it"
    try:
        answer = registry.look(engine, used.digest)
    except ReproError as error:
        return False, error.what
    wanted = used.digest.partition("@")[2]
    return answer == wanted, "" if answer == wanted else f"{used.digest}: the registry answers {answer}"


def recipe(used: ImageUsed, experiment: Experiment, code: Path) -> tuple[ImageSpec | None, str]:
    """The recipe of the image in the code of the run, where it still is the recorded one; else why not."""
    try:
        spec, stale = lockfile.read_spec(Project(code), experiment.image, experiment.build)
    except ReproError as error:
        return None, f"its recipe is not whole in the code of the run: {' '.join([error.what, *error.evidence])}"
    if spec.digest == used.spec:
        return spec, ""
    why = f" ({stale[0]})" if stale else ""
    return (
        None,
        f"the recipe in the code of the run has another hash now: {spec.digest[:16]}, not {used.spec[:16]}{why}",
    )


def damaged_layers(engine: Engine, image: ImageFacts) -> tuple[str, ...]:
    """The layers of an image whose bytes, as the engine gives them out, are not those of their diff ids."""
    found: set[str] = set()
    unread = 0
    with tarfile.open(fileobj=Stream(engine.save(image.id)), mode="r|", bufsize=BLOCK) as archive:
        for member in archive:
            source = archive.extractfile(member) if member.isfile() else None
            if source is not None:
                begin = source.read(2)
                unread += begin == ZSTD
                found.add(_plain_sha256(begin, source))
    missing = tuple(layer for layer in image.layers if layer not in found)
    return missing if len(missing) > unread else ()  # what is compressed as we cannot unpack it may be any of them


def _plain_sha256(begin: bytes, source: IO[bytes]) -> str:
    """Of a stream whose first bytes were read, or of what it unpacks to."""
    hasher, whole = hashlib.sha256(), _Rest(begin, source)
    stream: IO[bytes] = gzip.GzipFile(fileobj=whole) if begin == GZIP else whole  # type: ignore[assignment]
    while block := stream.read(BLOCK):
        hasher.update(block)
    return f"sha256:{hasher.hexdigest()}"


class _Rest(io.RawIOBase):
    """A stream with its first bytes put back."""

    def __init__(self, begin: bytes, source: IO[bytes]) -> None:
        self.begin, self.source = begin, source

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most `size`."""
        if self.begin:
            found, self.begin = self.begin, b""
            return found
        return self.source.read(size)
