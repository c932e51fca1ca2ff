"""repro.lock: what each image variant was made from and what came out; pure `loads`, `dumps`, `conflicts`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from repro.errors import BadInputError, EnvironmentUnfitError, RefusedError
from repro.experiment import Value
from repro.image import Image, ImageSpec
from repro.project import cache_folder
from repro.record import write_atomic

VERSION = 1
HEADER = "# Written by `repro rebuild`; commit it. `repro run --locked` refuses what does not match.\n"


class LockedImage(Value, frozen=True, kw_only=True):
    """One variant."""

    spec: str
    base: str  # as asked for
    base_resolved: str  # repo digest or image id
    id: str
    platform: str


class Lock(Value, frozen=True, kw_only=True):
    """The whole file."""

    images: dict[str, LockedImage] = msgspec.field(default_factory=dict)


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
                hints=["update repro, or remove the file and write it anew with `repro rebuild`"],
            )
        return msgspec.convert({"images": raw.pop("image", {}), **raw}, Lock)
    except msgspec.MsgspecError as error:
        raise BadInputError(
            f"{name} cannot be read",
            evidence=[str(error)],
            hints=["correct it or take it from git again; or remove it, then `repro rebuild` writes it anew"],
        ) from error


def dumps(lock: Lock) -> str:
    """The text of a lock: sorted, so that equal locks are equal bytes."""
    images = {name: msgspec.to_builtins(lock.images[name]) for name in sorted(lock.images)}
    return HEADER + msgspec.toml.encode({"lock-version": VERSION, "image": images}).decode()


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
    """Write down an image; the file is replaced only when that changes it. One process at a time.

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
            after = updated(before, image)
            if after != before or not path.exists():
                write_atomic(path, dumps(after).encode())
    except OSError as error:
        raise EnvironmentUnfitError(f"{path} cannot be written", evidence=[str(error)]) from error


def updated(lock: Lock, image: Image) -> Lock:
    """The lock with this image for its variant."""
    entry = LockedImage(
        spec=image.spec, base=image.base, base_resolved=image.base_resolved, id=image.id, platform=image.platform
    )
    return Lock(images={**lock.images, image.variant: entry})


def conflicts(lock: Lock, spec: ImageSpec, image: Image | None = None) -> list[str]:
    """Where the lock and what is there now differ, each by its path in the file; [] for nowhere."""
    locked = lock.images.get(spec.variant)
    if locked is None:
        return [f"image.{spec.variant}: not in the lock"]
    found = {"spec": spec.digest, "base": spec.base, "platform": spec.platform}
    if image is not None:
        found |= {"base_resolved": image.base_resolved, "id": image.id, "platform": image.platform}
    return [
        f"image.{spec.variant}.{key}: locked {getattr(locked, key)}, found {value}"
        for key, value in found.items()
        if getattr(locked, key) != value
    ]


def require(lock: Lock, spec: ImageSpec, image: Image | None = None) -> None:
    """Refuse whatever the lock does not name.

    Raises:
        RefusedError: listing every difference.
    """
    if found := conflicts(lock, spec, image):
        raise RefusedError(
            "the image is not the one that repro.lock names",
            evidence=found,
            hints=["accept what is there now: `repro rebuild`, then commit repro.lock", "or run without --locked"],
        )
