"""The bill of materials: valid by the standard's own schema, and the same bytes for the same image."""

from __future__ import annotations

import json

import msgspec
import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from repro.images import inventory, sbom
from repro.images.inventory import Inventory, OsPackage
from tests.test_inventory import FOUND


def test_a_bill_is_valid_by_the_schema_of_the_standard() -> None:
    """With the library's extra, which `.[dev]` installs."""
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom.dumps(FOUND)) is None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom.dumps(Inventory(image="i"))) is None
    broken = json.loads(sbom.dumps(FOUND)) | {"serialNumber": "not one"}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


def test_a_bill_can_be_read_back_with_every_package() -> None:
    bom = Bom.from_json(json.loads(sbom.dumps(FOUND)))  # type: ignore[attr-defined]
    assert bom.metadata.component.name == FOUND.image
    assert {str(each.purl) for each in bom.components if each.purl} == {
        "pkg:generic/python@3.11.2",
        "pkg:pypi/numpy@2.4.5",
        "pkg:pypi/six@1.17.0",
        "pkg:deb/debian/bash@5.2.15-2%2Bb13?arch=amd64&distro=debian-12",
        "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12",
        "pkg:deb/debian/libc6@2.36-9?arch=i386&distro=debian-12",
    }


def test_the_same_inventory_gives_the_same_bytes_and_another_image_another_number() -> None:
    one, again = sbom.dumps(FOUND), sbom.dumps(FOUND)
    assert one == again
    assert "timestamp" not in one
    other = sbom.dumps(msgspec.structs.replace(FOUND, image="sha256:" + "b" * 64))
    assert json.loads(one)["serialNumber"] != json.loads(other)["serialNumber"]


def test_an_epoch_of_rpm_is_a_qualifier() -> None:
    package = OsPackage(name="openssl", version="1:3.2.1-2.fc40", architecture="x86_64")
    system = msgspec.structs.replace(FOUND.system, id="fedora", version="40", packages="rpm")
    text = sbom.dumps(Inventory(image="i", system=system, os_packages=(package,)))
    assert "pkg:rpm/fedora/openssl@3.2.1-2.fc40?arch=x86_64&distro=fedora-40&epoch=1" in text


def test_what_could_not_be_read_is_said_in_the_bill() -> None:
    assert "rpm is missing" in sbom.dumps(Inventory(image="i", remarks=("rpm is missing",)))


def test_a_bill_is_kept_only_for_an_image_that_was_looked_at(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path))
    unread = Inventory(image=FOUND.image, remarks=("could not be looked at",))
    assert "could not be looked at" in sbom.of(unread)
    assert not inventory.file(FOUND.image, sbom.SUFFIX).exists()
    inventory.keep(FOUND.image, inventory.SUFFIX, FOUND.text())
    assert sbom.of(FOUND) == sbom.dumps(FOUND) == inventory.file(FOUND.image, sbom.SUFFIX).read_text()
