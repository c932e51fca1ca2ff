"""The base that the project makes, on a real engine: twice the same, and honest about what this machine adds."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from repro import image
from repro.engines.engine import Engine
from repro.errors import EnvironmentUnfitError
from repro.experiment import BaseRecipe, ImageConfig
from repro.recipe import base
from repro.recipe.spec import ImageSpec
from tests.engine_fixtures import RECIPE

pytestmark = pytest.mark.engine

SMALL = BaseRecipe(suite="bookworm", packages=("ca-certificates",), source_date_epoch=1_700_000_000)


@pytest.fixture
def small(engine: Engine) -> Iterator[str]:
    """The tag of a base that no other test uses."""
    tag = base.tag_of(SMALL)
    yield tag
    if engine.image(tag):
        engine.remove_image(tag)


def inside(engine: Engine, ref: str, command: str) -> str:
    answer = engine.client.containers.run(ref, ["sh", "-c", command], network_mode="none", remove=True)
    return str(answer.decode())


def test_the_base_says_what_it_was_made_from(engine: Engine, debian_base: str) -> None:
    found = engine.image(debian_base)
    assert found is not None
    labels = {"repro.recipe": base.digest_of(RECIPE)}
    if own := base.own_authorities():
        labels["repro.ca_bundle"] = hashlib.sha256(own.encode()).hexdigest()
    assert found.labels == labels
    assert found.env == (f"PATH={base.PATH}",)
    assert found.size < 200 << 20


def test_the_base_runs_python_and_trusts_what_this_machine_trusts(engine: Engine, debian_base: str) -> None:
    assert inside(engine, debian_base, "python3 -c 'import venv, ssl, ctypes, sqlite3; print(1)'").strip() == "1"
    bundle = inside(engine, debian_base, f"cat {base.CA_BUNDLE}")
    trusted = set(base.CERTIFICATE.findall(bundle))
    assert set(base.CERTIFICATE.findall(base.own_authorities())) <= trusted
    assert len(trusted) > 100


def test_nothing_of_this_machine_is_in_the_base(engine: Engine, debian_base: str) -> None:
    with tempfile.TemporaryFile() as saved:
        saved.writelines(engine.save(debian_base))
        saved.seek(0)
        with tarfile.open(fileobj=saved) as archive:
            layer = next(each for each in archive if each.size > 10 << 20)
            with tarfile.open(fileobj=archive.extractfile(layer)) as files:
                names = {each.name.removeprefix("./") for each in files}
    assert {"etc/passwd", "usr/bin/python3"} <= names
    assert not {"etc/hostname", "etc/resolv.conf"} & names


def test_a_base_that_is_there_is_not_made_again(engine: Engine, debian_base: str) -> None:
    said: list[str] = []
    assert base.ensure(RECIPE, engine, say=said.append) == debian_base
    assert said == []


@pytest.mark.slow
def test_equal_packages_give_the_same_image_id(engine: Engine, small: str) -> None:
    """Bootstrapped twice; the second time since the tag was moved to something else, which is not trusted."""
    config = ImageConfig(variant="v", base="debian:bookworm", bootstrap=SMALL, requirements=None)
    said: list[str] = []
    reference, first = base.resolve(config.base, SMALL, engine, say=said.append)
    assert reference == small
    assert said[0].startswith("bootstrapping Debian bookworm")
    engine.remove_image(small)
    engine.tag(base.ensure(RECIPE, engine, say=said.append), small)
    _, second = base.resolve(config.base, SMALL, engine, say=said.append)
    assert second.id == first.id
    assert second.layers == first.layers


def test_a_suite_that_does_not_exist_is_told_with_what_was_tried(engine: Engine) -> None:
    with pytest.raises(EnvironmentUnfitError) as caught:
        base.ensure(msgspec.structs.replace(SMALL, suite="no-such-suite"), engine, say=lambda _line: None)
    assert "no-such-suite could not be bootstrapped" in caught.value.what
    assert caught.value.evidence


def test_without_mmdebstrap_the_error_says_what_to_install(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentUnfitError) as caught:
        base.ensure(msgspec.structs.replace(SMALL, source_date_epoch=1), engine, say=lambda _line: None)
    assert "mmdebstrap" in caught.value.what
    assert "apt-get install mmdebstrap" in caught.value.hints[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_is_not_root_is_told_who_has_to_do_it() -> None:
    code = (
        "import os\n"
        "from repro.recipe import base\n"
        "from repro.errors import EnvironmentUnfitError\n"
        "os.setuid(65534)\n"
        "try: base._require_tools()\n"
        "except EnvironmentUnfitError as error: print(error.what, error.hints)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert "can only be made by root" in done.stdout, done.stderr


def test_a_base_of_another_platform_than_asked_for_is_refused(engine: Engine, debian_base: str, tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n")
    config = ImageConfig(
        variant="v", name="test-base", base="x", bootstrap=RECIPE, requirements=None, platform="linux/s390x"
    )
    with pytest.raises(EnvironmentUnfitError) as caught:
        image.ensure(ImageSpec.read(config, tmp_path), engine, say=lambda _line: None)
    assert "linux/s390x is asked for" in caught.value.what
