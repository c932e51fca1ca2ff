"""The base that the project makes: equal bytes have equal ids, and a base is recorded as what it is."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import msgspec
import pytest

from repro.engines.imagefacts import ImageFacts
from repro.experiment import BaseRecipe
from repro.recipe import base

RECIPE = BaseRecipe(suite="bookworm", packages=("python3",), source_date_epoch=1)
LABELS = {"b": "2", "a": "1"}
FACTS = ImageFacts(
    id="sha256:1",
    tags=(),
    digests=(),
    labels={},
    env=(),
    created="",
    size=1,
    layers=(),
    platform="linux/amd64",
)


def archive(layer: bytes = b"layer", tag: str = "repro-base:x", **changes: object) -> tuple[str, bytes]:
    out = io.BytesIO()
    options = {"labels": LABELS, "architecture": "amd64"} | changes
    return base.write_archive(io.BytesIO(layer), out, tag, **options), out.getvalue()  # type: ignore[arg-type]


def test_equal_layers_give_equal_archives_and_ids() -> None:
    assert archive() == archive()
    assert archive(labels=dict(reversed(LABELS.items()))) == archive()


@pytest.mark.parametrize("change", [{"layer": b"other"}, {"labels": {"a": "1"}}, {"architecture": "arm64"}])
def test_whatever_is_in_an_image_changes_its_id(change: dict[str, object]) -> None:
    assert archive(**change)[0] != archive()[0]  # type: ignore[arg-type]


def test_the_tag_is_a_name_and_changes_no_id() -> None:
    assert archive(tag="repro-base:y")[0] == archive()[0]


def test_an_archive_is_what_docker_load_takes() -> None:
    image, written = archive()
    with tarfile.open(fileobj=io.BytesIO(written)) as tar:
        held = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    (manifest,) = json.loads(held["manifest.json"])
    assert manifest["RepoTags"] == ["repro-base:x"]
    assert held[manifest["Layers"][0]] == b"layer"
    assert image == "sha256:" + hashlib.sha256(held[manifest["Config"]]).hexdigest()
    config = json.loads(held[manifest["Config"]])
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(b"layer").hexdigest()]
    assert config["config"]["Labels"] == LABELS


def test_a_layer_larger_than_a_block_is_hashed_whole() -> None:
    layer = b"x" * (3 << 20)
    _, written = archive(layer)
    assert hashlib.sha256(layer).hexdigest().encode() in written


def test_the_tag_of_a_base_names_its_suite_and_its_recipe() -> None:
    tag = base.tag_of(RECIPE)
    assert tag == f"repro-base:bookworm-{base.digest_of(RECIPE)[:12]}"
    others = [
        msgspec.structs.replace(RECIPE, **change)
        for change in ({"suite": "trixie"}, {"packages": ("python3", "git")}, {"source_date_epoch": 2})
    ]
    assert len({tag, *map(base.tag_of, others)}) == 4


@pytest.mark.parametrize(
    ("asked", "digests", "identity"),
    [
        ("a/b:1", (), "sha256:1"),
        ("a/b:1", ("a/b@sha256:2",), "a/b@sha256:2"),
        ("a/b", ("other/b@sha256:3", "a/b@sha256:2"), "a/b@sha256:2"),
        ("a/b:1", ("other/b@sha256:3",), "sha256:1"),  # its own repository has never seen it
        ("a/b@sha256:2", ("a/b@sha256:2",), "a/b@sha256:2"),
        ("localhost:5000/a:1", ("localhost:5000/a@sha256:2",), "localhost:5000/a@sha256:2"),
        ("docker.io/library/debian:12", ("debian@sha256:2",), "debian@sha256:2"),
    ],
)
def test_a_base_is_recorded_by_the_digest_of_its_own_repository_else_by_its_id(
    asked: str, digests: tuple[str, ...], identity: str
) -> None:
    assert base.identity(asked, msgspec.structs.replace(FACTS, digests=digests)) == identity


def test_a_suite_that_no_source_lists_still_has_a_mirror_or_none() -> None:
    for suite in ("bookworm", "no-such-suite"):
        found = base.mirrors(suite)
        assert len(found) <= 1
        assert all(uri.startswith("http") for uri in found)


def test_the_machines_own_authorities_come_in_one_order() -> None:
    found = base.own_authorities()
    assert found == base.own_authorities()
    certificates = base.CERTIFICATE.findall(found)
    assert certificates == sorted(set(certificates))
