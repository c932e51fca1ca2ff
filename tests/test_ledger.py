"""What a spec gave before is remembered, and another content for it is drift."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import msgspec
import pytest

from repro.image import Image
from repro.images import inventory, ledger
from repro.images.inventory import Inventory, PythonPackage
from tests.test_inventory import FOUND

SPEC = "5" * 64
WHEN = datetime(2026, 1, 2, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path))
    return tmp_path


def made(letter: str, base: str = "debian:12") -> Image:
    return Image(
        variant="v",
        tag="my-tf:5555555555555555",
        id=f"sha256:{letter * 64}",
        spec=SPEC,
        base="debian:12",
        base_resolved=base,
        platform="linux/amd64",
        digest=None,
        built=True,
        seconds=0.0,
        layers=(f"sha256:{letter}",),
        content=f"sha256:c{letter}",
    )


def holds(image: Image, numpy: str) -> Inventory:
    """The inventory of an image, as if it had been looked at."""
    packages = (PythonPackage(name="numpy", version=numpy),)
    found = msgspec.structs.replace(FOUND, image=image.id, python_packages=packages)
    inventory.keep(image.id, inventory.SUFFIX, found.text())
    return found


def test_the_first_content_and_the_same_again_are_no_drift(cache: Path) -> None:
    first = made("a")
    assert ledger.witness(first, holds(first, "2.4.5")) is None
    assert ledger.witness(first, holds(first, "2.4.5")) is None
    assert len((cache / "ledger" / f"{SPEC}.jsonl").read_text().splitlines()) == 1


def test_another_content_is_drift_with_both_identities_and_the_packages_that_differ() -> None:
    first, second = made("a"), made("b")
    ledger.witness(first, holds(first, "2.4.5"))
    drift = ledger.witness(second, holds(second, "2.4.6"))
    assert drift is not None
    assert drift.new
    for word in (first.id, first.content, second.id, second.content, "numpy 2.4.5 -> 2.4.6"):
        assert word in drift.text


def test_what_was_told_is_not_new_again_and_still_known() -> None:
    first, second = made("a"), made("b")
    ledger.witness(first, holds(first, "2.4.5"))
    ledger.witness(second, holds(second, "2.4.6"))
    again = ledger.witness(second, holds(second, "2.4.6"))
    back = ledger.witness(first, holds(first, "2.4.5"))
    assert again is not None
    assert back is not None
    assert (again.new, back.new) == (False, False)
    assert (again.before.image, back.before.image) == (first.id, second.id)


def test_what_was_heard_of_another_machine_counts_and_needs_no_words() -> None:
    image = made("a")
    ledger.witness(image, holds(image, "1"))
    ledger.hear(SPEC, content="sha256:cz", image="sha256:z", run="20260102-030405-toy-000001", at=WHEN)
    ledger.hear(SPEC, content="sha256:cz", image="sha256:z", run="20260102-030405-toy-000002", at=WHEN)
    assert len(ledger.sightings(SPEC)) == 2
    drift = ledger.witness(image, holds(image, "1"))
    assert drift is not None
    assert not drift.new
    assert (
        "(content sha256:cz) on 2026-01-02 in run 20260102-030405-toy-000001: what differs is not known" in drift.text
    )


def test_a_base_that_moved_is_named() -> None:
    first, second = made("a"), made("b", base="debian@sha256:2")
    ledger.witness(first, holds(first, "1"))
    drift = ledger.witness(second, holds(second, "1"))
    assert drift is not None
    assert drift.text.endswith("base debian:12 -> debian@sha256:2")


def test_the_same_packages_in_other_bytes_are_called_so() -> None:
    first, second = made("a"), made("b")
    ledger.witness(first, holds(first, "1"))
    drift = ledger.witness(second, holds(second, "1"))
    assert drift is not None
    assert drift.text.endswith("the same packages, other bytes: times or caches in the layers")


def test_a_list_that_is_gone_is_not_made_up() -> None:
    first, second = made("a"), made("b")
    ledger.witness(first, holds(first, "1"))
    inventory.file(first.id, inventory.SUFFIX).unlink()
    drift = ledger.witness(second, holds(second, "2"))
    assert drift is not None
    assert drift.text.endswith("other packages; the list of the earlier ones is not there any more")


def test_an_image_that_could_not_be_looked_at_is_told_without_packages() -> None:
    first, second = made("a"), made("b")
    ledger.witness(first, holds(first, "1"))
    drift = ledger.witness(second, Inventory(image=second.id, remarks=("could not be looked at",)))
    assert drift is not None
    assert drift.text.endswith("what differs is not known")


def test_many_differences_are_counted() -> None:
    first, second = made("a"), made("b")
    before, now = holds(first, "1"), holds(second, "1")
    many = tuple(PythonPackage(name=f"p{number:02}", version="1") for number in range(20))
    ledger.witness(first, before)
    drift = ledger.witness(second, msgspec.structs.replace(now, python_packages=many))
    assert drift is not None
    assert drift.text.endswith("p06 1 is new, and 13 more packages")


def test_another_image_of_the_same_content_is_no_drift() -> None:
    first = made("a")
    ledger.witness(first, holds(first, "1"))
    other = msgspec.structs.replace(first, id="sha256:" + "d" * 64)
    assert ledger.witness(other, holds(other, "1")) is None
    assert [each.image for each in ledger.sightings(SPEC)] == [first.id, other.id]


def test_a_torn_line_says_nothing_and_hides_nothing(cache: Path) -> None:
    first, second = made("a"), made("b")
    ledger.witness(first, holds(first, "1"))
    with (cache / "ledger" / f"{SPEC}.jsonl").open("ab") as file:
        file.write(b'{"content":"sha256:x","ima\n')
    assert ledger.witness(second, holds(second, "2")) is not None


def test_a_cache_that_cannot_be_written_is_no_reason_not_to_run(cache: Path) -> None:
    (cache / "ledger").write_text("a file")
    first = made("a")
    assert ledger.witness(first, holds(first, "1")) is None


def test_an_image_without_layers_has_no_content_to_compare() -> None:
    assert ledger.witness(msgspec.structs.replace(made("a"), content="", layers=()), FOUND) is None
    assert ledger.sightings(SPEC) == []
