"""ImageSpec (pure) -> Image: everything that decides an image as one hash, and the image of that hash on an engine.

docs/images.md says what the hash is made of, and why.
"""

from __future__ import annotations

import glob
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import field
from msgspec.structs import replace

from repro import base as bases
from repro import builder, context, dockerfile
from repro.context import ContextFile
from repro.dockerfile import Copy
from repro.engine import Engine, ImageFacts
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import BaseRecipe, BuildConfig, ImageConfig, SecretSource, Value
from repro.project import cache_folder, user_name

SCHEMA = 2
DEFAULT_BUILD = BuildConfig()
README = b"What the host gives to this build; no part of the image. See docs/images.md of repro.\n"
SPEC_LABEL = "repro.spec"
BASE_LABEL = "repro.base"
USER_LABEL = "repro.user"  # who built it: whose runs may need it
MANIFEST_LABEL = "repro.manifest"  # what the hash was made of, so that a difference can be explained later
MANIFEST_LABEL_LIMIT = 8 << 10  # bytes; a context of more than some eighty files has none


class ImageSpec(Value, frozen=True, kw_only=True):
    """Everything that decides what is in an image. Equal specs have equal tags."""

    name: str  # where the image is kept: not part of the hash
    variant: str  # what the configuration calls it: not part of the hash
    base: str
    bootstrap: BaseRecipe | None
    dockerfile: str
    requirements: str | None
    declared: tuple[str, ...]  # image.context, as written
    files: tuple[ContextFile, ...]
    build_args: dict[str, str]
    target: str | None
    platform: str
    network: str | None
    pins: dict[str, str] = field(
        default_factory=dict
    )  # image reference -> repo digest that is taken in its place, from repro.lock

    @classmethod
    def read(cls, config: ImageConfig, root: Path, build: BuildConfig = DEFAULT_BUILD) -> ImageSpec:
        """The spec of a configuration, from the files below the project's root; only declared files are looked at.

        Raises:
            BadInputError: a file is missing, cannot be part of a context, or the Dockerfile copies undeclared ones.
        """
        for argument, key in (("BASE_IMAGE", "image.base"), ("REQUIREMENTS", "image.requirements")):
            if argument in config.build_args:  # the base that is recorded would not be the one that is built on
                raise BadInputError(
                    f"image.build_args sets {argument}, which follows from {key}", hints=[f"set {key} instead"]
                )
        spec = cls(
            name=config.name,
            variant=config.variant,
            base=config.base,
            bootstrap=config.bootstrap,
            dockerfile=context.normal(config.dockerfile),
            requirements=None if config.requirements is None else context.normal(config.requirements),
            declared=config.context,
            files=context.read(root, config.dockerfile, config.requirements, config.context),
            build_args=config.build_args,
            target=config.target,
            platform=config.platform,
            network=None if build.network == "default" else build.network,
        )
        check_base(spec)
        check_copies(spec, root)
        return spec

    def manifest(self) -> dict[str, Any]:
        """What the hash covers, with digests in place of contents: the canonical form of the spec.

        What is null or empty is left out, so that a member of a later version changes no hash that does without it.
        """
        members = {
            "schema": SCHEMA,
            "base": self.base,
            "bootstrap": msgspec.to_builtins(self.bootstrap),
            "build_args": self.build_args,
            "dockerfile": self.dockerfile,
            "files": {file.path: file.identity() for file in self.files},
            "network": self.network,
            "pins": self.pins,
            "platform": self.platform,
            "requirements": self.requirements,
            "target": self.target,
        }
        return {name: member for name, member in members.items() if member not in (None, {})}

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON (sorted keys, no spaces) of the manifest, 64 hex digits."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """The manifest as the bytes that are hashed."""
        return msgspec.json.encode(self.manifest(), order="deterministic")

    @property
    def tag(self) -> str:
        """name:first 16 digits of the digest."""
        return f"{self.name}:{self.digest[:16]}"

    @property
    def dockerfile_text(self) -> str:
        """The Dockerfile as the builder gets it."""
        return next(file.content for file in self.files if file.path == self.dockerfile).decode()

    def recipe(self) -> dict[str, str]:
        """The Dockerfile and the requirements by path, as text: what people read of an image."""
        return {file.path: file.content.decode() for file in self.files if file.text}

    def arguments(self, base: str) -> dict[str, str]:
        """The build arguments: the user's, and ours that say which base and which requirements."""
        ours = {"BASE_IMAGE": base}
        if self.requirements:
            ours["REQUIREMENTS"] = self.requirements
        return ours | self.build_args

    @property
    def uses_host(self) -> bool:
        """Whether the Dockerfile takes something from the folder of what the host gives to a build."""
        copies = dockerfile.local_copies(self.dockerfile_text, self.arguments(self.base), self.target)
        return any(context.of_host(source) for copy in copies for source in copy.sources)


class FromHost(Value, frozen=True, kw_only=True):
    """What a build may use and no image keeps, none of it part of the hash."""

    files: dict[str, Path | bytes] = field(default_factory=lambda: {"README": README})  # by their path in `from-host`
    secrets: dict[str, SecretSource] = field(default_factory=dict)  # for `RUN --mount=type=secret,id=NAME`


NOTHING = FromHost()


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


def check_base(spec: ImageSpec) -> None:
    """Refuse a Dockerfile that is not built on `image.base`: the record would name a base that it was not built on.

    Raises:
        BadInputError: with its FROM lines, and what to write.
    """
    wanted = bases.tag_of(spec.bootstrap) if spec.bootstrap else spec.base
    found = dockerfile.bases(spec.dockerfile_text, spec.arguments(wanted), spec.target)
    if wanted not in (base.image for base in found):
        begin = "let it begin with `ARG BASE_IMAGE` and `FROM ${BASE_IMAGE}`"
        raise BadInputError(
            f"{spec.dockerfile} is not built on BASE_IMAGE, so that `image.base` ({spec.base}) would not be true",
            evidence=[f"{spec.dockerfile}:{base.line}: {base.text}" for base in found],
            hints=[f"{begin}; the name goes into the variant's file in conf/image/: `base: {found[-1].image}`"],
        )


def check_copies(spec: ImageSpec, root: Path) -> None:
    """Refuse a Dockerfile that copies what is not in the context, before a builder does so in worse words.

    Raises:
        BadInputError: naming the line, and the key to add.
    """
    problems: list[str] = []
    missing: dict[str, str] = {}  # what to declare -> a remark
    copies = dockerfile.local_copies(spec.dockerfile_text, spec.arguments(spec.base), spec.target)
    for copy in copies:
        for source in copy.sources:
            if (
                "$" not in source
                and not context.of_host(source)
                and not context.holds(spec.files, spec.declared, source)
            ):
                there = source == "." or bool(glob.glob(source, root_dir=root))  # noqa: PTH207 - Path's refuses `a**`
                missing[source] = "" if there else f"{source} does not exist below {root}"
                problems.append(f"{spec.dockerfile}:{copy.line}: {copy.text}")
    _check_host_files_stay_out(spec, copies)
    if missing:
        declared = ", ".join([*spec.declared, *missing])
        raise BadInputError(
            f"the Dockerfile copies files that are not declared: {', '.join(missing)}",
            evidence=[*dict.fromkeys(problems), *filter(None, missing.values())],
            hints=[f"declare them, so that they become part of the image's identity: `image.context: [{declared}]`"],
        )


def _check_host_files_stay_out(spec: ImageSpec, copies: Sequence[Copy]) -> None:
    """What the host gives to a build is not covered by the hash, so no image may keep it."""
    used = any(context.of_host(source) for copy in copies for source in copy.sources)
    takes_all = (".", "*") if used else ()
    kept = [
        f"{spec.dockerfile}:{copy.line}: {copy.text}"
        for copy in copies
        if copy.kept and any(source in takes_all or context.of_host(source) for source in copy.sources)
    ]
    if kept:
        raise BadInputError(
            f"the image would keep files of {context.FROM_HOST}/, which are no part of its identity",
            evidence=kept,
            hints=[
                "use them in an earlier stage, and take what it made: `COPY --from=STAGE`",
                f"or in the step itself, with BuildKit: `RUN --mount=type=bind,source={context.FROM_HOST},target=/mnt`",
            ],
        )


def accepted(spec: ImageSpec, found: ImageFacts | None) -> ImageFacts | None:
    """`found` if it is the image of the spec: a tag can be moved by hand, the label inside cannot."""
    if found is None or found.labels.get(SPEC_LABEL) != spec.digest or not _same_platform(found, spec):
        return None
    return found


def _same_platform(found: ImageFacts, spec: ImageSpec) -> bool:
    return found.platform.split("/")[:2] == spec.platform.split("/")[:2]


def ensure(
    spec: ImageSpec,
    engine: Engine,
    *,
    say: Callable[[str], None],
    build_log: Path | None = None,
    no_cache: bool = False,
    pull: bool = False,
    host: FromHost = NOTHING,
) -> Image:
    """The image of `spec`, built only when the engine has none. Any number of processes may ask: one builds.

    Raises:
        BadInputError: the Dockerfile or what it installs has to change.
        EnvironmentUnfitError: the base cannot be had, or the engine cannot build.
    """
    begun = time.monotonic()
    force = no_cache or pull
    found = None if force else accepted(spec, engine.image(spec.tag))
    if found is None:
        with _one_at_a_time(spec, say):
            found = None if force else accepted(spec, engine.image(spec.tag))  # another process may have built it
            if found is None:
                found = _build(spec, engine, host, say=say, build_log=build_log, no_cache=no_cache, pull=pull)
                return _image(spec, found, built=True, seconds=time.monotonic() - begun)
    return _image(spec, found, built=False, seconds=time.monotonic() - begun)


def look(spec: ImageSpec, engine: Engine) -> Image:
    """The image of `spec` as the engine has it; where it has none, an image without an id."""
    return _image(spec, accepted(spec, engine.image(spec.tag)), built=False, seconds=0.0)


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
    reference, base = bases.resolve(spec.pins.get(spec.base, spec.base), spec.bootstrap, engine, say=say, pull=pull)
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
    }
    if len(manifest := spec.canonical().decode()) <= MANIFEST_LABEL_LIMIT:
        labels[MANIFEST_LABEL] = manifest
    say(f"building {spec.tag}")
    # every reference that the lock pins is replaced in the text that the builder gets; its lines stay where they are
    references = dockerfile.references(spec.dockerfile_text, spec.arguments(reference), spec.target)
    text = dockerfile.pinned(spec.dockerfile_text, references, spec.pins)
    files = [replace(file, content=text.encode()) if file.path == spec.dockerfile else file for file in spec.files]
    request = builder.Request(
        tag=temporary,
        dockerfile=spec.dockerfile,
        text=text,
        context=partial(context.write, files=files, from_host=host.files if spec.uses_host else {}),
        build_args=spec.arguments(reference),
        labels=labels,
        platform=spec.platform,
        target=spec.target,
        network=spec.network,
        no_cache=no_cache,
        secrets=host.secrets,
    )
    builder.build(engine, request, say=say, log=build_log)
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
