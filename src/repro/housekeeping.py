"""Images and the runs that need them: what there is, what can go."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from repro.engine import Engine, ImageFacts
from repro.errors import ReproError
from repro.experiment import Value
from repro.image import SPEC_LABEL
from repro.lockfile import Lock
from repro.record import folders


class Row(Value, frozen=True, kw_only=True):
    """An image of ours, and who used it."""

    tag: str  # the id when it has lost its tag
    id: str
    spec: str
    size: int  # bytes
    created: datetime
    runs: tuple[str, ...]  # ids of recorded runs, oldest first
    in_use: bool  # a container has it now


class Kept(Value, frozen=True, kw_only=True):
    """An image that stays, and why."""

    tag: str
    why: str


class Plan(Value, frozen=True, kw_only=True):
    """What `prune` would do."""

    removed: tuple[Row, ...]
    kept: tuple[Kept, ...]


def images(engine: Engine, runs: Path | None) -> tuple[Row, ...]:
    """The images on the engine that `repro` built, newest first, with the runs recorded in `runs` that used them."""
    used: dict[str, list[str]] = {}
    for folder in folders(runs) if runs else ():
        try:
            planned = folder.read().planned
        except ReproError:  # a record of another version: it may need an image, but cannot say which
            continue
        used.setdefault(planned.image.id, []).append(planned.run)
    busy = engine.image_ids_in_use()
    rows = [
        Row(
            tag=_own_tag(found),
            id=found.id,
            spec=found.labels[SPEC_LABEL],
            size=found.size,
            created=_time(found.created),
            runs=tuple(used.get(found.id, ())),
            in_use=found.id in busy,
        )
        for found in engine.images(SPEC_LABEL)
    ]
    return tuple(sorted(rows, key=lambda row: row.created, reverse=True))


def _own_tag(image: ImageFacts) -> str:
    """The tag that `repro` gave it: others are the user's, and stay."""
    version = ":" + image.labels[SPEC_LABEL][:16]
    return next((tag for tag in image.tags if tag.endswith(version)), image.tags[0] if image.tags else image.id)


def _time(text: str) -> datetime:
    if not text:  # images of the containerd store may have none
        return datetime.fromtimestamp(0, tz=timezone.utc)
    return datetime.fromisoformat(text.partition(".")[0].rstrip("Z") + "+00:00")  # engines write nanoseconds


def plan_prune(rows: Sequence[Row], lock: Lock, *, force: bool = False) -> Plan:
    """What can go: nothing that a container, a recorded run or the lock needs; with `force`, all but the first."""
    locked = {entry.id: variant for variant, entry in lock.images.items()}
    removed, kept = [], []
    for row in rows:
        if row.in_use:
            kept.append(Kept(tag=row.tag, why="a container uses it"))
        elif row.runs and not force:
            kept.append(Kept(tag=row.tag, why=f"{len(row.runs)} recorded runs need it, the last {row.runs[-1]}"))
        elif row.id in locked and not force:
            kept.append(Kept(tag=row.tag, why=f"repro.lock names it for {locked[row.id]}"))
        else:
            removed.append(row)
    return Plan(removed=tuple(removed), kept=tuple(kept))


def prune(engine: Engine, plan: Plan) -> None:
    """Remove what the plan says.

    Raises:
        EnvironmentUnfitError: the engine refuses one of them.
    """
    for row in plan.removed:
        engine.remove_image(row.tag)
