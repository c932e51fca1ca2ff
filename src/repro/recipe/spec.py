"""ImageSpec: everything that decides an image, as one value with one hash; pure, but for reading the files.

docs/image-identity.md says what the hash is made of, and why.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import field

from repro.build import context, dockerfile
from repro.build.context import ContextFile
from repro.build.dockerfile import Copy, Reference
from repro.engines import registry
from repro.errors import BadInputError
from repro.experiment import BaseRecipe, BuildConfig, ImageConfig, Value
from repro.recipe import base as bases
from repro.recipe.pylock import Target

SCHEMA = 2
DEFAULT_BUILD = BuildConfig()


class LockedPackages(Value, frozen=True, kw_only=True):
    """The Python packages that repro.lock pins, in place of the requirements."""

    name: str  # of the file
    content: bytes  # of the file, a pylock.toml
    target: Target


class ImageSpec(Value, frozen=True, kw_only=True):
    """Everything that decides what is in an image. Equal specs have equal tags."""

    name: str  # where the image is kept: not part of the hash
    variant: str  # what the configuration calls it: not part of the hash
    registry: str | None = None  # where it is pushed to and pulled from: not part of the hash
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
    pins: dict[str, str] = field(default_factory=dict)  # reference -> repo digest in its place, from repro.lock
    packages: LockedPackages | None = None  # from repro.lock
    expected: dict[str, str] = field(
        default_factory=dict
    )  # reference -> id of an image that no registry has: not hashed
    pushed: str | None = None  # repo digest that repro.lock names for this very spec: not hashed

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
            registry=registry.check(config.registry),
            base=config.base,
            bootstrap=config.bootstrap,
            dockerfile=context.normal(config.dockerfile),
            requirements=None if config.requirements is None else context.normal(config.requirements),
            declared=config.context,
            files=context.read(root, config.dockerfile, config.requirements, config.context),
            build_args=config.build_args,
            target=config.target,
            platform=one_platform(config.platform),
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
            "packages": self._locked(),
            "pins": self.pins,
            "platform": self.platform,
            "requirements": self.requirements,
            "target": self.target,
        }
        return {name: member for name, member in members.items() if member not in (None, {})}

    def _locked(self) -> dict[str, str] | None:
        if self.packages is None:
            return None
        sha256 = hashlib.sha256(self.packages.content).hexdigest()
        return {"libc": self.packages.target.libc, "python": self.packages.target.python, "sha256": sha256}

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
    def repository(self) -> str | None:
        """Its name in the registry; None without a registry."""
        return f"{self.registry}/{self.name}" if self.registry else None

    @property
    def dockerfile_text(self) -> str:
        """The Dockerfile as the builder gets it."""
        return next(file.content for file in self.files if file.path == self.dockerfile).decode()

    def references(self) -> tuple[Reference, ...]:
        """The images from outside that its build takes something from."""
        return dockerfile.references(self.dockerfile_text, self.arguments(self.base_reference), self.target)

    @property
    def base_reference(self) -> str:
        """What the Dockerfile gets as BASE_IMAGE when nothing is pinned."""
        return bases.tag_of(self.bootstrap) if self.bootstrap else self.base

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


def one_platform(written: str) -> str:
    """The one spelling of a platform, as engines understand it: linux/arm64 for Linux/aarch64/v8."""
    system, _, machine = written.strip().lower().partition("/")
    machine, _, version = machine.partition("/")
    machine = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}.get(machine, machine)
    if (machine, version) == ("arm", ""):
        version = "v7"
    elif (machine, version) in (("arm64", "v8"), ("amd64", "v1")):
        version = ""
    return "/".join(filter(None, (system, machine, version)))


def check_base(spec: ImageSpec) -> None:
    """Refuse a Dockerfile that is not built on `image.base`: the record would name a base that it was not built on.

    Raises:
        BadInputError: with its FROM lines, and what to write.
    """
    wanted = spec.base_reference
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
    kept = [
        f"{spec.dockerfile}:{copy.line}: {copy.text}"
        for copy in copies
        if (copy.kept and any(map(context.of_host, copy.sources)))
        or (used and copy.copies and {".", "*"} & set(copy.sources))  # a later stage may take it from there
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
