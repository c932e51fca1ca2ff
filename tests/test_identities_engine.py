"""The identities of an image, and what is in it, as runs record them: on an old engine and both stores of a new one."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from repro.build import builder
from repro.engines import registry as registries
from repro.engines import repodigest
from repro.engines.engine import Engine
from repro.images import inventory
from repro.project import Project
from repro.recipe import base
from tests.conftest import script
from tests.newest_engine import STORES, Store, newest_engine
from tests.registry_server import RegistryServer
from tests.second_engine import SecondEngine, second_engine
from tests.test_run_engine import latest

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
ENGINES = {
    "machine's": lambda: second_engine(gpus=None),  # 20.10 on Debian 12
    "overlay2": lambda: newest_engine("overlay2"),
    "containerd": lambda: newest_engine("containerd"),
}


@pytest.fixture(scope="module", params=ENGINES)
def any_engine(request: pytest.FixtureRequest, debian_base: str) -> Iterator[SecondEngine]:
    """Each engine in turn, with the base image."""
    with ENGINES[request.param]() as started:
        started.copy_image(debian_base)
        yield started


@pytest.fixture
def containerd(any_engine: SecondEngine) -> bool:
    """Whether its store is containerd's."""
    return door(any_engine).facts().store == "containerd"


@pytest.fixture(params=["classic", "buildx"])
def with_builder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each builder in turn: without the docker command there is only the engine's own; git stays."""
    if request.param == "buildx":
        request.getfixturevalue("buildx")
    else:
        git = shutil.which("git")
        assert git
        (tmp_path / "programs").mkdir()
        (tmp_path / "programs" / "git").symlink_to(git)
        monkeypatch.setenv("PATH", str(tmp_path / "programs"))
        assert builder.buildx() is None
    return str(request.param)


def door(any_engine: SecondEngine) -> Engine:
    return Engine(any_engine.client(), any_engine.url)


def test_a_run_records_each_identity_that_exists_and_what_is_in_the_image(
    lab: Project, repro: Repro, any_engine: SecondEngine, with_builder: str, containerd: bool, tmp_path: Path
) -> None:
    script(lab, "docker/Dockerfile", f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nLABEL built-by={with_builder}")
    there = {"DOCKER_HOST": any_engine.url, "REPRO_CACHE": str(tmp_path / "cache")}
    done = repro("run", "experiment=toy", "tracking.enabled=false", **there)
    assert done.returncode == 0, done.stderr
    record, folder = latest(lab)
    used, found = record.planned.image, any_engine.client().api.inspect_image(record.planned.image.id)
    assert used.layers == tuple(found["RootFS"]["Layers"])
    assert used.manifest == (used.id if containerd else None)
    if containerd:
        by_buildkit = found["Descriptor"].get("annotations", {}).get("config.digest")
        assert (used.config, bool(by_buildkit)) == (by_buildkit, with_builder == "buildx")
    else:
        assert used.config == used.id
    assert found["RepoDigests"] == ([f"my-tf@{used.id}"] if containerd else [])
    assert used.digest is None  # nothing was pushed, whatever the engine lists
    base = door(any_engine).image(record.planned.image.base)
    assert base is not None
    assert (used.content, used.base_resolved) == (base.content, base.id)  # the Dockerfile adds no layer to it
    inside = inventory.read(folder.packages)
    assert inside is not None
    assert (inside.image, inside.remarks) == (used.id, ())
    assert (inside.python or "").startswith("3.11.")
    bill = json.loads((folder.inputs / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert any(part.get("purl", "").startswith("pkg:deb/debian/bash@") for part in bill["components"])
    assert any_engine.client().containers.list(all=True) == []
    shown = repro("show", **there).stdout
    assert f"packages Python {inside.python} (0), Debian GNU/Linux 12" in shown


def test_the_same_content_has_the_same_identity_on_every_engine(
    engine: Engine, any_engine: SecondEngine, debian_base: str
) -> None:
    here, there = engine.image(debian_base), door(any_engine).image(debian_base)
    assert here is not None
    assert there is not None
    assert here.content == there.content


def test_of_an_index_the_platforms_manifest_is_known(
    any_engine: SecondEngine, containerd: bool, debian_base: str, buildx: str
) -> None:
    base = door(any_engine).image(debian_base)
    assert base is not None
    if not containerd:  # the classic store keeps neither an index nor the manifests of one
        assert base.manifest is None
        return
    command = ["docker", "buildx", "build", "--builder=default", "--load", "--provenance=true", "--tag=index:1", "-"]
    text, host = f"FROM {debian_base}\n".encode(), {**os.environ, "DOCKER_HOST": any_engine.url}
    subprocess.run(command, input=text, env=host, check=True, capture_output=True)
    found = door(any_engine).image("index:1")
    assert found is not None
    assert found.manifest not in (None, found.id)
    by_manifest = any_engine.client().api.inspect_image(found.id)
    assert by_manifest["Descriptor"]["mediaType"] == "application/vnd.oci.image.index.v1+json"
    assert found.content == base.content


def test_packages_are_read_on_every_engine_also_without_a_start(any_engine: SecondEngine) -> None:
    layer, text = io.BytesIO(), b"Package: base-files\nVersion: 12.4\nArchitecture: amd64\n"
    with tarfile.open(fileobj=layer, mode="w") as archive:
        entry = tarfile.TarInfo("var/lib/dpkg/status.d/base")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    any_engine.client().api.import_image_from_data(layer.getvalue(), "bare", "1")
    image = door(any_engine).image("bare:1")
    assert image is not None
    found = inventory.look(door(any_engine), image.id)
    assert [package.name for package in found.os_packages] == ["base-files"]
    assert (found.python, found.remarks) == (None, ())
    assert msgspec.json.decode(found.text(), type=inventory.Inventory) == found


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryServer]:
    server = RegistryServer(tmp_path / "registry")
    yield server
    server.stop()


@pytest.mark.parametrize("store", STORES)
def test_a_repo_digest_exists_from_the_moment_that_a_registry_names_it(
    store: Store, debian_base: str, registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    name = registry.host
    with newest_engine(store, host_network=True) as started:
        door, client = Engine(started.client(), started.url), started.client()
        started.copy_image(debian_base)
        tag = f"{name}/base:1"
        door.tag(debian_base, tag)
        reference, local = base.resolve(tag, None, door, say=print)
        assert (reference, base.identity(tag, local)) == (tag, local.id)
        said = "".join(line.get("status", "") for line in client.api.push(tag, stream=True, decode=True))
        digest = f"{name}/base@{re.findall(r'digest: (sha256:[0-9a-f]{64})', said)[-1]}"
        reference, there = base.resolve(tag, None, door, say=print)
        assert (reference, base.identity(tag, there)) == (digest, digest)  # the registry was asked
        assert base.repo_digest(debian_base, there) is None  # under its other name it was never pushed
        # and by a pull, on a machine that knows nothing
        for held in (tag, debian_base):
            door.remove_image(held, force=True)
        monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "another"))
        pulled = registries.pull(door, tag, print)
        assert repodigest.known(pulled.id, pulled.digests) == (digest,)
