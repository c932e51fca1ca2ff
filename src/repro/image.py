"""ImageSpec -> Image: the image of a spec on an engine, built when it is missing."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec

from repro.build import builder, context
from repro.engines import registry, repodigest
from repro.engines.engine import Engine
from repro.engines.imagefacts import ImageFacts
from repro.errors import EngineUnreachableError, EnvironmentUnfitError
from repro.experiment import Value
from repro.project import cache_folder, user_name
from repro.recipe import assembly, inputs
from repro.recipe import base as bases
from repro.recipe.assembly import FromHost
from repro.recipe.spec import ImageSpec

SPEC_LABEL = "repro.spec"
BASE_LABEL = "repro.base"
TAKEN_LABEL = "repro.taken"  # reference -> id, of a `COPY --from=` whose image no registry has
USER_LABEL = "repro.user"  # who built it: whose runs may need it
MANIFEST_LABEL = "repro.manifest"  # what the hash was made of, so that a difference can be explained later
BUILD_HERE = "`repro rebuild --no-pull` builds it here"


Gather = Callable[[], FromHost]  # called only when there is something to build


class Image(Value, frozen=True, kw_only=True):
    """What an engine holds for a spec."""

    variant: str
    tag: str
    id: str
    spec: str
    base: str  # as asked for
    base_resolved: str  # repo digest where there is one, else image id
    platform: str
    digest: str | None  # a repo digest; only images that a registry has seen have one
    built: bool
    pulled: bool = False
    seconds: float
    manifest: str | None = None  # digest of the platform's manifest, where the engine keeps one
    config: str | None = None  # digest of the configuration, where the engine tells
    layers: tuple[str, ...] = ()  # diff ids
    content: str = ""  # one sha256 over the diff ids

    @property
    def origin(self) -> str:
        """Where it came from just now."""
        return "built" if self.built else "pulled" if self.pulled else "present"


def accepted(spec: ImageSpec, found: ImageFacts | None) -> ImageFacts | None:
    """`found` if it is the image of the spec: a tag can be moved by hand, the label inside cannot."""
    if found is None or found.labels.get(SPEC_LABEL) != spec.digest or not _same_platform(found, spec):
        return None
    return found


def own_tag(found: ImageFacts) -> str | None:
    """The tag that `repro` gave an image here; the one for its registry, and the user's own, do not count."""
    version = f":{found.labels.get(SPEC_LABEL, '')[:16]}"
    tags = [tag for tag in found.tags if len(version) > 1 and tag.endswith(version)]
    return min(tags, key=lambda tag: (tag.count("/"), tag), default=None)


def _same_platform(found: ImageFacts, spec: ImageSpec) -> bool:
    return found.platform.split("/")[:2] == spec.platform.split("/")[:2]


def present(spec: ImageSpec, look: Callable[[str], ImageFacts | None]) -> ImageFacts | None:
    """The image of the spec, if one is there and stands on what the lock names; `look` asks the engine for one."""
    found = accepted(spec, look(spec.tag))
    if found is None or any(look(wanted) is not None for _, _, wanted in moved(spec, found)):
        return None
    return found


def moved(spec: ImageSpec, found: ImageFacts) -> list[tuple[str, str | None, str]]:
    """What the lock names by id and an image was not made from: the reference, what was taken, what is wanted."""
    used = {**_taken(found), spec.base_reference: found.labels.get(BASE_LABEL)}
    pairs = ((reference, used.get(reference), wanted) for reference, wanted in spec.expected.items())
    return [each for each in pairs if each[1] != each[2]]


def _taken(found: ImageFacts) -> dict[str, str]:
    """What an image took from others that the lock names by id."""
    try:
        return msgspec.json.decode(found.labels.get(TAKEN_LABEL, "{}"), type=dict[str, str])
    except msgspec.MsgspecError:  # a label of somebody else's
        return {}


def ensure(
    spec: ImageSpec,
    engine: Engine,
    *,
    say: Callable[[str], None],
    build_log: Path | None = None,
    no_cache: bool = False,
    pull_base: bool = False,
    gather: Gather = assembly.nothing,
) -> Image:
    """The image of `spec`, built only when the engine has none. Any number of processes may ask: one builds.

    Where the lock names a pushed image of the spec, that is pulled in place of a build that nobody asked for.

    Raises:
        BadInputError: the Dockerfile or what it installs has to change.
        EnvironmentUnfitError: the base or the digest cannot be had, or the engine cannot build.
    """
    begun = time.monotonic()
    force = no_cache or pull_base
    built_now = pulled = False
    found = None if force else present(spec, engine.image)
    if found is None:
        with one_at_a_time(spec, say):
            found = None if force else present(spec, engine.image)  # another process may have made it
            if found is None and spec.pushed and not force:
                found, pulled = _pull(spec, engine, spec.pushed, say=say), True
            elif found is None:
                how = How(no_cache=no_cache, pull_base=pull_base)
                found, built_now = _build(spec, engine, gather(), how, say=say, build_log=build_log), True
    return _image(spec, found, built=built_now, pulled=pulled, seconds=time.monotonic() - begun)


def pull(spec: ImageSpec, engine: Engine, digest: str, *, say: Callable[[str], None]) -> Image:
    """The image of `spec` as its registry has it under this repo digest; whatever had the tag here loses it.

    Raises:
        EnvironmentUnfitError: it cannot be had, or is not an image of the spec.
    """
    begun = time.monotonic()
    with one_at_a_time(spec, say):
        before = engine.image(spec.tag)
        found = _pull(spec, engine, digest, say=say)
    pulled = before is None or before.id != found.id
    made = _image(spec, found, built=False, pulled=pulled, seconds=time.monotonic() - begun)
    return msgspec.structs.replace(made, digest=digest)  # it may have several


def look(spec: ImageSpec, engine: Engine) -> Image:
    """The image of `spec` as the engine has it; where it has none, an image without an id."""
    return _image(spec, present(spec, engine.image), built=False, pulled=False, seconds=0.0)


@contextmanager
def one_at_a_time(spec: ImageSpec, say: Callable[[str], None]) -> Iterator[None]:
    """No other process builds the image of the spec meanwhile, and none takes it for left over."""
    import filelock

    folder = cache_folder() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"image-{spec.digest[:32]}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            say(f"another process makes {spec.tag}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise EnvironmentUnfitError(
            f"{folder} cannot be written", evidence=[str(error)], hints=["REPRO_CACHE names another folder"]
        ) from error
    try:
        yield
    finally:
        lock.release()


class How(Value, frozen=True, kw_only=True):
    """How a build is done; nothing of it is part of the hash."""

    no_cache: bool = False
    pull_base: bool = False
    trial: bool = False  # to look at, and to be forgotten: no layer of it is to be used again
    varied: bool = False  # with another host name and so on: see `builder.variations`


def _pull(spec: ImageSpec, engine: Engine, digest: str, *, say: Callable[[str], None]) -> ImageFacts:
    there = engine.image(digest)
    found = there or registry.pull(engine, digest, say, hints=[BUILD_HERE])
    if accepted(spec, found) is None:
        if there is None:
            engine.remove_image(digest)
        raise EnvironmentUnfitError(
            f"{digest} is not the image of {spec.tag}",
            evidence=[
                f"label {SPEC_LABEL}: {found.labels.get(SPEC_LABEL, 'none')}, wanted {spec.digest}",
                f"platform: {found.platform}, wanted {spec.platform}",
            ],
            hints=["push the right one from where it was built: `repro rebuild --push --force`", BUILD_HERE],
        )
    return _tagged(spec, engine, found)


def _tagged(spec: ImageSpec, engine: Engine, found: ImageFacts) -> ImageFacts:
    engine.tag(found.id, spec.tag)
    tagged = engine.image(spec.tag)
    assert tagged is not None  # noqa: S101 - it was tagged a line above
    return tagged


def _build(
    spec: ImageSpec, engine: Engine, host: FromHost, how: How, *, say: Callable[[str], None], build_log: Path | None
) -> ImageFacts:
    with built(spec, engine, host, how, say=say, build_log=build_log) as found:
        return _tagged(spec, engine, found)


@contextmanager
def built(
    spec: ImageSpec, engine: Engine, host: FromHost, how: How, *, say: Callable[[str], None], build_log: Path | None
) -> Iterator[ImageFacts]:
    """What a build gives, under another name than the spec's, which is gone at the end of the block.

    So that only what is whole and checked gets the spec's tag: a build that fails or is killed leaves none.
    """
    request = _request(spec, engine, host, how, say)
    try:
        builder.build(engine, request, say=say, log=build_log, masked=assembly.mask(host.secrets))
        yield _checked(spec, engine, request.tag)
    except EngineUnreachableError:
        raise  # nobody is there to remove it from
    except BaseException:
        _remove(engine, request.tag)
        raise
    else:
        _remove(engine, request.tag)


def _checked(spec: ImageSpec, engine: Engine, tag: str) -> ImageFacts:
    found = accepted(spec, engine.image(tag))
    if found is None:
        raise EnvironmentUnfitError(
            f"the engine built something else than {spec.tag}",
            evidence=[f"label {SPEC_LABEL} or platform of {tag} is not what was asked for"],
            hints=["`repro rebuild --no-cache`; does the Dockerfile set the label itself?"],
        )
    return found


def _remove(engine: Engine, tag: str) -> None:
    if engine.image(tag):
        engine.remove_image(tag)


def _request(spec: ImageSpec, engine: Engine, host: FromHost, how: How, say: Callable[[str], None]) -> builder.Request:
    builder.check(engine, spec.dockerfile_text, spec.dockerfile)
    substitutes = _as_locked(spec, engine, say)
    pinned = substitutes.get(spec.base_reference) or spec.pins.get(spec.base_reference)
    if pinned and how.pull_base:
        say("repro.lock pins the base, so nobody is asked for a newer one: `repro lock --upgrade` does")
    recipe = None if pinned else spec.bootstrap
    reference, base = bases.resolve(pinned or spec.base, recipe, engine, say=say, pull=how.pull_base and not pinned)
    if spec.bootstrap and not _same_platform(base, spec):
        raise EnvironmentUnfitError(
            f"the base that is made here is for {base.platform}, and {spec.platform} is asked for",
            hints=[f"`image.platform={base.platform}`, or a base from a registry"],
        )
    labels = {
        USER_LABEL: user_name(),
        SPEC_LABEL: spec.digest,
        BASE_LABEL: bases.identity(spec.base, base),
        MANIFEST_LABEL: inputs.label(inputs.of_spec(spec)),
    }
    others = [reference for reference in spec.expected if reference != spec.base_reference]
    taken = {each: found.id for each in others if (found := engine.image(substitutes.get(each, each)))}
    if taken:
        labels[TAKEN_LABEL] = msgspec.json.encode(taken, order="deterministic").decode()
    say(f"building {spec.tag}")
    files = assembly.files(spec, substitutes)
    return builder.Request(
        tag=f"{spec.name}:building-{secrets.token_hex(6)}",
        dockerfile=spec.dockerfile,
        text=next(file.content for file in files if file.path == spec.dockerfile).decode(),
        context=partial(context.write, files=files, from_host=host.files if spec.uses_host else {}),
        build_args=spec.arguments(reference),
        labels=labels,
        platform=spec.platform,
        target=spec.target,
        network=spec.network,
        no_cache=how.no_cache,
        secrets=host.secrets,
        varied=how.varied,
        traceless=how.trial,
    )


def _as_locked(spec: ImageSpec, engine: Engine, say: Callable[[str], None]) -> dict[str, str]:
    """Names for what repro.lock names by id, where the reference itself leads to another image by now."""
    found = {}
    for reference, wanted in spec.expected.items():
        now = engine.image(reference)
        if now is not None and now.id == wanted:
            continue
        if engine.image(wanted) is None:
            say(f"{reference} is not the image that repro.lock names: this engine does not hold {wanted}")
        else:
            found[reference] = f"repro-pin:{wanted.removeprefix('sha256:')[:16]}"  # builders take names alone
            engine.tag(wanted, found[reference])
    return found


def _image(spec: ImageSpec, found: ImageFacts | None, *, built: bool, pulled: bool, seconds: float) -> Image:
    return Image(
        variant=spec.variant,
        tag=spec.tag,
        id=found.id if found else "",
        spec=spec.digest,
        base=spec.base,
        base_resolved=found.labels.get(BASE_LABEL, "") if found else "",
        platform=found.platform if found else spec.platform,
        digest=_digest(spec, found) if found else None,
        built=built,
        pulled=pulled,
        seconds=seconds,
        manifest=found.manifest if found else None,
        config=found.config if found else None,
        layers=found.layers if found else (),
        content=found.content if found else "",
    )


def _digest(spec: ImageSpec, found: ImageFacts) -> str | None:
    """Of several, the one that the lock names; else one of the registry's, if there is a registry."""
    if spec.pushed in found.digests:
        return spec.pushed
    if spec.repository:
        return bases.repo_digest(spec.repository, found)
    return next(iter(repodigest.known(found.id, found.digests)), None)
