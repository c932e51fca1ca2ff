"""A recorded run -> could it be had back today, what has changed since, and what is decaying. Nothing is run."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from repro import identity, manifest
from repro.compare.sides import Side
from repro.engines.engine import Engine
from repro.errors import ReproError
from repro.experiment import Value
from repro.project import Project
from repro.record import FileUsed, Host, Record, RunFolder, shown
from repro.restoring import again, ceiling, codes, datasets, held
from repro.restoring import ingredients as looking
from repro.restoring.ingredients import Depth
from repro.verdict import Ceiling, Ingredient, Verification

DAMAGED = "is damaged"  # in a remark on a place that is there and has other bytes
SHOWN = 5


class Audit(Value, frozen=True, kw_only=True):
    """What was found out about a run."""

    run: str
    record: str  # sha256 of its canonical form
    ceiling: Ceiling
    ingredients: tuple[Ingredient, ...]
    lost: tuple[str, ...]  # ingredients that are nowhere
    changed: tuple[str, ...]  # what is not as it was recorded
    decay: tuple[str, ...]  # what is there, and may soon not be
    verifications: tuple[Verification, ...]  # attempts at it that are known here


def audit(side: Side, project: Project, engine: Engine | None, host: Host, *, online: bool, deep: bool) -> Audit:
    """Check every hash of a run that can be checked here; with `online`, remotes and registries are asked, too.

    Without `deep`, sizes and ids have to do for data, code and the image's layers.
    """
    record, folder = side.record, side.folder
    depth = Depth(everywhere=True, deep=deep, trusting=True)
    found = looking.look(record, folder, project, engine, offline=not online, depth=depth)
    known = again.repeats(record, project)
    return Audit(
        run=record.planned.run,
        record=identity.record_digest(record),
        ceiling=ceiling.of(record, host, found, born=known.limit),
        ingredients=found,
        lost=tuple(f"{ceiling.name(each)}: {each.remark or 'nowhere'}" for each in looking.lost(found)),
        changed=(*_record(record, folder), *_outputs(record, folder), *_lock(side, project, found), *_damage(found)),
        decay=(*_decay(record, found), *_gone(record, folder)),
        verifications=tuple(again.read(folder)),
    )


def _record(record: Record, folder: RunFolder) -> Iterator[str]:
    """Where the record contradicts itself, its folder, or what it says that it is."""
    planned = record.planned
    if folder.path.name != planned.run and folder.path.resolve().name == folder.path.name:
        yield f"record.json is that of run {planned.run}"
    for each in again.read(folder):
        if each.record != identity.record_digest(record):
            yield f"record.json is not the one that was verified on {each.at:%Y-%m-%d} ({each.rerun or 'an attempt'})"
    yield from identity.contradictions(record)
    if folder.config_json.is_file():
        try:
            same = msgspec.json.decode(folder.config_json.read_bytes()) == planned.config
        except (msgspec.MsgspecError, RecursionError):
            same = False
        if not same:
            yield "config.json is not the recorded configuration"


def _outputs(record: Record, folder: RunFolder) -> Iterator[str]:
    """The outputs that are not what the record lists, in one line."""
    if record.ended is None or not folder.outputs.is_dir():  # a pulled run may have come without: no change
        return
    recorded = {file.path: file for file in record.ended.outputs}
    changed = [path for path, file in recorded.items() if not _same(folder, file)]
    ignored = manifest.matcher(manifest.wanted(record.planned).ignore)
    new = [shown(name) for _path, name in manifest.walk(folder.outputs) if not ignored(name)]
    changed += [path for path in new if path not in recorded]
    if changed:
        named = ", ".join(sorted(changed)[:SHOWN]) + (f" and {len(changed) - SHOWN} more" if changed[SHOWN:] else "")
        yield f"outputs changed since: {len(changed)} file{'s' if changed[1:] else ''} ({named})"


def _same(folder: RunFolder, file: FileUsed) -> bool:
    try:
        with manifest.opened(folder.outputs / file.path) as content:
            return manifest.sha256(content) == file.sha256
    except OSError:
        return False


def _lock(side: Side, project: Project, found: tuple[Ingredient, ...]) -> Iterator[str]:
    """Whether the lock that was recorded is the one of the code."""
    recorded = side.folder.inputs / project.lock.name
    if not recorded.is_file() or not any(each.kind == "code" and each.use for each in found):
        return
    try:
        code = codes.materialise(side.record, side.folder, project).folder
        text = (code / project.lock.name).read_text(encoding="utf-8", errors="replace")
    except (ReproError, OSError):
        text = ""
    if text != recorded.read_text(encoding="utf-8", errors="replace"):
        yield f"inputs/{project.lock.name} is not the one in the code of the run"


def _damage(found: tuple[Ingredient, ...]) -> Iterator[str]:
    for each in found:
        yield from (f"{ceiling.name(each)}: {part}" for part in each.remark.split("; ") if DAMAGED in part)


def _decay(record: Record, found: tuple[Ingredient, ...]) -> Iterator[str]:
    for each in found:
        if each.kind == "code" and each.found:
            yield from (part for part in each.remark.split("; ") if part in codes.DECAY)
        if each.kind == "image":
            copies = [place for place in each.found if not place.startswith(held.RECIPE)]
            if len(copies) == 1 and copies[0].startswith(held.HERE):
                yield "the only copy of the image is this engine"
            if each.found and not copies:
                yield "no copy of the image is left: it would have to be built anew"
            if not any(place.startswith(held.RECIPE) for place in each.found):
                yield "the image cannot be built anew: " + (each.remark or "its recipe is not known")
        if each.kind == "data" and datasets.ONLY_HERE in each.remark:
            yield f"dataset {each.name} {datasets.ONLY_HERE}"
    if record.planned.image.floating:
        yield f"a new build may give another image: {', '.join(record.planned.image.floating)} not pinned"


def _gone(record: Record, folder: RunFolder) -> Iterator[str]:
    """What of the folder is not there."""
    if record.ended and record.ended.outputs and not folder.outputs.is_dir():
        yield "its outputs are not here, only their hashes"
    if not folder.output_log.exists():
        yield "its log is not there any more"
