"""Images and the runs that need them: what there is, what can go, and what could not be done any more without it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from repro import report
from repro.cleaning import pins
from repro.engines import repodigest
from repro.engines.answers import ContainerFacts, time_of
from repro.engines.engine import Engine
from repro.errors import ReproError
from repro.experiment import Value
from repro.image import BASE_LABEL, SPEC_LABEL, USER_LABEL, own_tag
from repro.lockfile import Lock
from repro.project import cache_folder
from repro.record import RunFolder, folders, write_atomic

REMEMBERED = "runs"  # in the cache folder: a file for each folder with runs that any project has used
TEMPORARY = ":building-"  # in the tag of an image until it is whole


class Row(Value, frozen=True, kw_only=True):
    """An image of ours, and who used it."""

    tag: str  # the id when it has lost its tag
    id: str
    spec: str
    size: int  # bytes
    created: datetime
    runs: tuple[str, ...]  # ids of recorded runs, oldest first
    in_use: bool  # a container has it now
    user: str = ""  # who built it; "" when the image does not tell
    pinned: bool = False
    base: str = ""  # what it was built on
    digest: str = ""  # a repo digest, by which a registry has it


class Removal(Value, frozen=True, kw_only=True):
    """Something that can go."""

    kind: str  # image, base, container, export, log, download
    name: str  # tag, id or path
    id: str  # what to ask the engine to remove; of a file, its path
    size: int  # bytes; of an image as if it shared nothing
    loses: str  # what cannot be done any more, or costs time


class Kept(Value, frozen=True, kw_only=True):
    """An image that stays, and why."""

    tag: str
    why: str


class Plan(Value, frozen=True, kw_only=True):
    """What `prune` would do."""

    removed: tuple[Removal, ...] = ()
    kept: tuple[Kept, ...] = ()


def remember(runs: Path) -> None:
    """Let the runs of this folder count, whichever project asks: all projects of a machine share its images."""
    place = str(runs.absolute())
    with contextlib.suppress(OSError):  # a cache that cannot be written has been complained about before
        folder = cache_folder() / REMEMBERED
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / hashlib.sha256(os.fsencode(place)).hexdigest()[:32]
        if not file.exists():
            write_atomic(file, os.fsencode(place))


def remembered() -> Iterator[Path]:
    """Every folder of runs that was remembered."""
    for file in sorted((cache_folder() / REMEMBERED).glob("[0-9a-f]*")):
        with contextlib.suppress(OSError):
            yield Path(os.fsdecode(file.read_bytes()))


def images(engine: Engine, runs: Path | None, containers: Sequence[ContainerFacts]) -> tuple[Row, ...]:
    """The images on the engine that `repro` built, newest first, with the recorded runs that used them.

    Those recorded in `runs`, and in every folder that was ever remembered. In use is what one of `containers` has.
    """
    used: dict[str, set[str]] = {}  # a run may be reached in two ways
    places = dict.fromkeys([*([runs.absolute()] if runs else []), *remembered()])
    for folder in (folder for place in places for folder in folders(place)):
        image, run = _needs(folder)
        used.setdefault(image, set()).add(run)
    busy = {each.image for each in containers}
    pinned = pins.everything()
    rows = [
        Row(
            tag=own_tag(found) or (found.tags[0] if found.tags else found.id),
            id=found.id,
            spec=found.labels[SPEC_LABEL],
            size=found.size,
            created=time_of(found.created),
            runs=tuple(sorted(used.get(found.id, ()))),
            in_use=found.id in busy,
            user=found.labels.get(USER_LABEL, ""),
            pinned=pins.content(found) in pinned,
            base=found.labels.get(BASE_LABEL, ""),
            digest=next(iter(repodigest.known(found.id, found.digests)), ""),
        )
        for found in engine.images(SPEC_LABEL)
    ]
    return tuple(sorted(rows, key=lambda row: row.created, reverse=True))


def _needs(folder: RunFolder) -> tuple[str, str]:
    """The id of the image that a run needs, "" when its record does not tell, and the run's own."""
    try:
        planned = folder.read().planned
    except ReproError:  # a record of another version; this much of it stays the same
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            return str(json.loads(folder.record.read_bytes())["planned"]["image"]["id"]), folder.path.name
        return "", folder.path.name
    return planned.image.id, planned.run


def plan_images(
    rows: Sequence[Row], lock: Lock, *, user: str, force: bool = False, building: Collection[str] = ()
) -> Plan:
    """What can go: nothing that a container, a pin, a recorded run or the lock needs; `force` heeds the first two only.

    On a shared engine, what another user than `user` built stays as well: their runs cannot be seen from here.
    `building` are specs whose builds go on.
    """
    here = {row.id for row in rows}
    # where the very image is gone, another build of its spec is the next best
    locked = {entry.id if entry.id in here else entry.spec: name for name, entry in lock.images.items()}
    removed, kept = [], []
    for row in rows:
        variant = locked.get(row.id) or locked.get(row.spec) or ""
        why = _needed(row, building) or ("" if force else _wanted(row, variant, user))
        if why:
            kept.append(Kept(tag=row.tag, why=why))
        else:
            loses = _loses(row, variant, user)
            removed.append(Removal(kind="image", name=row.tag, id=row.tag, size=row.size, loses=loses))
    return Plan(removed=tuple(removed), kept=tuple(kept))


def _needed(row: Row, building: Collection[str]) -> str:
    if not (_unnamed(row) or TEMPORARY in row.tag or row.tag.endswith(f":{row.spec[:16]}")):
        return "its name is not one of ours, perhaps it was built on one of ours: `docker rmi` removes it"
    if row.in_use:
        return "a container uses it"
    if TEMPORARY in row.tag and row.spec in building:
        return "its build goes on"
    return "it is pinned: `repro pin --remove` lets it go" if row.pinned else ""


def _unnamed(row: Row) -> bool:
    return row.tag.startswith("sha256:")


def _wanted(row: Row, variant: str, user: str) -> str:
    if row.runs:
        count = f"{len(row.runs)} recorded runs need" if len(row.runs) > 1 else "a recorded run needs"
        return f"{count} it, the last {row.runs[-1]}"
    if variant:
        return f"repro.lock names it for {variant}"
    return f"{row.user} built it, and their runs cannot be seen from here" if row.user not in ("", user) else ""


def _loses(row: Row, variant: str, user: str) -> str:
    """What is impossible, or takes time, once an image is gone."""
    if row.digest:
        again = f"it can be pulled again: {row.digest}"
    else:
        base = row.base if "@" in row.base else report.short(row.base)
        had = f"while its base ({base}) and its packages can be had"
        again = f"a rebuild of spec {row.spec[:16]} is possible {had}, and gives another id"
    if TEMPORARY in row.tag:
        return "nothing: its build was broken off"
    lost = []
    if row.runs:
        many = (
            f"{len(row.runs)} recorded runs (the last {row.runs[-1]})" if len(row.runs) > 1 else f"run {row.runs[-1]}"
        )
        lost.append(f"{many} could not be re-executed from this image")
    if variant:
        lost.append(f"`repro run --locked` refuses image={variant} until it is back")
    if row.user not in ("", user):
        lost.append(f"runs of {row.user} may need it")
    return "; ".join([*(lost or ["no recorded run needs it"]), again])
