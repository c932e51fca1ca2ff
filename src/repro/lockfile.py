"""repro.lock: what names alone leave open, resolved by `repro lock`, and what image came out; for each variant.

`loads`, `dumps`, `stale` and `conflicts` are pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from repro.build import context
from repro.errors import BadInputError, EnvironmentUnfitError, RefusedError
from repro.experiment import BuildConfig, ImageConfig, Value
from repro.image import Image
from repro.project import Project, cache_folder
from repro.recipe.pylock import Target
from repro.recipe.spec import ImageSpec, LockedPackages
from repro.record import write_atomic

VERSION = 2
HEADER = "# Written by `repro lock` and `repro rebuild`; commit it. `repro run --locked` refuses what does not match.\n"


class Resolved(Value, frozen=True, kw_only=True):
    """What `repro lock` found for a variant: builds take it, as long as what was resolved is still asked for."""

    as_of: str  # RFC 3339: of what was published later, nothing was taken
    platform: str
    images: dict[str, str] = msgspec.field(default_factory=dict)  # reference -> repo digest, or id
    requirements: dict[str, str] = msgspec.field(default_factory=dict)  # what was resolved: path -> sha256
    python: str | None = None  # 3.11.2; None: the variant has no requirements, like the next three
    libc: str | None = None  # glibc 2.36
    pylock: str | None = None  # file beside repro.lock with every package and hash (PEP 751)
    pylock_sha256: str | None = None
    python_asked: str | None = None  # with --python, in place of the base's own


class LockedImage(Value, frozen=True, kw_only=True):
    """The image that was built for a variant."""

    spec: str
    base: str  # as asked for
    base_resolved: str  # repo digest or image id
    id: str
    platform: str
    digest: str | None = None  # a repo digest, of an image that was pushed or pulled


class Lock(Value, frozen=True, kw_only=True):
    """The whole file."""

    images: dict[str, LockedImage] = msgspec.field(default_factory=dict)
    resolved: dict[str, Resolved] = msgspec.field(default_factory=dict)


def loads(text: str, name: str = "repro.lock") -> Lock:
    """The lock that `text` holds.

    Raises:
        BadInputError: not TOML, of another version, or with other keys.
    """
    try:
        raw = msgspec.toml.decode(text)
        version = raw.pop("lock-version", None)
        if version != VERSION:
            raise BadInputError(
                f"{name} has lock-version {version}, and this repro reads {VERSION}",
                hints=["update repro, or remove the file and write it anew with `repro lock` and `repro rebuild`"],
            )
        return msgspec.convert({"images": raw.pop("image", {}), **raw}, Lock)
    except msgspec.MsgspecError as error:
        raise BadInputError(
            f"{name} cannot be read",
            evidence=[str(error)],
            hints=[
                "correct it or take it from git again; or remove it: `repro lock` and `repro rebuild` write it anew"
            ],
        ) from error


def dumps(lock: Lock) -> str:
    """The text of a lock: sorted, so that equal locks are equal bytes."""
    tables: dict[str, Mapping[str, Value]] = {"resolved": lock.resolved, "image": lock.images}
    kept = {name: {key: _plain(table[key]) for key in sorted(table)} for name, table in tables.items() if table}
    return HEADER + msgspec.toml.encode({"lock-version": VERSION, **kept}).decode()


def _plain(entry: Value) -> dict[str, Any]:
    """For TOML, which has no null; tables of names sorted."""
    members = msgspec.to_builtins(entry, order="sorted")
    return {name: members[name] for name in entry.__struct_fields__ if members[name] not in (None, {})}


def read(path: Path) -> Lock:
    """The lock in a file; an empty one when there is no file.

    Raises:
        BadInputError: as `loads`.
    """
    try:
        return loads(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return Lock()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} cannot be read", evidence=[str(error)]) from error


def note(path: Path, image: Image) -> None:
    """Write down an image that was built, as `change`."""
    change(path, lambda lock: updated(lock, image))


def change(path: Path, changed: Callable[[Lock], Lock]) -> None:
    """Replace the file when that changes it. One process at a time.

    Raises:
        BadInputError, EnvironmentUnfitError: the file there cannot be read, or not be written.
    """
    import filelock

    folder = cache_folder() / "locks"
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"lockfile-{name}.lock"):
            before = read(path)
            after = changed(before)
            if after != before or not path.exists():
                write_atomic(path, dumps(after).encode())
    except OSError as error:
        raise EnvironmentUnfitError(f"{path} cannot be written", evidence=[str(error)]) from error


def updated(lock: Lock, image: Image) -> Lock:
    """The lock with this image for its variant."""
    entry = LockedImage(
        spec=image.spec,
        base=image.base,
        base_resolved=image.base_resolved,
        id=image.id,
        platform=image.platform,
        digest=_kept_digest(lock.images.get(image.variant), image),
    )
    return msgspec.structs.replace(lock, images={**lock.images, image.variant: entry})


def _kept_digest(locked: LockedImage | None, image: Image) -> str | None:
    """The locked digest where it is of this very image: an engine that got the image as a file does not know it."""
    if locked and locked.digest and (_manifest(locked.digest) == _manifest(image.digest) or locked.id == image.id):
        return locked.digest
    return image.digest


def _manifest(digest: str | None) -> str:
    """A repo digest without the name, since one registry may have several."""
    return digest.partition("@")[2] if digest else ""


def pushed(lock: Lock, spec: ImageSpec) -> str | None:
    """What the image of `spec` is pulled as where it is missing: the digest in the lock, at the registry of today."""
    locked = lock.images.get(spec.variant)
    if spec.repository is None or locked is None or locked.spec != spec.digest or locked.digest is None:
        return None
    wanted = spec.expected.get(spec.base_reference)
    if wanted is not None and locked.base_resolved != wanted:  # it stands on a base that was locked before
        return None
    return f"{spec.repository}@{_manifest(locked.digest)}"


def read_spec(project: Project, wanted: ImageConfig, build: BuildConfig) -> tuple[ImageSpec, tuple[str, ...]]:
    """The spec of a configuration with what the project's lock pins, and why the lock does not count where it is stale.

    Raises:
        BadInputError: as `ImageSpec.read` and `read`.
    """
    lock = read(project.lock)
    spec, found = applied(ImageSpec.read(wanted, project.root, build), lock, project.root)
    return msgspec.structs.replace(spec, pushed=pushed(lock, spec)), found


def remark(stale: Sequence[str]) -> str:
    """What to tell a user whose lock does not count."""
    return f"repro.lock is stale and does not count: {stale[0]}; `repro lock` resolves anew"


def with_resolved(lock: Lock, variant: str, resolved: Resolved) -> Lock:
    """The lock with this resolution for a variant."""
    return msgspec.structs.replace(lock, resolved={**lock.resolved, variant: resolved})


def applied(spec: ImageSpec, lock: Lock, root: Path) -> tuple[ImageSpec, tuple[str, ...]]:
    """The spec with what the lock pins for it; where the lock is stale, as it was, and why the lock does not count."""
    resolved = lock.resolved.get(spec.variant)
    if resolved is None:
        return spec, ()
    found = stale(resolved, spec)
    if not found and resolved.pylock and _pylock(resolved, root) is None:
        found = [f"{resolved.pylock} is not the file that `repro lock` wrote"]
    return (spec, tuple(found)) if found else (pinned(spec, resolved, root), ())


def pinned(spec: ImageSpec, resolved: Resolved, root: Path) -> ImageSpec:
    """The spec with what was resolved, stale or not; packages only from the file that `repro lock` wrote."""
    packages = None
    content = _pylock(resolved, root)
    if content is not None and resolved.pylock and resolved.python and resolved.libc:
        target = Target(python=resolved.python, platform=resolved.platform, libc=resolved.libc)
        packages = LockedPackages(name=resolved.pylock, content=content, target=target)
    digests = {name: pin for name, pin in resolved.images.items() if "@" in pin}
    ids = {name: pin for name, pin in resolved.images.items() if "@" not in pin}
    return msgspec.structs.replace(spec, pins=digests, expected=ids, packages=packages)


def _pylock(resolved: Resolved, root: Path) -> bytes | None:
    """The bytes of the pylock.toml, if they are those that were locked; line ends may be git's."""
    if resolved.pylock is None:
        return None
    try:
        content = (root / resolved.pylock).read_bytes().replace(b"\r\n", b"\n")
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == resolved.pylock_sha256 else None


def stale(resolved: Resolved, spec: ImageSpec) -> list[str]:
    """What is asked for now that `repro lock` did not resolve; [] for nothing."""
    found = []
    if resolved.platform != spec.platform:
        found.append(f"image.platform: {resolved.platform} was resolved, {spec.platform} is asked for")
    wanted, known = set(floating_references(spec)), set(resolved.images)
    found += [f"image {name}: not resolved" for name in sorted(wanted - known)]
    found += [f"image {name}: not used any more" for name in sorted(known - wanted)]
    now = requirement_files(spec)
    for path in sorted({*now, *resolved.requirements}):
        if now.get(path) != resolved.requirements.get(path):
            word = "changed" if path in now and path in resolved.requirements else "new" if path in now else "gone"
            found.append(f"{path}: {word}")
    return found


def floating_references(spec: ImageSpec) -> tuple[str, ...]:
    """The images that the Dockerfile names without a digest, each once."""
    found = (reference.image for reference in spec.references())
    return tuple(dict.fromkeys(name for name in found if "@sha256:" not in name))


def requirement_files(spec: ImageSpec) -> dict[str, str]:
    """The requirements with all that they include: path -> sha256; {} where they ask for nothing."""
    files = [file for file in spec.files if file.text and file.path != spec.dockerfile]
    if not any(context.requirement_lines(file.content.decode()) for file in files):
        return {}
    return {file.path: hashlib.sha256(file.content).hexdigest() for file in files}


def conflicts(lock: Lock, spec: ImageSpec, image: Image | None = None) -> list[str]:
    """Where the lock and what is there now differ, each by its path in the file; [] for nowhere."""
    locked = lock.images.get(spec.variant)
    if locked is None:
        return [f"image.{spec.variant}: not in the lock"]
    found = {"spec": spec.digest, "base": spec.base, "platform": spec.platform}
    if image is not None:
        found |= {"base_resolved": image.base_resolved, "platform": image.platform}
        if not locked.digest or _manifest(locked.digest) != _manifest(image.digest):
            found["id"] = image.id  # image stores count the same image differently, registries do not
    return [
        f"image.{spec.variant}.{key}: locked {getattr(locked, key)}, found {value}"
        for key, value in found.items()
        if getattr(locked, key) != value
    ]


def require(lock: Lock, spec: ImageSpec, image: Image | None = None, stale: Sequence[str] = ()) -> None:
    """Refuse whatever the lock does not name.

    Raises:
        RefusedError: listing every difference.
    """
    if found := [*stale, *conflicts(lock, spec, image)]:
        raise RefusedError(
            "the image is not the one that repro.lock names",
            evidence=found,
            hints=[
                *(["take the one that it names: `repro rebuild --pull`"] if spec.pushed else []),
                "accept what is there now: `repro lock` and `repro rebuild`, then commit repro.lock",
                "or run without --locked",
            ],
        )
