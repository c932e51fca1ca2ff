"""Everything that nothing needs: found, weighed, removed. What it would cost is said before."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from repro.cleaning import housekeeping, leftovers
from repro.cleaning.housekeeping import Plan, Removal
from repro.engines.engine import Engine
from repro.engines.imagefacts import ImageFacts
from repro.errors import EngineUnreachableError, EnvironmentUnfitError
from repro.experiment import Value
from repro.lockfile import Lock
from repro.project import Project

Layer = tuple[str, ...]  # a layer and all below it: what engines share


class Freed(Value, frozen=True, kw_only=True):
    """Bytes that removing something gives back."""

    bytes: int
    exact: bool  # False: an engine does not tell the size of each layer


def plan(engine: Engine, project: Project, lock: Lock, *, user: str, force: bool) -> Plan:
    """What can go of images, containers and files, on this engine and in this project."""
    now = time.time()
    found = engine.all_containers()
    containers = leftovers.containers(found, user=user, now=now)
    ended = {each.id for each in containers}
    staying = [each for each in found if each.id not in ended]
    rows = housekeeping.images(engine, project.runs, staying)
    images = housekeeping.plan_images(rows, lock, user=user, force=force, building=leftovers.building(rows, now=now))
    tags = {each.id for each in images.removed}
    going = {row.id for row in rows if row.tag in tags} - {each.image for each in staying}
    locked = {pin for resolved in lock.resolved.values() for pin in resolved.images.values()}
    bases = leftovers.base_images(engine.images(), going, {*(each.image for each in staying), *locked})
    files = leftovers.files(project, engine, staying, now=now)
    return Plan(removed=(*containers, *images.removed, *bases, *files), kept=images.kept)


def weigh(engine: Engine, removals: Sequence[Removal]) -> Freed:
    """What the removals give back: a layer that several images share counts once, one that stays not at all."""
    files = sum(each.size for each in removals if each.kind not in ("image", "base"))
    going = {each.id for each in removals if each.kind in ("image", "base")}
    if not going:
        return Freed(bytes=files, exact=True)
    everything = engine.images()
    doomed = [image for image in everything if all(_goes(name, going) for name in image.tags or (image.id,))]
    stay = {layer for image in everything if image not in doomed for layer in _layers(image)}
    exact = True
    sizes: dict[Layer, int] = {}
    for image in doomed:
        steps = engine.layer_sizes(image.id)
        exact = exact and len(steps) == len(image.layers)
        sizes.update(_weighed(image, steps, sizes))
    return Freed(bytes=files + sum(size for layer, size in sizes.items() if layer not in stay), exact=exact)


def _goes(name: str, going: set[str]) -> bool:
    """Whether a name of an image is removed: with its tag goes the one that `repro` gave it for a registry."""
    return name in going or name.rpartition("/")[2] in {each.rpartition("/")[2] for each in going}


def _layers(image: ImageFacts) -> list[Layer]:
    return list(accumulate(((layer,) for layer in image.layers), lambda below, layer: below + layer))


def _weighed(image: ImageFacts, steps: Sequence[int], known: dict[Layer, int]) -> dict[Layer, int]:
    """The size of each layer; where the steps do not tell, what is not known goes to the last."""
    layers = _layers(image)
    if len(steps) == len(layers):
        return dict(zip(layers, steps, strict=True))
    below = {layer: known.get(layer, 0) for layer in layers[:-1]}
    return below | {layers[-1]: max(0, image.size - sum(below.values()))} if layers else {}


def carry_out(engine: Engine, removals: Sequence[Removal]) -> None:
    """Remove what the plan says; what cannot be removed does not keep the rest.

    Raises:
        EngineUnreachableError: it went away.
        EnvironmentUnfitError: some were refused; the others are gone.
    """
    refused = []
    for each in removals:
        try:
            _remove(engine, each)
        except EngineUnreachableError:
            raise
        except (EnvironmentUnfitError, OSError) as error:
            refused.append(f"{each.name}: {' '.join(getattr(error, 'evidence', ())) or error}")
    if refused:
        raise EnvironmentUnfitError(
            f"{len(refused)} of {len(removals)} could not be removed",
            evidence=refused,
            hints=["`docker image ls` and `docker ps --all` show what stands on an image"],
        )


def _remove(engine: Engine, removal: Removal) -> None:
    if removal.kind == "container":
        engine.remove(removal.id)
    elif removal.kind in ("image", "base"):
        _remove_image(engine, removal.id)
    elif Path(removal.id).is_dir():
        aside = Path(removal.id).with_name(f".writing-{Path(removal.id).name}")  # never a half of it under its name
        Path(removal.id).rename(aside)
        shutil.rmtree(aside)
    else:
        Path(removal.id).unlink(missing_ok=True)


def _remove_image(engine: Engine, ref: str) -> None:
    """All names that `repro` gave an image: it has one for the registry, too, and perhaps digests without a tag."""
    found = engine.image(ref)
    own = [tag for tag in (found.tags if found else ()) if _goes(tag, {ref})]
    for tag in own or [ref]:
        engine.remove_image(tag)
    left = engine.image(found.id) if found else None
    if left and not left.tags:
        engine.remove_image(left.id, force=True)  # several repositories may know it by its digest
