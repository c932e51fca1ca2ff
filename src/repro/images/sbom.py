"""An inventory -> a bill of materials that other tools read: CycloneDX as JSON. Equal inventories give equal bytes."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from repro.images import inventory
from repro.images.inventory import Inventory

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

SUFFIX = ".cdx.json"
NAMESPACE = uuid.UUID("5bb0ef9e-7c34-4f0c-9bb0-3a2f4e9c1d55")  # of our serial numbers, any fixed one would do


def of(found: Inventory) -> str:
    """The bill of an inventory, from the cache folder where it was written before: the library takes long to import."""
    file = inventory.file(found.image, SUFFIX)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read_text(encoding="utf-8")
    text = dumps(found)
    if inventory.cached(found.image) == found:  # not of an image that could not be looked at
        with contextlib.suppress(OSError):
            inventory.keep(found.image, SUFFIX, text)
    return text


def dumps(found: Inventory) -> str:
    """The bill, a function of the inventory alone: its serial number follows from the image id, and it has no time."""
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    image = Component(name=found.image, type=ComponentType.CONTAINER, bom_ref=found.image)
    metadata = BomMetaData(component=image, properties=[Property(name="repro:remark", value=r) for r in found.remarks])
    metadata.timestamp = None  # type: ignore[assignment]  # it would be now
    parts = [*_system(found), *_python(found)]
    bom = Bom(serial_number=uuid.uuid5(NAMESPACE, found.image), metadata=metadata, components=parts)
    bom.register_dependency(image, parts)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _system(found: Inventory) -> Iterator[Component]:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    system = found.system
    if system.id:
        yield Component(
            name=system.id,
            version=system.version or None,
            description=system.name or None,
            type=ComponentType.OPERATING_SYSTEM,
            bom_ref=f"system:{system.id}",
        )
    distro = "-".join(filter(None, (system.id, system.version)))
    for package in found.os_packages:
        epoch, colon, rest = package.version.partition(":") if system.packages == "rpm" else ("", "", package.version)
        qualifiers = {"arch": package.architecture, "distro": distro, "epoch": epoch if colon else ""}
        address = PackageURL(
            type=system.packages,
            namespace=system.id or None,
            name=package.name,
            version=rest if colon else package.version,
            qualifiers={key: value for key, value in qualifiers.items() if value},
        )
        yield _component(package.name, package.version, address)


def _python(found: Inventory) -> Iterator[Component]:
    from packageurl import PackageURL

    if found.python:
        yield _component("python", found.python, PackageURL(type="generic", name="python", version=found.python))
    for package in found.python_packages:
        address = PackageURL(type="pypi", name=package.name, version=package.version)
        yield _component(package.name, package.version, address)


def _component(name: str, version: str, address: PackageURL) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(name=name, version=version, type=ComponentType.LIBRARY, purl=address, bom_ref=address.to_string())
