"""ImageSpec -> Image: the image of a spec on an engine, built when it is missing."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from repro import assembly, builder, context, inputs
from repro import base as bases
from repro.answers import ImageFacts
from repro.assembly import FromHost
from repro.engine import Engine
from repro.errors import EnvironmentUnfitError
from repro.experiment import Value
from repro.project import cache_folder, user_name
from repro.spec import ImageSpec

SPEC_LABEL = "repro.spec"
BASE_LABEL = "repro.base"
USER_LABEL = "repro.user"  # who built it: whose runs may need it
MANIFEST_LABEL = "repro.manifest"  # what the hash was made of, so that a difference can be explained later


Gather = Callable[[], FromHost]  # called only when there is something to build


def nothing() -> FromHost:
    """For builds that need nothing of the host."""
    return FromHost(files={}, secrets={})


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
    seconds: float


def accepted(spec: ImageSpec, found: ImageFacts | None) -> ImageFacts | None:
    """`found` if it is the image of the spec: a tag can be moved by hand, the label inside cannot."""
    if found is None or found.labels.get(SPEC_LABEL) != spec.digest or not _same_platform(found, spec):
        return None
    return found


def _same_platform(found: ImageFacts, spec: ImageSpec) -> bool:
    return found.platform.split("/")[:2] == spec.platform.split("/")[:2]


def present(spec: ImageSpec, look: Callable[[str], ImageFacts | None]) -> ImageFacts | None:
    """The image of the spec, if one is there and stands on what the lock names; `look` asks the engine for one."""
    found = accepted(spec, look(spec.tag))
    wanted = spec.expected.get(spec.base_reference)
    if found is not None and wanted is not None and found.labels.get(BASE_LABEL) != wanted and look(wanted) is not None:
        return None
    return found


def ensure(
    spec: ImageSpec,
    engine: Engine,
    *,
    say: Callable[[str], None],
    build_log: Path | None = None,
    no_cache: bool = False,
    pull: bool = False,
    gather: Gather = nothing,
) -> Image:
    """The image of `spec`, built only when the engine has none. Any number of processes may ask: one builds.

    Raises:
        BadInputError: the Dockerfile or what it installs has to change.
        EnvironmentUnfitError: the base cannot be had, or the engine cannot build.
    """
    begun = time.monotonic()
    force = no_cache or pull
    found = None if force else present(spec, engine.image)
    if found is None:
        with _one_at_a_time(spec, say):
            found = None if force else present(spec, engine.image)  # another process may have built it
            if found is None:
                found = _build(spec, engine, gather(), say=say, build_log=build_log, no_cache=no_cache, pull=pull)
                return _image(spec, found, built=True, seconds=time.monotonic() - begun)
    return _image(spec, found, built=False, seconds=time.monotonic() - begun)


def look(spec: ImageSpec, engine: Engine) -> Image:
    """The image of `spec` as the engine has it; where it has none, an image without an id."""
    return _image(spec, present(spec, engine.image), built=False, seconds=0.0)


@contextmanager
def _one_at_a_time(spec: ImageSpec, say: Callable[[str], None]) -> Iterator[None]:
    import filelock

    folder = cache_folder() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"image-{spec.digest[:32]}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            say(f"another process builds {spec.tag}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise EnvironmentUnfitError(
            f"{folder} cannot be written", evidence=[str(error)], hints=["REPRO_CACHE names another folder"]
        ) from error
    try:
        yield
    finally:
        lock.release()


def _build(
    spec: ImageSpec,
    engine: Engine,
    host: FromHost,
    *,
    say: Callable[[str], None],
    build_log: Path | None,
    no_cache: bool,
    pull: bool,
) -> ImageFacts:
    builder.check(engine, spec.dockerfile_text, spec.dockerfile)
    substitutes = _as_locked(spec, engine, say)
    pinned = substitutes.get(spec.base_reference) or spec.pins.get(spec.base_reference)
    recipe = None if pinned else spec.bootstrap
    reference, base = bases.resolve(pinned or spec.base, recipe, engine, say=say, pull=pull and not pinned)
    if spec.bootstrap and not _same_platform(base, spec):
        raise EnvironmentUnfitError(
            f"the base that is made here is for {base.platform}, and {spec.platform} is asked for",
            hints=[f"`image.platform={base.platform}`, or a base from a registry"],
        )
    # under another name until it is whole and checked: a build that fails or is killed leaves no tag of a spec
    temporary = f"{spec.name}:building-{secrets.token_hex(6)}"
    labels = {
        USER_LABEL: user_name(),
        SPEC_LABEL: spec.digest,
        BASE_LABEL: bases.identity(spec.base, base),
        MANIFEST_LABEL: inputs.label(inputs.of_spec(spec)),
    }
    say(f"building {spec.tag}")
    files = assembly.files(spec, substitutes)
    request = builder.Request(
        tag=temporary,
        dockerfile=spec.dockerfile,
        text=next(file.content for file in files if file.path == spec.dockerfile).decode(),
        context=partial(context.write, files=files, from_host=host.files if spec.uses_host else {}),
        build_args=spec.arguments(reference),
        labels=labels,
        platform=spec.platform,
        target=spec.target,
        network=spec.network,
        no_cache=no_cache,
        secrets=host.secrets,
    )
    builder.build(engine, request, say=say, log=build_log, masked=assembly.mask(host.secrets))
    try:
        found = accepted(spec, engine.image(temporary))
        if found is None:
            raise EnvironmentUnfitError(
                f"the engine built something else than {spec.tag}",
                evidence=[f"label {SPEC_LABEL} or platform of {temporary} is not what was asked for"],
                hints=["`repro rebuild --no-cache`; does the Dockerfile set the label itself?"],
            )
        engine.tag(temporary, spec.tag)
    finally:
        if engine.image(temporary):
            engine.remove_image(temporary)
    tagged = engine.image(spec.tag)
    assert tagged is not None  # noqa: S101 - it was tagged two lines above
    return tagged


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


def _image(spec: ImageSpec, found: ImageFacts | None, *, built: bool, seconds: float) -> Image:
    return Image(
        variant=spec.variant,
        tag=spec.tag,
        id=found.id if found else "",
        spec=spec.digest,
        base=spec.base,
        base_resolved=found.labels.get(BASE_LABEL, "") if found else "",
        platform=found.platform if found else spec.platform,
        digest=next(iter(found.digests), None) if found else None,
        built=built,
        seconds=seconds,
    )
