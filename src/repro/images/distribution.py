"""An image and its registry: which one is pulled, and what may be pushed. A tag is never moved in silence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from repro.engines import registry
from repro.engines.engine import Engine
from repro.engines.imagefacts import ImageFacts
from repro.errors import BadInputError, EnvironmentUnfitError, RefusedError, ReproError
from repro.image import BASE_LABEL, SPEC_LABEL, USER_LABEL, Image
from repro.recipe.spec import ImageSpec


def remote_tag(spec: ImageSpec) -> str:
    """The name of a spec's image in the registry of the configuration.

    Raises:
        BadInputError: no registry is configured.
    """
    if spec.repository is None:
        raise BadInputError(
            "no registry is configured, and --push and --pull need one",
            hints=["set `image.registry: host[:port][/path]`", "without one: `repro export-image`, `import-image`"],
        )
    return f"{spec.repository}:{spec.digest[:16]}"


def choose(spec: ImageSpec, engine: Engine, *, force: bool, say: Callable[[str], None]) -> str:
    """The repo digest that `--pull` takes: the locked one, or what the registry's tag points to where none is locked.

    Raises:
        RefusedError: the tag points to something else than the locked digest; `force` takes that.
        EnvironmentUnfitError: the registry has no such image, or does not say.
    """
    tag = remote_tag(spec)
    say(f"asking for {tag}")
    found = _there(engine, tag)
    current = f"{spec.repository}@{found}" if found else None
    if spec.pushed and current != spec.pushed and current and not force:
        raise RefusedError(
            f"{tag} was moved: it is not the image that repro.lock names",
            evidence=[f"locked    {spec.pushed}", f"registry  {current}"],
            hints=[
                "`repro rebuild` pulls the locked one where the image is missing, whatever the tag says",
                "`repro rebuild --pull --force` takes the other one and locks it",
            ],
        )
    chosen = current if force and current else spec.pushed or current
    if chosen is None:
        raise registry.NotThereError(
            f"{tag} is not in the registry, and repro.lock names no digest of it",
            hints=["`repro rebuild --push` where it was built", "`repro rebuild` builds it here"],
        )
    return chosen


def push(spec: ImageSpec, made: Image, engine: Engine, *, force: bool, say: Callable[[str], None]) -> Image:
    """The image, after the registry has it under the spec's tag; nothing is sent where it has the same one.

    Raises:
        RefusedError: the tag has another image there; `force` replaces it.
        EnvironmentUnfitError: not allowed, or the registry cannot be reached.
    """
    tag = remote_tag(spec)
    say(f"asking for {tag}")
    there = _there(engine, tag)
    if there and not force:
        return _taken(spec, made, engine, f"{spec.repository}@{there}", say)
    with _tagged(engine, made.id, tag):
        digest = registry.push(engine, tag, say)
    now = _there(engine, tag)
    if now != digest:
        raise RefusedError(
            f"somebody else pushed {tag} at the same time",
            evidence=[f"here      {digest}", f"registry  {now}"],
            hints=["`repro rebuild --pull` takes theirs"],
        )
    return msgspec.structs.replace(made, digest=f"{spec.repository}@{digest}")


def _there(engine: Engine, tag: str) -> str | None:
    """The digest that a tag has in its registry; None where it has no such tag."""
    try:
        return registry.look(engine, tag)
    except registry.NotThereError:
        return None


@contextmanager
def _tagged(engine: Engine, image: str, tag: str) -> Iterator[None]:
    """A tag for the length of a push. It stays when that succeeds: the containerd store keeps the digest with it."""
    before = engine.image(tag)
    engine.tag(image, tag)
    try:
        yield
    except BaseException:
        with suppress(ReproError):
            if before:
                engine.tag(before.id, tag)
            else:
                engine.remove_image(tag)
        raise


def _taken(spec: ImageSpec, made: Image, engine: Engine, remote: str, say: Callable[[str], None]) -> Image:
    """The image that the registry has already, if it is the same one: pushed before, or from an engine like ours.

    A manifest's digest alone does not tell, since engines compress the same layers differently.
    """
    ours = engine.image(made.id)
    if ours is None:
        raise EnvironmentUnfitError(
            f"{made.tag} is not on the engine any more",
            evidence=[f"no image {made.id}: somebody removed it meanwhile"],
            hints=["repeat the command"],
        )
    if remote in ours.digests:
        say("the registry has it already")
        return msgspec.structs.replace(made, digest=remote)
    held = engine.image(remote)
    theirs = held or registry.pull(engine, remote, say)
    if _content(theirs) != _content(ours):
        if held is None:
            engine.remove_image(remote)
        raise RefusedError(
            f"{remote_tag(spec)} has another image in the registry",
            evidence=[f"registry  {_described(theirs, remote)}", f"here      {_described(ours, made.digest)}"],
            hints=[
                "take the registry's: `repro rebuild --pull`",
                "replace it: `repro rebuild --push --force`; who locked it still gets it by its digest",
            ],
        )
    engine.tag(theirs.id, spec.tag)  # where its id is another one, digest and id have to be of one image
    return msgspec.structs.replace(
        made,
        id=theirs.id,
        digest=remote,
        base_resolved=theirs.labels.get(BASE_LABEL, ""),
        manifest=theirs.manifest,
        config=theirs.config,
        layers=theirs.layers,
        content=theirs.content,
    )


def _content(image: ImageFacts) -> tuple[object, ...]:
    return image.labels.get(SPEC_LABEL), image.platform, image.layers, image.env


def _described(image: ImageFacts, digest: str | None) -> str:
    by = f", built by {image.labels[USER_LABEL]}" if USER_LABEL in image.labels else ""
    return f"{digest or 'never pushed'}  (id {image.id}, created {image.created[:19]}{by})"
