"""Ingredients -> everything that a run needs to run again, in folders and on the engine, each as it was recorded."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import msgspec

from repro import image, report
from repro.compare.sides import Side
from repro.display import Display
from repro.engines import registry, repodigest
from repro.engines.engine import Engine
from repro.engines.imagefacts import ImageFacts
from repro.errors import EnvironmentUnfitError
from repro.experiment import Experiment, Value
from repro.image import How
from repro.images import inventory, oci, sbom
from repro.images.making import Making
from repro.project import Project, ignored_folder, user_name
from repro.record import PACKAGES, SBOM, DatasetUsed, ImageUsed, Record, RunFolder
from repro.restoring import codes, datasets, held, replan
from repro.running import machine
from repro.running import plan as planning
from repro.secrets import secretsfolder
from repro.sharing import images
from repro.tracking.tracking import resolve_uri
from repro.verdict import Ingredient

Say = Callable[[str], None]


class Source(Value, frozen=True, kw_only=True):
    """How to get a run back: as decided before anything is done."""

    experiment: Experiment
    ingredients: tuple[Ingredient, ...]
    rebuild: bool  # the image, whether it is there or not
    offline: bool
    foreign: bool = False  # somebody else wrote the record

    @property
    def image(self) -> str:
        """The place that the image comes from; "" where it is lost."""
        return next((each.use for each in self.ingredients if each.kind == "image"), "")

    @property
    def builds(self) -> bool:
        """Whether the image is built from its recipe."""
        return self.image.startswith(held.RECIPE)


class Materials(Value, frozen=True, kw_only=True):
    """What was found or made, and how."""

    ingredients: planning.Ingredients
    rebuilt: bool  # the image was built anew, and is not the recorded one by its id
    same_image: bool  # the layers are those that were recorded


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where and with what a run is made ready; `stack` holds what goes again afterwards."""

    project: Project
    engine: Engine
    display: Display
    stack: ExitStack


def gather(original: Side, source: Source, here: Workshop) -> Materials:
    """Bring everything to where a container can see it.

    Raises:
        EnvironmentUnfitError: something that was found before cannot be had now.
    """
    folder, planned, display = original.folder, original.record.planned, here.display
    with display.step("code") as step:
        code = codes.materialise(original.record, folder, here.project)
        step.detail = f"{planned.code.commit[:12]} from the {code.place}"
    with display.step("image") as step:
        found = _image(original, source, here, code.folder, step.say)
        same = not planned.image.layers or found.layers == planned.image.layers
        rebuilt = source.builds and found.id != planned.image.id
        step.detail = f"{planned.image.tag} {report.short(found.id)}" + (
            "" if not rebuilt else f" built anew: {'the same layers' if same else 'OTHER LAYERS than were recorded'}"
        )
    facts = here.engine.facts()
    had_gpus = original.record.started is not None and original.record.started.gpus != "none"
    ingredients = planning.Ingredients(
        code=planned.code,
        code_prefix=code.prefix,
        code_folder=str(code.folder),
        diff=folder.diff.read_text(encoding="utf-8", errors="replace") if folder.diff.is_file() else "",
        image=_used(planned.image, found, rebuilt=rebuilt),
        image_env=found.env,
        inputs=_inputs(folder) | ({} if same else _contents(here.engine, found, display.notice)),
        data=_data(original, source, here),
        engine=facts,
        machine=machine.of(facts, here.engine.host_url, gpus=had_gpus),
    )
    return Materials(ingredients=ingredients, rebuilt=rebuilt, same_image=same)


def _data(original: Side, source: Source, here: Workshop) -> tuple[DatasetUsed, ...]:
    used = original.record.planned.data
    if not used:
        return ()
    with here.display.step("data", fold=False) as step:
        fetch = partial(datasets.fetch, used, source.experiment, here.project, original.folder)
        data = tuple(fetch(no_network=source.offline, say=step.say, progress=here.display.live))
        step.detail = ", ".join(each.name for each in data)
    return data


def _image(original: Side, source: Source, here: Workshop, code: Path, say: Say) -> ImageFacts:
    used, choice, engine = images.located(original.record, original.folder), source.image, here.engine
    found: ImageFacts | None = None
    if choice.startswith(held.HERE):
        there = held.on_engine(used, engine)
        found = there.image if there else None
    elif choice.startswith(held.REGISTRY):
        found = registry.pull(engine, used.digest or "", say)
    elif choice.startswith(held.ARCHIVE_WORD):
        place = next(each for each in held.archives(original.folder) if held.archive_damage(each, used) is None)
        with held.as_file(place) as path:
            found, _tag, _before = oci.load(engine, path, say)
    else:
        return _built(used, source, here, code, say)
    if found is None or (used.layers and found.layers != used.layers):
        raise EnvironmentUnfitError(
            f"the image of run {original.record.planned.run} is not the recorded one any more",
            evidence=[choice, f"recorded  {used.id}", f"found     {found.id if found else 'nothing'}"],
            hints=["`repro verify` tells where else it is; `--rebuild` builds it anew"],
        )
    return found


def _built(used: ImageUsed, source: Source, here: Workshop, code: Path, say: Say) -> ImageFacts:
    """The image of the recorded recipe: as `repro rebuild` makes it; where it is wanted anew, beside the others."""
    spec, why = held.recipe(used, source.experiment, code)
    if spec is None:
        raise EnvironmentUnfitError(f"{used.tag} cannot be built anew", evidence=[why])
    making = Making(spec, source.experiment.build, here.project, here.display)
    if not source.rebuild:
        found = here.engine.image(making.ensure(here.engine, say).id)
        assert found is not None  # noqa: S101 - it was made a moment before
        return found
    log = ignored_folder(here.project.scratch) / "logs" / f"build-{spec.digest[:16]}.log"
    with image.one_at_a_time(spec, say):
        gathered = making.gather(say)
        building = image.built(spec, here.engine, gathered, How(no_cache=True), say=say, build_log=log)
        return here.stack.enter_context(building)


def _used(before: ImageUsed, found: ImageFacts, *, rebuilt: bool) -> ImageUsed:
    """What a record keeps of the image that runs now."""
    digests = repodigest.known(found.id, found.digests)
    base = found.labels.get(image.BASE_LABEL, before.base_resolved) if rebuilt else before.base_resolved
    return msgspec.structs.replace(
        before,
        id=found.id,
        base_resolved=base,
        digest=before.digest if before.digest in digests else next(iter(digests), None),
        manifest=found.manifest,
        config=found.config,
        layers=found.layers,
        content=found.content,
        settings=found.settings,
        drift=None,
    )


def _inputs(folder: RunFolder) -> dict[str, str]:
    """What the recorded image was made from and what is in it."""
    files = (path for path in sorted(folder.inputs.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder.inputs).as_posix(): path.read_text(encoding="utf-8", errors="replace") for path in files
    }


def _contents(engine: Engine, found: ImageFacts, say: Say) -> dict[str, str]:
    inside = inventory.of(engine, found.id, say=say)
    return {PACKAGES: inside.text(), SBOM: sbom.of(inside)}


def plan(
    record: Record, project: Project, source: Source, materials: Materials, argv: tuple[str, ...]
) -> planning.Plan:
    """The run once more, in a new folder below runs/."""
    created = datetime.now(timezone.utc)
    run = planning.run_id(record.planned.name, created, secrets.token_bytes(3))
    tracking, planned = source.experiment.tracking, record.planned
    uri = None if source.foreign else tracking.uri  # somebody else's server gets nothing, least of all credentials
    circumstances = planning.Circumstances(
        run=run,
        created=created,
        project=str(project.root),
        folder=str(project.runs / run),
        argv=argv,
        overrides=planned.overrides,
        uid=os.getuid(),
        gid=os.getgid(),
        user=user_name(),
        tracking_uri=resolve_uri(uri, project) if tracking.enabled else None,
        secrets_folder=str(secretsfolder.place(run)) if source.experiment.secrets else "",
        reproduces=planned.run,
    )
    return replan.decide(record, source.experiment, materials.ingredients, circumstances)
