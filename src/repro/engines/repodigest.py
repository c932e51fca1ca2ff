"""Repo digests: `name@sha256:…`, the name of an image that a registry holds. Never invented.

Docker's classic store lists those that a registry has seen. The containerd store lists one for every tag, since the id
of an image is the digest of its manifest there, and Podman one for every image of its own, in `localhost/`. Of these
only such count as this machine has heard from a registry.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

from repro.project import cache_folder


def note(digest: str) -> None:
    """Remember a repo digest that a registry named, in the answer to a pull or a push."""
    file = _file(digest)
    with contextlib.suppress(OSError):  # without a cache folder it stays unknown, which is no lie
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(digest + "\n", encoding="utf-8")


def known(image: str, digests: Sequence[str]) -> tuple[str, ...]:
    """Of the repo digests that an engine lists for the image with this id, those that a registry has seen."""
    return tuple(each for each in digests if not _of_every_tag(image, each) or _file(each).exists())


def _of_every_tag(image: str, digest: str) -> bool:
    return digest.endswith(f"@{image}") or digest.startswith("localhost/")


def repository(reference: str) -> str:
    """A reference without its tag and its digest."""
    name = reference.partition("@")[0]
    last = name.rpartition("/")[2]
    return name[: len(name) - len(last)] + last.partition(":")[0]


def short(reference: str) -> str:
    """The repository of a reference, in one spelling of those that mean the same."""
    return repository(reference).removeprefix("docker.io/").removeprefix("library/")


def _file(digest: str) -> Path:
    name, _, value = digest.partition("@")
    return cache_folder() / "digests" / hashlib.sha256(f"{short(name)}@{value}".encode()).hexdigest()
