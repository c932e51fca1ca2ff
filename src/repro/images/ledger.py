"""What images each spec has given on this machine: a file of lines for each, to notice that the same became another.

A spec is all that decides an image as far as it is known before the build. An unpinned package or a base that was moved
gives it another content on another day; that is drift.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from repro.engines.engine import Engine
from repro.experiment import Value
from repro.image import Image
from repro.images import inventory, sbom
from repro.images.inventory import Inventory
from repro.project import cache_folder
from repro.record import PACKAGES, SBOM

SHOWN = 8  # differences between packages


class Sighting(Value, frozen=True, kw_only=True):
    """A line of the ledger: a spec had this content."""

    content: str
    image: str  # id
    base: str  # as resolved; "" where that is not known
    packages: str  # digest of the inventory; "" where the image could not be looked at
    at: datetime
    where: str  # `on HOST`; `in run RUN` of another machine


class Drift(Value, frozen=True, kw_only=True):
    """The same spec, with other content than before."""

    tag: str
    before: Sighting
    now: Sighting
    differences: tuple[str, ...]  # of packages; empty where they are the same, or not known any more
    new: bool  # this content was never seen before: the user has not been told

    @property
    def text(self) -> str:
        """One sentence for people: both identities, and what differs."""
        before, now = self.before, self.now
        return (
            f"{self.tag} is {now.image} (content {now.content}) now, and the same spec gave {before.image} "
            f"(content {before.content}) on {before.at:%Y-%m-%d} {before.where}: {self._why()}"
        )

    def _why(self) -> str:
        found = list(self.differences[:SHOWN])
        if len(self.differences) > SHOWN:
            found.append(f"and {len(self.differences) - SHOWN} more packages")
        if self.before.base and self.before.base != self.now.base:
            found.insert(0, f"base {self.before.base} -> {self.now.base}")
        if found:
            return ", ".join(found)
        if not self.before.packages or not self.now.packages:
            return "what differs is not known"
        if self.before.packages != self.now.packages:
            return "other packages; the list of the earlier ones is not there any more"
        return "the same packages, other bytes: times or caches in the layers"


class Contents(Value, frozen=True, kw_only=True):
    """What is in an image, and whether the same spec had something else in it before."""

    inventory: Inventory
    sbom: str
    drift: Drift | None

    def texts(self) -> dict[str, str]:
        """The files that tell it, by name."""
        return {PACKAGES: self.inventory.text(), SBOM: self.sbom}


def contents(engine: Engine, made: Image, say: Callable[[str], None]) -> Contents:
    """Look into an image, and note it. Only the first time for an image costs more than reading a few small files."""
    found = inventory.of(engine, made.id, say=say)
    return Contents(inventory=found, sbom=sbom.of(found), drift=witness(made, found))


def witness(made: Image, found: Inventory) -> Drift | None:
    """Note what a spec has given, where that is new; the drift from what it gave last, if that was something else."""
    if not made.content:
        return None
    now = Sighting(
        content=made.content,
        image=made.id,
        base=made.base_resolved,
        packages=found.digest if inventory.cached(made.id) else "",
        at=datetime.now(timezone.utc),
        where=f"on {platform.node()}",
    )
    seen = sightings(made.spec)
    _note(made.spec, now, seen)
    before = next((each for each in reversed(seen) if each.content != now.content), None)
    if before is None:
        return None
    earlier = inventory.cached(before.image)
    return Drift(
        tag=made.tag,
        before=before,
        now=now,
        differences=inventory.differences(earlier, found) if earlier and now.packages else (),
        new=now.content not in (each.content for each in seen),
    )


def hear(spec: str, *, content: str, image: str, run: str, at: datetime) -> None:
    """Note what a spec has given elsewhere: later runs here need not ask MLflow for it, nor tell their user again."""
    sighting = Sighting(content=content, image=image, base="", packages="", at=at, where=f"in run {run}")
    _note(spec, sighting, sightings(spec))


def sightings(spec: str) -> list[Sighting]:
    """What is noted of a spec, oldest first; a torn line says nothing."""
    found = []
    with contextlib.suppress(OSError):
        for line in _file(spec).read_bytes().splitlines():
            with contextlib.suppress(msgspec.MsgspecError):
                found.append(msgspec.json.decode(line, type=Sighting))
    return found


def _note(spec: str, sighting: Sighting, seen: list[Sighting]) -> None:
    if (sighting.content, sighting.image) in ((each.content, each.image) for each in seen):
        return
    file = _file(spec)
    with contextlib.suppress(OSError):  # a full disk is no reason not to run
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab", buffering=0) as ledger:
            ledger.write(msgspec.json.encode(sighting) + b"\n")  # one call: lines of two processes do not mix


def _file(spec: str) -> Path:
    return cache_folder() / "ledger" / f"{spec}.jsonl"
