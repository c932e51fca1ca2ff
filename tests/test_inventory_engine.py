"""What real images of every kind hold, as a real engine tells it; nothing of the looking stays behind."""

from __future__ import annotations

import io
import os
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repro.engines import probe
from repro.engines.engine import Engine
from repro.errors import EnvironmentUnfitError
from repro.images import inventory, sbom
from repro.images.inventory import OsPackage, PythonPackage
from tests.debian import KEYRING

pytestmark = pytest.mark.engine

NAME = "test-inventory"
Built = Callable[[str], str]
Imported = Callable[[dict[str, str]], str]
BASE_FILES = "Package: base-files\nVersion: 12.4\nArchitecture: amd64\n"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tag(engine: Engine) -> Iterator[str]:
    name = f"{NAME}:{uuid.uuid4().hex[:12]}"
    yield name
    if image := engine.image(name):
        assert not any(each.labels.get(probe.LABEL) == image.id for each in engine.all_containers())
        engine.remove_image(name)


@pytest.fixture
def built(engine: Engine, debian_base: str, tag: str) -> Built:
    """The id of an image on the Debian base, with these further lines in its Dockerfile."""

    def build(lines: str) -> str:
        text = f"FROM {debian_base}\n{lines}\n"
        *_rest, last = engine.client.api.build(fileobj=io.BytesIO(text.encode()), tag=tag, decode=True, rm=True)
        assert "Successfully" in last.get("stream", ""), last
        found = engine.image(tag)
        assert found is not None
        return found.id

    return build


@pytest.fixture
def imported(engine: Engine, tag: str) -> Imported:
    """The id of an image that holds these files and nothing else: neither a shell nor a library."""

    def make(files: dict[str, str]) -> str:
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
        engine.client.api.import_image_from_data(layer.getvalue(), *tag.split(":"))
        found = engine.image(tag)
        assert found is not None
        return found.id

    return make


def test_the_debian_base_is_told_whole(engine: Engine, debian_base: str) -> None:
    image = engine.image(debian_base)
    assert image is not None
    found = inventory.of(engine, image.id)
    assert (found.image, found.remarks) == (image.id, ())
    assert (found.system.id, found.system.version, found.system.packages) == ("debian", "12", "deb")
    assert found.system.name.startswith("Debian GNU/Linux 12")
    assert (found.python or "").startswith("3.11.")
    versions = {package.name: package.version for package in found.os_packages}
    said = probe.said(engine, image.id, ["dpkg-query", "--show", "--showformat", "${Package} ${Version}\\n"])
    assert said is not None
    assert versions == dict(line.split(" ") for line in said[1].decode().splitlines())
    assert 'arch=amd64&distro=debian-12"' in sbom.of(found)


def test_the_python_that_path_finds_first_counts_with_what_it_sees_of_the_systems(engine: Engine, built: Built) -> None:
    lines = (
        "RUN python3 -m venv --without-pip --system-site-packages /opt/venv",
        "RUN cd /usr/lib/python3/dist-packages && mkdir both-1.dist-info systems_own-1.dist-info",
        "RUN cd /opt/venv/lib/python3.11/site-packages && mkdir both-2.dist-info venvs_own-2.dist-info",
        "ENV PATH=/opt/venv/bin:$PATH",
        'ENTRYPOINT ["echo", "a banner"]',
        "VOLUME /kept",
        "USER 65534:65534",
    )
    found = inventory.of(engine, built("\n".join(lines)))
    assert found.python_packages == (
        PythonPackage(name="both", version="2"),
        PythonPackage(name="systems_own", version="1"),
        PythonPackage(name="venvs_own", version="2"),
    )


def test_a_python_that_never_answers_is_not_waited_for_again(
    engine: Engine, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "SECONDS", 1.0)
    lines = 'RUN printf "#!/bin/sh\\nsleep 300\\n" > /usr/bin/python; chmod 755 /usr/bin/python'
    found = inventory.of(engine, built(lines))
    assert found.remarks == ("its Python's packages are not known: python did not answer (exit code 124)",)
    assert inventory.cached(found.image) == found


def test_without_python_the_system_is_told_all_the_same(engine: Engine, built: Built) -> None:
    found = inventory.of(engine, built("RUN rm /usr/bin/python3*"))
    assert (found.python, found.python_packages, found.remarks) == (None, (), ())
    assert len(found.os_packages) > 50


def test_a_python_that_fails_is_said_and_kept(engine: Engine, built: Built) -> None:
    found = inventory.of(
        engine, built('RUN printf "#!/bin/sh\\nexit 7\\n" > /usr/bin/python; chmod 755 /usr/bin/python')
    )
    assert found.remarks == ("its Python's packages are not known: python did not answer (exit code 7)",)
    assert found.python is None
    assert inventory.cached(found.image) == found


def test_an_image_without_a_shell_is_read_without_a_start(engine: Engine, imported: Imported) -> None:
    status = "var/lib/dpkg/status.d/"
    release = 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Distroless"\n'
    found = inventory.of(
        engine,
        imported({f"{status}base": BASE_FILES, f"{status}base.md5sums": "abc  usr/x\n", "etc/os-release": release}),
    )
    assert found.os_packages == (OsPackage(name="base-files", version="12.4", architecture="amd64"),)
    assert (found.system.name, found.python, found.remarks) == ("Distroless", None, ())


def test_alpines_database_is_read(engine: Engine, imported: Imported) -> None:
    files = {"lib/apk/db/installed": "P:musl\nV:1.2.5-r0\nA:x86_64\n", "usr/lib/os-release": "ID=alpine\n"}
    found = inventory.of(engine, imported(files))
    assert found.os_packages == (OsPackage(name="musl", version="1.2.5-r0", architecture="x86_64"),)
    assert (found.system.id, found.system.packages) == ("alpine", "apk")
    assert "pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64&distro=alpine" in sbom.of(found)


def test_an_image_with_nothing_to_ask_says_so(engine: Engine, imported: Imported) -> None:
    found = inventory.of(engine, imported({"hello": "a static program"}))
    assert (found.os_packages, found.python) == ((), None)
    assert found.remarks == (
        "its system's packages are not known: neither dpkg's nor apk's database is there, nor rpm",
    )


def test_rpm_is_asked_where_its_database_is(engine: Engine, built: Built) -> None:
    """Debian's own rpm, with a signing key as the only package in its database."""
    if os.environ.get("REPRO_TEST_OFFLINE") == "1":
        pytest.skip("NOT TESTED: rpm cannot be installed into an image (REPRO_TEST_OFFLINE=1)")
    lines = f"""\
RUN apt-get update -q && apt-get install -qy --no-install-recommends rpm gpg
RUN gpg --no-default-keyring --keyring {KEYRING} --export --armor | sed -n '1,/^-----END/p' > /key
RUN rpm --import /key && rm -r /var/lib/dpkg"""
    found = inventory.of(engine, built(lines))
    assert found.remarks == ()
    assert {package.name for package in found.os_packages} == {"gpg-pubkey"}
    assert found.system.packages == "rpm"


def test_an_image_is_looked_at_once(engine: Engine, debian_base: str) -> None:
    image = engine.image(debian_base)
    assert image is not None
    said: list[str] = []
    first = inventory.of(engine, image.id, say=said.append)
    assert inventory.of(engine, image.id, say=said.append) == first
    assert said == ["looking at what is in it"]


def test_an_engine_that_refuses_costs_no_run_and_is_asked_again(engine: Engine) -> None:
    gone = "sha256:" + "0" * 64
    found = inventory.of(engine, gone)
    assert found.remarks[0].startswith(f"could not be looked at: looking into image {gone} failed")
    assert inventory.cached(gone) is None
    assert '"name": "repro:remark"' in sbom.of(found)


def test_a_folder_in_the_place_of_a_database_is_not_fetched_whole(
    engine: Engine, imported: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = imported({"var/lib/dpkg/status": "x" * 5000})
    monkeypatch.setattr(probe, "FILES_LIMIT", 1000)
    with pytest.raises(EnvironmentUnfitError, match="where a package database should be"):
        probe.files(engine, image, ["/var/lib/dpkg/status"])
