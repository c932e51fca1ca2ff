"""Each identity of an image under its own name, in the answers of every kind of engine (28.5 and 20.10, shortened)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from repro.engines import imagefacts, repodigest

ID, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
LAYERS = ["sha256:" + "a" * 64, "sha256:" + "b" * 64]
COMMON: dict[str, Any] = {
    "Id": ID,
    "RepoTags": ["x:1"],
    "Os": "linux",
    "Architecture": "amd64",
    "RootFS": {"Layers": LAYERS},
}
CLASSIC = COMMON | {"RepoDigests": [], "GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": "/x"}}}
CONTAINERD = COMMON | {
    "RepoDigests": [f"x@{ID}"],
    "GraphDriver": {"Name": "overlayfs", "Data": None},
    "Descriptor": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": ID},
}
INDEX = CONTAINERD | {"Descriptor": {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": ID}}


def manifest(digest: str, architecture: str, *, available: bool = True) -> dict[str, Any]:
    platform = {"os": "linux", "architecture": architecture}
    return {"ID": digest, "Available": available, "Kind": "image", "ImageData": {"Platform": platform}}


def test_the_classic_store_knows_the_configuration_and_no_manifest() -> None:
    found = imagefacts.of(CLASSIC)
    assert (found.id, found.manifest, found.config) == (ID, None, ID)


def test_the_containerd_store_knows_the_manifest_and_the_configuration_only_from_buildkit() -> None:
    found = imagefacts.of(CONTAINERD)
    assert (found.id, found.manifest, found.config) == (ID, ID, None)
    noted = CONTAINERD["Descriptor"] | {"annotations": {"config.digest": OTHER}}
    assert imagefacts.of(CONTAINERD | {"Descriptor": noted}).config == OTHER


def test_of_an_index_the_manifest_of_the_platform_counts() -> None:
    attestation = {"ID": "sha256:attestation", "Available": True, "Kind": "attestation", "AttestationData": {"For": ID}}
    manifests = [manifest("sha256:arm", "arm64"), attestation, manifest(OTHER, "amd64")]
    assert imagefacts.of(INDEX, manifests).manifest == OTHER
    assert imagefacts.of(INDEX, [manifest(OTHER, "amd64", available=False)]).manifest is None
    assert imagefacts.of(INDEX).manifest is None


def test_an_engine_that_does_not_tell_its_store_makes_nobody_guess() -> None:
    """25 to 27 with the containerd store: no Descriptor yet, and the id is that of a manifest."""
    found = imagefacts.of({key: value for key, value in CONTAINERD.items() if key != "Descriptor"})
    assert (found.manifest, found.config) == (None, None)


def test_the_content_is_the_same_in_both_stores_and_follows_the_layers() -> None:
    assert imagefacts.of(CLASSIC).content == imagefacts.of(CONTAINERD).content
    assert imagefacts.of(CLASSIC | {"RootFS": {"Layers": LAYERS[::-1]}}).content != imagefacts.of(CLASSIC).content
    assert imagefacts.of(CLASSIC | {"RootFS": {}}).content == ""


def test_a_repo_digest_that_every_tag_has_counts_once_a_registry_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path))
    listed = (f"x@{ID}", f"localhost:5000/x@{ID}")
    assert repodigest.known(ID, listed) == ()
    repodigest.note(f"localhost:5000/x@{ID}")
    assert repodigest.known(ID, listed) == (f"localhost:5000/x@{ID}",)
    repodigest.note(f"docker.io/library/x@{ID}")
    assert repodigest.known(ID, listed) == listed


def test_the_repo_digests_of_the_classic_store_are_a_registrys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path))
    assert repodigest.known(ID, (f"x@{OTHER}",)) == (f"x@{OTHER}",)
    assert repodigest.known(ID, (f"localhost/x@{OTHER}",)) == ()
