"""The image of a run in a registry: pushed under a name of its own, found again by its digest."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import msgspec

from repro.engines import registry
from repro.engines.engine import Engine
from repro.engines.imagefacts import ImageFacts
from repro.errors import EnvironmentUnfitError, ReproError
from repro.experiment import Value
from repro.record import ImageUsed, Record, RunFolder, write_atomic
from repro.sharing.remote import Say

RepoDigest = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}$")]


class Shared(Value, frozen=True, kw_only=True):
    """shared.json: where else the parts of a run are. It is beside the record, which stays as it was."""

    image: RepoDigest | None = None


def shared(folder: RunFolder) -> Shared:
    """Where else the parts of this run are, as far as somebody noted it."""
    try:
        return msgspec.json.decode((folder.path / "shared.json").read_bytes(), type=Shared)
    except (OSError, msgspec.MsgspecError):
        return Shared()


def note(folder: RunFolder, image: str) -> None:
    """Remember the repo digest that a registry gave the image of a run."""
    write_atomic(folder.path / "shared.json", msgspec.json.encode(Shared(image=image)) + b"\n")


def digests(record: Record, folder: RunFolder) -> tuple[str, ...]:
    """The repo digests that the image of a run may be pulled by, the surest first."""
    found = (shared(folder).image, record.planned.image.digest)
    return tuple(dict.fromkeys(each for each in found if each))


def located(record: Record, folder: RunFolder) -> ImageUsed:
    """The image of a run, with the repo digest that it may be pulled by: also one that it got after the run."""
    return msgspec.structs.replace(record.planned.image, digest=next(iter(digests(record, folder)), None))


def repository(record: Record) -> str | None:
    """The name of the run's image in the registry of its configuration; None where it has none."""
    configured: dict[str, Any] = record.planned.config.get("image") or {}
    host, name = configured.get("registry"), configured.get("name")
    return f"{registry.check(host)}/{name}" if host and name else None


def push(record: Record, name: str, engine: Engine, say: Say) -> str | None:
    """The repo digest of the run's image below `name`, after the registry has it; None: no engine has the image.

    Raises:
        EnvironmentUnfitError: not allowed, or the registry cannot be reached.
    """
    used = record.planned.image
    ours = engine.image(used.id)
    if ours is None:
        return None
    tag = f"{name}:{used.spec[:16]}"
    there = _there(engine, tag)
    if there and not _same(ours, f"{name}@{there}"):  # of another build: its tag is not ours to move
        tag = f"{tag}-{used.id.removeprefix('sha256:')[:12]}"
        there = _there(engine, tag)
    if there and _same(ours, f"{name}@{there}"):
        say("the registry has it already")
        return f"{name}@{there}"
    engine.tag(ours.id, tag)
    try:
        return f"{name}@{registry.push(engine, tag, say)}"
    except BaseException:
        with suppress(ReproError):
            engine.remove_image(tag)
        raise


def pull(record: Record, folder: RunFolder, engine: Engine, say: Say) -> ImageFacts:
    """The image of a run on this engine, pulled by digest unless it is there.

    Raises:
        EnvironmentUnfitError: no registry is known to have it, or what one has is another image.
    """
    used, failures = record.planned.image, []
    if found := engine.image(used.id):
        return found
    for digest in digests(record, folder):
        try:
            pulled = engine.image(digest) or registry.pull(engine, digest, say)
        except EnvironmentUnfitError as error:
            failures += [error.what, *error.evidence]
            continue
        if is_it(used, pulled):
            return pulled
        failures.append(f"{digest} is another image: {pulled.id}, content {pulled.content}")
    raise EnvironmentUnfitError(
        f"the image of run {record.planned.run} cannot be pulled",
        evidence=failures or [f"{used.tag}, {used.id}: no registry is known to have it"],
        hints=["`repro push RUN` where the image is, with `image.registry` in its configuration"],
    )


def is_it(used: ImageUsed, found: ImageFacts) -> bool:
    """Whether an image is the recorded one. Its id is another one in another kind of store; its content is not."""
    return used.id in (found.id, found.config) or (bool(used.content) and used.content == found.content)


def _there(engine: Engine, tag: str) -> str | None:
    try:
        return registry.look(engine, tag)
    except registry.NotThereError:
        return None


def _same(ours: ImageFacts, digest: str) -> bool:
    return digest in ours.digests
