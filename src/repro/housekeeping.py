"""Images and the runs that need them: what there is, what can go."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from repro.answers import ImageFacts
from repro.engine import Engine
from repro.errors import EngineUnreachableError, EnvironmentUnfitError, ReproError
from repro.experiment import Value
from repro.image import SPEC_LABEL, USER_LABEL
from repro.lockfile import Lock
from repro.project import cache_folder
from repro.record import folders, write_atomic

TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)?$")
REMEMBERED = "runs"  # in the cache folder: a file for each folder with runs that any project has used
UNKNOWN = datetime(1970, 1, 1, tzinfo=timezone.utc)


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


class Kept(Value, frozen=True, kw_only=True):
    """An image that stays, and why."""

    tag: str
    why: str


class Plan(Value, frozen=True, kw_only=True):
    """What `prune` would do."""

    removed: tuple[Row, ...]
    kept: tuple[Kept, ...]


def remember(runs: Path) -> None:
    """Let the runs of this folder count, whichever project asks: all projects of a machine share its images."""
    place = str(runs.absolute())
    with contextlib.suppress(OSError):  # a cache that cannot be written has been complained about before
        folder = cache_folder() / REMEMBERED
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / hashlib.sha256(os.fsencode(place)).hexdigest()[:32]
        if not file.exists():
            write_atomic(file, os.fsencode(place))


def _remembered() -> Iterator[Path]:
    for file in sorted((cache_folder() / REMEMBERED).glob("[0-9a-f]*")):
        with contextlib.suppress(OSError):
            yield Path(os.fsdecode(file.read_bytes()))


def images(engine: Engine, runs: Path | None) -> tuple[Row, ...]:
    """The images on the engine that `repro` built, newest first, with the recorded runs that used them.

    Those recorded in `runs`, and in every folder that was ever remembered.
    """
    used: dict[str, set[str]] = {}  # a run may be reached in two ways
    places = dict.fromkeys([*([runs.absolute()] if runs else []), *_remembered()])
    for folder in (folder for place in places for folder in folders(place)):
        try:
            planned = folder.read().planned
        except ReproError:  # a record of another version: it may need an image, but cannot say which
            continue
        used.setdefault(planned.image.id, set()).add(planned.run)
    busy = engine.image_ids_in_use()
    rows = [
        Row(
            tag=_own_tag(found),
            id=found.id,
            spec=found.labels[SPEC_LABEL],
            size=found.size,
            created=time_of(found.created),
            runs=tuple(sorted(used.get(found.id, ()))),
            in_use=found.id in busy,
            user=found.labels.get(USER_LABEL, ""),
        )
        for found in engine.images(SPEC_LABEL)
    ]
    return tuple(sorted(rows, key=lambda row: row.created, reverse=True))


def _own_tag(image: ImageFacts) -> str:
    """The tag that `repro` gave it: others are the user's, and stay."""
    version = ":" + image.labels[SPEC_LABEL][:16]
    return next((tag for tag in image.tags if tag.endswith(version)), image.tags[0] if image.tags else image.id)


def time_of(text: str) -> datetime:
    """When an engine says that it was; engines write nanoseconds, or nothing at all."""
    found = TIME.match(text)
    return datetime.fromisoformat(f"{found[1]}{(found[2] or 'Z').replace('Z', '+00:00')}") if found else UNKNOWN


def plan_prune(rows: Sequence[Row], lock: Lock, *, user: str, force: bool = False) -> Plan:
    """What can go: nothing that a container, a recorded run or the lock needs; with `force`, all but the first.

    On a shared engine, what another user than `user` built stays as well: their runs cannot be seen from here.
    """
    here = {row.id for row in rows}
    # where the very image is gone, another build of its spec is the next best
    locked = {entry.id if entry.id in here else entry.spec: name for name, entry in lock.images.items()}
    removed, kept = [], []
    for row in rows:
        if row.in_use:
            kept.append(Kept(tag=row.tag, why="a container uses it"))
        elif row.runs and not force:
            count = f"{len(row.runs)} recorded runs need" if len(row.runs) > 1 else "a recorded run needs"
            kept.append(Kept(tag=row.tag, why=f"{count} it, the last {row.runs[-1]}"))
        elif not force and (variant := locked.get(row.id) or locked.get(row.spec)):
            kept.append(Kept(tag=row.tag, why=f"repro.lock names it for {variant}"))
        elif not force and row.user not in ("", user):
            kept.append(Kept(tag=row.tag, why=f"{row.user} built it, and their runs cannot be seen from here"))
        else:
            removed.append(row)
    return Plan(removed=tuple(removed), kept=tuple(kept))


def prune(engine: Engine, plan: Plan) -> None:
    """Remove what the plan says; what the engine will not give up does not keep the rest.

    Raises:
        EngineUnreachableError: it went away.
        EnvironmentUnfitError: the engine refused some; the others are gone.
    """
    refused = []
    for row in plan.removed:
        try:
            engine.remove_image(row.tag)
        except EngineUnreachableError:
            raise
        except EnvironmentUnfitError as error:
            refused.append(f"{row.tag}: {' '.join(error.evidence)}")
    if refused:
        raise EnvironmentUnfitError(
            f"{len(refused)} of {len(plan.removed)} images could not be removed",
            evidence=refused,
            hints=["`docker image ls` and `docker ps --all` show what stands on them"],
        )
