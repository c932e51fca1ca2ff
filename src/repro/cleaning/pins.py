"""Images that a user keeps, whatever else needs them or not: `repro pin`. Known by content, so on every engine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from repro.engines.imagefacts import ImageFacts
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import Value
from repro.image import SPEC_LABEL, own_tag
from repro.project import cache_folder
from repro.record import write_atomic


class Pin(Value, frozen=True, kw_only=True):
    """One of them, as it was when it was pinned."""

    tag: str
    id: str


def content(image: ImageFacts) -> str:
    """An image's name for its content: ids of the same image differ between the stores of engines, layers do not."""
    return hashlib.sha256("\n".join([image.labels.get(SPEC_LABEL, ""), *image.layers]).encode()).hexdigest()[:32]


def add(image: ImageFacts) -> Pin:
    """Pin an image, also one that is pinned already.

    Raises:
        EnvironmentUnfitError: the cache folder cannot be written.
    """
    pin = Pin(tag=own_tag(image) or next(iter(image.tags), image.id), id=image.id)
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        write_atomic(_folder() / content(image), msgspec.json.encode(pin))
    except OSError as error:
        raise EnvironmentUnfitError(
            f"{_folder()} cannot be written", evidence=[str(error)], hints=["REPRO_CACHE names another folder"]
        ) from error
    return pin


def remove(wanted: str, image: ImageFacts | None) -> Pin:
    """Unpin the image, or the one that was pinned under this tag or id and is gone.

    Raises:
        BadInputError: it is not pinned.
    """
    known = everything()
    names = [content(image)] if image else [name for name, pin in known.items() if _means(wanted, pin)]
    found = [name for name in names if name in known]
    if not found:
        raise BadInputError(
            f"{wanted} is not pinned",
            evidence=[f"pinned: {pin.tag}" for pin in known.values()],
            hints=["`repro images` marks what is"],
        )
    for name in found:
        (_folder() / name).unlink(missing_ok=True)
    return known[found[0]]


def everything() -> dict[str, Pin]:
    """All pins of this user, by content."""
    found = {}
    for file in sorted(_folder().glob("[0-9a-f]*")):
        try:
            found[file.name] = msgspec.json.decode(file.read_bytes(), type=Pin)
        except (OSError, msgspec.DecodeError):  # it says less than it could, and still keeps its image
            found[file.name] = Pin(tag="?", id="?")
    return found


def _means(wanted: str, pin: Pin) -> bool:
    digits = wanted.removeprefix("sha256:")
    return wanted == pin.tag or (len(digits) >= 12 and pin.id.removeprefix("sha256:").startswith(digits))


def _folder() -> Path:
    return cache_folder() / "pins"
