"""An engine's description of an image -> its identities and the rest of what we use of it; pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from repro.engines.answers import familiar, full_id
from repro.experiment import Value

INDEXES = ("image.index.v1+json", "manifest.list.v2+json")  # media types of a list of manifests, one for each platform


class ImageFacts(Value, frozen=True, kw_only=True):
    """What an engine says of one image. Each identity has its own name, and is None where the engine knows none."""

    id: str  # classic store: digest of the configuration; containerd store: of the manifest, or of the index over it
    tags: tuple[str, ...]
    digests: tuple[
        str, ...
    ]  # repo digests as the engine lists them; `repodigest.known` tells which a registry has seen
    labels: dict[str, str]
    env: tuple[str, ...]
    entrypoint: tuple[str, ...] = ()
    created: str
    size: int  # bytes
    layers: tuple[str, ...]  # diff ids: of the uncompressed layers, the same in every store and registry
    platform: str
    manifest: str | None = None  # digest of the platform's manifest; None where the engine keeps none
    config: str | None = None  # digest of the configuration; None where the engine does not tell

    @property
    def content(self) -> str:
        """One sha256 over the diff ids: equal content is equal in every store, whatever the id is; "" without any."""
        return f"sha256:{hashlib.sha256(chr(10).join(self.layers).encode()).hexdigest()}" if self.layers else ""

    @property
    def settings(self) -> str:
        """One sha256 over what of its configuration reaches a run, which brings the rest by itself."""
        return settings(self.env, self.entrypoint)


def settings(env: Sequence[str], entrypoint: Sequence[str]) -> str:
    """Environment and entry point as one sha256."""
    return hashlib.sha256(msgspec.json.encode([sorted(env), tuple(entrypoint)])).hexdigest()


def is_index(found: dict[str, Any]) -> bool:
    """Whether the engine holds several manifests under this id, and has to be asked for them."""
    return str((found.get("Descriptor") or {}).get("mediaType", "")).endswith(INDEXES)


def of(found: dict[str, Any], manifests: Sequence[dict[str, Any]] = (), *, podman: bool = False) -> ImageFacts:
    """The facts in the answer to `GET /images/{id}/json`; `manifests`: of an index, as `?manifests=1` lists them."""
    config = found.get("Config") or {}
    descriptor = found.get("Descriptor") or {}  # of the containerd store, since API 1.48
    # the classic store alone has a folder for an image; where it has none (vfs), nobody knows which store it is
    classic = not descriptor and bool((found.get("GraphDriver") or {}).get("Data"))
    noted = (descriptor.get("annotations") or {}).get("config.digest")  # by BuildKit
    return ImageFacts(
        id=full_id(found["Id"]),
        tags=tuple(familiar(tag) if podman else tag for tag in found.get("RepoTags") or ()),
        digests=_of_podman(found) if podman else tuple(found.get("RepoDigests") or ()),
        labels=config.get("Labels") or {},
        env=tuple(config.get("Env") or ()),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        created=found.get("Created", ""),
        size=found.get("Size", 0),
        layers=tuple((found.get("RootFS") or {}).get("Layers") or ()),
        platform=f"{found.get('Os', 'linux')}/{found.get('Architecture', '')}",
        manifest=_of_platform(found, manifests) if is_index(found) else descriptor.get("digest"),
        config=full_id(found["Id"]) if classic else noted,
    )


def _of_podman(found: dict[str, Any]) -> tuple[str, ...]:
    """The repo digests that a registry may know. Podman gives an image one under each of its names.

    Two kinds cannot be true: those of `localhost`, and those of our own images in Docker Hub's library, which is
    nobody's to push to.
    """
    labels = (found.get("Config") or {}).get("Labels") or {}
    ours = any(label in labels for label in ("repro.spec", "repro.recipe"))
    digests = [familiar(each) for each in found.get("RepoDigests") or () if not each.startswith("localhost/")]
    return tuple(each for each in digests if "/" in each or not ours)


def _of_platform(found: dict[str, Any], manifests: Sequence[dict[str, Any]]) -> str | None:
    """The digest of the manifest that the engine describes and runs: of its platform, and with its layers here."""
    wanted = (found.get("Os"), found.get("Architecture"), found.get("Variant") or "")
    for each in manifests:
        of = (each.get("ImageData") or {}).get("Platform") or {}
        if each.get("Available") and (of.get("os"), of.get("architecture"), of.get("variant") or "") == wanted:
            return str(each["ID"])
    return None
