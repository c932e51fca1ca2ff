"""Package databases and what images answer -> an inventory, and what differs between two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from repro.images import inventory
from repro.images.inventory import Inventory, OsPackage, PythonPackage, System

DPKG = """\
Package: bash
Status: install ok installed
Version: 5.2.15-2+b13
Architecture: amd64
Description: GNU Bourne Again SHell
 Bash is an sh-compatible command language interpreter: it
 Version: is not said here

Package: gone
Status: deinstall ok config-files
Version: 1
Architecture: amd64

Package: kept
Status: hold ok installed
Version: 1:2.0
Architecture: all
"""
DEBIAN = System(name="Debian GNU/Linux 12 (bookworm)", id="debian", version="12", packages="deb")
FOUND = Inventory(
    image="sha256:" + "a" * 64,
    system=DEBIAN,
    python="3.11.2",
    python_packages=(PythonPackage(name="numpy", version="2.4.5"), PythonPackage(name="six", version="1.17.0")),
    os_packages=(
        OsPackage(name="bash", version="5.2.15-2+b13", architecture="amd64"),
        OsPackage(name="libc6", version="2.36-9", architecture="amd64"),
        OsPackage(name="libc6", version="2.36-9", architecture="i386"),
    ),
)


def test_dpkg_lists_what_is_installed() -> None:
    assert inventory.dpkg_packages(DPKG) == (
        OsPackage(name="bash", version="5.2.15-2+b13", architecture="amd64"),
        OsPackage(name="kept", version="1:2.0", architecture="all"),
    )


def test_images_without_dpkg_have_entries_without_a_status() -> None:
    text = "Package: base-files\nVersion: 12.4\nArchitecture: amd64"
    assert inventory.dpkg_packages(text) == (OsPackage(name="base-files", version="12.4", architecture="amd64"),)


def test_apk_lists_its_packages() -> None:
    text = (
        "C:Q1abc=\nP:musl\nV:1.2.5-r0\nA:x86_64\nF:lib\nR:ld-musl.so\n\nC:Q1def=\nP:busybox\nV:1.36.1-r29\nA:x86_64\n"
    )
    assert inventory.apk_packages(text) == (
        OsPackage(name="busybox", version="1.36.1-r29", architecture="x86_64"),
        OsPackage(name="musl", version="1.2.5-r0", architecture="x86_64"),
    )


def test_rpm_lists_its_packages_with_the_epochs_that_they_have() -> None:
    assert inventory.rpm_packages("bash\t0:5.2.26-1.fc40\tx86_64\nopenssl\t1:3.2.1-2.fc40\tx86_64\nnonsense\n") == (
        OsPackage(name="bash", version="5.2.26-1.fc40", architecture="x86_64"),
        OsPackage(name="openssl", version="1:3.2.1-2.fc40", architecture="x86_64"),
    )


def test_an_os_release_is_read_with_and_without_quotes() -> None:
    text = "# a comment\nID=alpine\nVERSION_ID='3.20.1'\nPRETTY_NAME=\"Alpine Linux v3.20\"\n"
    assert inventory.os_release(text) == {
        "ID": "alpine",
        "VERSION_ID": "3.20.1",
        "PRETTY_NAME": "Alpine Linux v3.20",
    }


def test_packages_that_differ_are_named_with_both_versions() -> None:
    now = msgspec.structs.replace(
        FOUND,
        python="3.12.1",
        python_packages=(PythonPackage(name="numpy", version="2.4.6"), PythonPackage(name="wheel", version="1")),
        os_packages=(*FOUND.os_packages[:2], OsPackage(name="libc6", version="2.36-10", architecture="i386")),
    )
    assert inventory.differences(FOUND, now) == (
        "Python 3.11.2 -> 3.12.1",
        "numpy 2.4.5 -> 2.4.6",
        "six 1.17.0 is gone",
        "wheel 1 is new",
        "libc6:i386 2.36-9 -> 2.36-10",
    )
    assert inventory.differences(FOUND, FOUND) == ()


@pytest.mark.parametrize(
    "change", [{"python": None}, {"python_packages": ()}, {"os_packages": ()}], ids=lambda change: next(iter(change))
)
def test_all_packages_are_in_the_digest_and_nothing_else_is(change: dict[str, object]) -> None:
    assert msgspec.structs.replace(FOUND, **change).digest != FOUND.digest
    assert msgspec.structs.replace(FOUND, image="sha256:other", remarks=("x",)).digest == FOUND.digest


def test_an_inventory_is_told_in_a_line() -> None:
    assert FOUND.summary == "Python 3.11.2 (2), Debian GNU/Linux 12 (bookworm) (3)"
    assert Inventory(image="i", remarks=("unread",)).summary == "no Python, no system (0); unread"


def test_a_file_that_is_torn_or_of_another_version_is_no_inventory(tmp_path: Path) -> None:
    file = tmp_path / "packages.json"
    file.write_text(FOUND.text())
    assert inventory.read(file) == FOUND
    file.write_text(FOUND.text()[:100])
    assert inventory.read(file) is None
    file.write_text(msgspec.structs.replace(FOUND, schema=99).text())
    assert inventory.read(file) is None
    assert inventory.read(tmp_path / "absent") is None


def test_of_many_inventories_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path))
    monkeypatch.setattr(inventory, "KEPT", 2)
    for number in range(4):
        for suffix in (inventory.SUFFIX, ".cdx.json"):
            inventory.keep(f"sha256:{number}", suffix, "{}")
    for suffix in (inventory.SUFFIX, ".cdx.json"):
        assert len(list((tmp_path / "images").glob(f"*{suffix}"))) == 2
    assert inventory.file("sha256:3", inventory.SUFFIX).exists()


# the script that runs inside --------------------------------------------------------------------------------------


def metadata(folder: Path, kind: str, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / kind).write_text(text)


def test_the_script_finds_what_an_import_would_find(tmp_path: Path) -> None:
    """Wheels, eggs of both kinds, a folder without metadata; of two by one name, the first on the path."""
    first, second = tmp_path / "first", tmp_path / "second"
    typing = "Name: typing_extensions\nVersion: 4.0\n\nVersion: 9"
    metadata(first / "Typing_Extensions-4.0.dist-info", "METADATA", typing)
    metadata(first / "old-1.egg-info", "PKG-INFO", "Metadata-Version: 1.0\nName: old\nVersion: 1\n")
    metadata(second / "typing.extensions-5.0.dist-info", "METADATA", "Name: typing.extensions\nVersion: 5.0\n")
    (second / "bare-2.1.dist-info").mkdir()
    (second / "single-3.egg-info").write_text("Name: single\nVersion: 3\n")
    path = os.pathsep.join([str(first), "/no/such/folder", str(second)])
    command = [sys.executable, "-S", "-c", inventory.SCRIPT.read_text()]  # without its own packages
    done = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["version"] == ".".join(map(str, sys.version_info[:3]))
    assert dict(told["packages"]) == {"typing_extensions": "4.0", "old": "1", "bare": "2.1", "single": "3"}
