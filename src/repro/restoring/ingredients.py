"""Record -> where each ingredient of the run is, what will be used, and which are lost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from repro.engines.engine import Engine
from repro.errors import ReproError
from repro.experiment import Experiment, Value
from repro.project import Project
from repro.recipe.inputs import canonical
from repro.record import ImageUsed, Planned, Record, RunFolder
from repro.restoring import codes, consent, datasets, frozen, held
from repro.secrets import secretsources
from repro.sharing import images
from repro.verdict import Ingredient

NOT_ASKED = " (not asked)"


class Depth(Value, frozen=True, kw_only=True):
    """How far to look; by default as far as a rerun needs."""

    everywhere: bool = False  # also where nothing is needed from: remotes, registries, the recipe
    deep: bool = False  # read every byte that a hash is known of
    rebuild: bool = False  # the image is wanted anew
    trusting: bool = False  # whom nobody may ask is taken to have what was recorded of them


ENOUGH = Depth()


def look(
    record: Record,
    folder: RunFolder,
    project: Project,
    engine: Engine | None,
    *,
    offline: bool,
    depth: Depth = ENOUGH,
) -> tuple[Ingredient, ...]:
    """Where everything is that a run needs to run again; what has no `use` is lost.

    Args:
        record: of the run.
        folder: its folder, which may hold an archive.
        project: in which it shall run again.
        engine: which shall run it; None: none can be asked.
        offline: ask nobody who is not on this machine.
        depth: how far to look.
    """
    planned, ask = record.planned, depth.everywhere and not offline
    code = codes.look(record, folder, project, ask=ask, deep=depth.deep)
    if not code.use and not offline and not ask:
        code = codes.look(record, folder, project, ask=True, deep=depth.deep)
    try:
        thawed = frozen.thaw(record)
    except ReproError as error:
        return code, _config(planned, folder, lost=" ".join([error.what, *error.evidence]))
    experiment = thawed.experiment
    found = [code, _config(planned, folder, unknown=thawed.unknown)]
    recipe = partial(_recipe, record, folder, project, experiment) if code.use else None
    image = images.located(record, folder)
    found.append(_image(image, folder, engine, recipe, offline=offline, depth=depth))
    for each in planned.data:
        wanted = datasets.wanted(each, experiment, project, folder)
        found.append(datasets.look(each, wanted, ask=ask, offline=offline and not depth.trusting, deep=depth.deep))
    return (*found, *_secrets(experiment, project), *_gpus(record, engine))


def lost(found: Iterable[Ingredient]) -> list[Ingredient]:
    """Those that are nowhere."""
    return [each for each in found if not each.use]


def _config(planned: Planned, folder: RunFolder, *, unknown: tuple[str, ...] = (), lost: str = "") -> Ingredient:
    own = canonical(planned.config)
    remarks = [lost] if lost else []
    if unknown:
        remarks.append(f"settings of repro {planned.repro} that this version does not know: {', '.join(unknown)}")
    if folder.config_json.is_file() and _other_json(folder.config_json, own):
        remarks.append(f"{folder.config_json} is not what was recorded")
    return Ingredient(
        kind="config",
        name="",
        recorded=f"sha256 {hashlib.sha256(own).hexdigest()}",
        found=() if lost else (f"record {folder.record}",),
        use="" if lost else f"record {folder.record}",
        remark="; ".join(remarks),
    )


def _other_json(path: Path, own: bytes) -> bool:
    import msgspec

    try:
        return canonical(msgspec.json.decode(path.read_bytes())) != own
    except (OSError, msgspec.MsgspecError, RecursionError):
        return True


# the image -------------------------------------------------------------------------------------------------------


def _image(
    used: ImageUsed,
    folder: RunFolder,
    engine: Engine | None,
    recipe: Callable[[], tuple[str, str]] | None,
    *,
    offline: bool,
    depth: Depth,
) -> Ingredient:
    found, remarks = [], []
    for place, remark in _places(used, folder, engine, offline=offline, depth=depth):
        found += [place] if place else []
        remarks += [remark] if remark else []
    usable = [each for each in found if depth.trusting or not each.endswith(NOT_ASKED)]
    if recipe is not None and (depth.rebuild or depth.everywhere or not usable):
        place, remark = recipe()
        found += [place] if place else []
        remarks += [remark] if remark else []
        if depth.rebuild:
            usable = [place] if place else []
        elif place and (
            depth.trusting or not offline
        ):  # what is built may need a network: offline it is done for who asks for it
            usable.append(place)
    return Ingredient(
        kind="image",
        name="",
        recorded=f"{used.tag} {used.id}",
        found=tuple(found),
        use=usable[0] if usable else "",
        remark="; ".join(remarks),
    )


def _places(
    used: ImageUsed, folder: RunFolder, engine: Engine | None, *, offline: bool, depth: Depth
) -> Iterator[tuple[str, str]]:
    """Each place of the image itself, or why it is none."""
    here = held.on_engine(used, engine) if engine else None
    if engine is None:
        yield "", "no engine could be asked"
    elif here is None:
        yield "", "not on this engine"
    else:
        damaged = held.damaged_layers(engine, here.image) if depth.deep else ()
        if damaged:
            yield "", f"on this engine, layer {damaged[0]} is damaged"
        else:
            yield f"{held.HERE}, {here.how}", here.remark
    if used.digest and engine and not offline and (depth.everywhere or here is None):
        there, why = held.in_registry(used, engine)
        yield (f"{held.REGISTRY}, {used.digest}", "") if there else ("", why)
    elif used.digest and here is None:
        yield f"{held.REGISTRY}, {used.digest}{NOT_ASKED}", ""
    for place in held.archives(folder):
        problem = held.archive_damage(place, used, deep=depth.deep)
        yield ("", f"{place}: {problem}") if problem else (f"{held.ARCHIVE_WORD} {place}", "")
    if depth.everywhere and here is not None and used.digest is None:
        yield "", "never pushed: no registry has it"


def _recipe(record: Record, folder: RunFolder, project: Project, experiment: Experiment) -> tuple[str, str]:
    try:
        code = codes.materialise(record, folder, project).folder
    except ReproError as error:
        return "", error.what
    spec, why = held.recipe(record.planned.image, experiment, code)
    return (f"{held.RECIPE}, {spec.digest[:16]}: to be built anew", "") if spec else ("", why)


# the others ------------------------------------------------------------------------------------------------------


def _secrets(experiment: Experiment, project: Project) -> Iterator[Ingredient]:
    """Each secret, from where the configuration says; no value is read."""
    for name, secret in experiment.secrets.items():
        words = consent.place(secret)
        try:
            secretsources.check(f"secrets.{name}", secret, project.root)
        except ReproError as error:
            found, remark = "", " ".join([error.what, *error.evidence])
        else:
            found, remark = words, ""
        yield Ingredient(
            kind="secret", name=name, recorded=words, found=(found,) if found else (), use=found, remark=remark
        )


def _gpus(record: Record, engine: Engine | None) -> Iterator[Ingredient]:
    """The GPUs that the container had."""
    had = record.started.gpus if record.started else "none"
    if had == "none":
        return
    kinds = sorted({each.name for each in record.planned.host.gpus})
    from repro.running import nvidia

    facts = engine.facts() if engine else None
    with nvidia.opened("all") as seen:
        count = len(seen)
    offers = f"this engine ({facts.gpus})" if facts and facts.gpus else f"this machine ({count})" if count else ""
    yield Ingredient(
        kind="host",
        name="gpus",
        recorded=had + (f" ({', '.join(kinds)})" if kinds else ""),
        found=(offers,) if offers else (),
        use=offers,
        remark="" if offers else "this engine offers no GPU",
    )
