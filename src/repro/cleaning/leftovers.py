"""What runs, builds and fetches left behind -> what of it can go. Nothing is removed here."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from repro.cleaning import pins
from repro.cleaning.housekeeping import Removal, Row
from repro.engines import probe
from repro.engines.answers import ContainerFacts
from repro.engines.engine import Engine
from repro.engines.imagefacts import ImageFacts
from repro.errors import ReproError
from repro.image import USER_LABEL
from repro.project import Project, cache_folder
from repro.recipe import base as bases
from repro.record import RunFolder
from repro.running.plan import RUN_LABEL

PIN_TAG = "repro-pin:"  # for builds on what repro.lock names by id
MINUTES = 60.0
DAY = 86400.0
STARTING = 10 * MINUTES  # a container that was created for so long is not being started any more
EXPORT_AGE = 7 * DAY
LOG_AGE = 30 * DAY
EXPORT = re.compile(r"[0-9a-f]{40,64}(-[0-9a-f]{8})?")
DOWNLOAD = re.compile(r"[0-9a-f]{64}\.(part|[0-9a-f]{8})")


def containers(found: Iterable[ContainerFacts], *, user: str, now: float) -> list[Removal]:
    """Our containers that no run needs any more: never a running one, and nobody else's."""
    removals = []
    for each in found:
        if probe.LABEL in each.labels and now - each.created > STARTING:  # of a process that was killed
            why = "it looked into an image, and nobody waits for it"
            removals.append(removal(each, why))
        if not is_ours(each, user):
            continue
        if why := _over(each, now):
            removals.append(removal(each, why))
    return removals


def is_ours(container: ContainerFacts, user: str) -> bool:
    """Whether a container is one of a run of this user's."""
    return container.labels.keys() >= {RUN_LABEL, "repro.folder"} and container.labels.get(USER_LABEL, user) == user


def removal(container: ContainerFacts, why: str) -> Removal:
    """The removal of a container."""
    return Removal(kind="container", name=container.name, id=container.id, size=0, loses=why)


def _over(container: ContainerFacts, now: float) -> str:
    """Why a container is left over; "" when it may still be needed."""
    age = now - container.created
    if container.state == "created":
        return "it was never started" if age > STARTING else ""
    if container.state not in ("exited", "dead", "stopped"):
        return ""
    folder = RunFolder(Path(container.labels["repro.folder"]))
    try:
        record = folder.read()
    except ReproError:
        gone = not folder.path.exists() and os.access(folder.path.parent, os.R_OK)
        if gone or (folder.path.exists() and not folder.record.exists()) or age > EXPORT_AGE:
            return "its run has no record any more"
        return ""
    return "its run is over and recorded" if record.ended else ""  # else its end has yet to be recorded


def building(rows: Sequence[Row], *, now: float) -> frozenset[str]:
    """The specs among these whose builds go on: a process of this user holds the lock, or the image is fresh."""
    return frozenset(
        row.spec
        for row in rows
        if now - row.created.timestamp() < STARTING or _held(cache_folder() / "locks" / f"image-{row.spec[:32]}.lock")
    )


def any_building() -> bool:
    """Whether a process of this user builds any image now."""
    return any(_held(lock) for lock in (cache_folder() / "locks").glob("image-*.lock"))


def _held(lock: Path) -> bool:
    import filelock

    if not lock.exists():
        return False
    ours = filelock.FileLock(lock)
    try:
        ours.acquire(timeout=0)
    except filelock.Timeout:
        return True
    except OSError:
        return False
    ours.release()
    return False


def base_images(images: Sequence[ImageFacts], going: Collection[str], needed: Collection[str]) -> list[Removal]:
    """The bases that were made here and that no image stands on which stays.

    `going` are the ids of images that do not, `needed` those that containers use or repro.lock names. Only where this
    user can make a base again: elsewhere it would be a loss.
    """
    if not bases.can_make() or any_building():
        return []
    pinned = pins.everything()
    standing = [image for image in images if image.id not in going]
    removals = []
    for image in filter(bases.is_base, images):
        if image.id in needed or pins.content(image) in pinned:
            continue
        if any(_stands_on(other, image) for other in standing if other.id != image.id):
            continue
        ours = [tag for tag in image.tags if tag.startswith((f"{bases.NAME}:", PIN_TAG))]
        for tag in ours if image.tags else [image.id]:
            loses = "no image stands on it; the next build makes it anew, in half a minute"
            removals.append(Removal(kind="base", name=tag, id=tag, size=image.size, loses=loses))
    return removals


def _stands_on(image: ImageFacts, base: ImageFacts) -> bool:
    return image.layers[: len(base.layers)] == base.layers


def files(project: Project, engine: Engine, running: Iterable[ContainerFacts], *, now: float) -> list[Removal]:
    """Exports of code, logs of builds and halves of fetches that are old and that nothing uses."""
    return [*_exports(project, engine, running, now), *_logs(project, now), *_downloads(now)]


def _exports(project: Project, engine: Engine, running: Iterable[ContainerFacts], now: float) -> Iterator[Removal]:
    old = [path for path in _in(project.scratch / "code") if _old(path, now, EXPORT_AGE)]
    old = [path for path in old if EXPORT.fullmatch(path.name) or path.name.startswith(".writing-")]
    if not old:
        return
    used = {source for each in running if RUN_LABEL in each.labels for source in engine.mounted(each.id)}
    for path in old:
        if not any(Path(source).is_relative_to(path) for source in used):
            loses = "nothing: git has the commit, and a run of it exports it again"
            yield Removal(kind="export", name=path.name[:20], id=str(path), size=_size(path), loses=loses)


def _logs(project: Project, now: float) -> Iterator[Removal]:
    for path in _in(project.scratch / "logs"):
        if path.name.startswith("build-") and path.suffix == ".log" and _old(path, now, LOG_AGE):
            yield Removal(kind="log", name=path.name, id=str(path), size=_size(path), loses="what a builder said")


def _downloads(now: float) -> Iterator[Removal]:
    for path in _in(cache_folder() / "data" / "sha256"):
        held = path.with_name(f"{path.name[:64]}.lock")
        if DOWNLOAD.fullmatch(path.name) and _old(path, now, DAY) and not _held(held):
            loses = "nothing: a fetch begins anew"
            yield Removal(kind="download", name=path.name[:20], id=str(path), size=_size(path), loses=loses)


def _in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _old(path: Path, now: float, age: float) -> bool:
    try:
        return now - path.lstat().st_mtime > age
    except OSError:
        return False


def _size(path: Path) -> int:
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(each.lstat().st_size for each in path.rglob("*") if not each.is_dir())
