"""An image as a file: the same bytes from every engine, loadable by every engine, and nothing of a damaged one."""

from __future__ import annotations

import hashlib
import io
import json
import random
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repro.engines.engine import Engine
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.images import oci
from repro.project import Project
from tests.newest_engine import STORES, newest_engine, programs
from tests.second_engine import SecondEngine, require_root, second_engine
from tests.test_registry_engine import BASE, DOCKERFILE, NAME, clear, configure, tiny_base

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def image(project: Project, engine: Engine, repro: Repro) -> Iterator[dict[str, Any]]:
    """An image of a few bytes, just built: what `repro rebuild --json` says of it."""
    tiny_base(engine.client)
    (project.docker / "Dockerfile").write_text(DOCKERFILE + DOCKERFILE.splitlines()[-1] + "\n")
    (project.docker / "requirements.txt").write_text(f"# {uuid.uuid4()}\n")
    configure(project, None)
    done = repro("rebuild", "--json")
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)
    clear(engine.client)


@pytest.fixture(scope="module")
def node() -> Iterator[SecondEngine]:
    with second_engine(gpus=None) as engine:
        yield engine


@pytest.fixture
def file(project: Project, image: dict[str, Any], repro: Repro) -> Path:
    """The image as a file."""
    done = repro("export-image")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path == project.root / f"{image['tag'].replace(':', '-')}.oci.tar"
    return path


def blobs(path: Path) -> dict[str, bytes]:
    """Every entry, strictly: regular files alone, none twice, sorted, without times and owners."""
    with tarfile.open(path, "r:") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == sorted({member.name for member in members})
        assert {(m.type, m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {
            (tarfile.REGTYPE, 0, 0, 0, 0o644, "")
        }
        return {member.name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def test_the_file_is_an_oci_image_layout(file: Path, image: dict[str, Any], engine: Engine) -> None:
    """Read by the letter of the specification, with nothing of ours."""
    found = blobs(file)
    assert json.loads(found["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(found["index.json"])
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")

    def blob(descriptor: dict[str, Any], media: str) -> bytes:
        assert descriptor["mediaType"] == f"application/vnd.oci.image.{media}"
        content = found[f"blobs/{descriptor['digest'].replace(':', '/')}"]
        assert descriptor["size"] == len(content)
        assert descriptor["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
        return content

    (described,) = index["manifests"]
    assert described["annotations"]["org.opencontainers.image.ref.name"] == image["tag"].rpartition(":")[2]
    manifest = json.loads(blob(described, "manifest.v1+json"))
    assert manifest["schemaVersion"] == 2
    config = json.loads(blob(manifest["config"], "config.v1+json"))
    assert manifest["config"]["digest"] == image["id"]  # the classic store's id
    assert described["platform"] == {"architecture": config["architecture"], "os": config["os"]}
    layers = [blob(layer, "layer.v1.tar") for layer in manifest["layers"]]
    assert layers[1] == layers[2]  # a layer that comes twice is in the file once
    assert [layer["digest"] for layer in manifest["layers"]] == config["rootfs"]["diff_ids"]
    assert tuple(config["rootfs"]["diff_ids"]) == engine.image(image["id"]).layers  # type: ignore[union-attr]
    with tarfile.open(fileobj=io.BytesIO(layers[0])) as layer:
        assert layer.getnames() == ["base"]


def test_a_second_engine_has_the_same_image_and_writes_the_same_file(
    file: Path, image: dict[str, Any], repro: Repro, node: SecondEngine, project: Project
) -> None:
    done = repro("import-image", file.name, DOCKER_HOST=node.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{image['tag']}  {image['id'][:19]}\n"
    assert repro("rebuild", "--check", DOCKER_HOST=node.url).returncode == 0
    again = repro("export-image", "-o", "again.tar", "--image", image["id"], DOCKER_HOST=node.url)
    assert again.returncode == 0, again.stderr
    assert (project.root / "again.tar").read_bytes() == file.read_bytes()
    clear(node.client())


@pytest.mark.parametrize("store", STORES)
def test_the_newest_engine_has_the_same_layers_and_writes_the_same_file(
    file: Path, image: dict[str, Any], repro: Repro, engine: Engine, project: Project, store: str
) -> None:
    with newest_engine(store) as newest:  # type: ignore[arg-type]
        done = repro("import-image", file.name, DOCKER_HOST=newest.url)
        assert done.returncode == 0, done.stderr
        loaded = newest.client().images.get(image["tag"]).attrs
        assert done.stdout == f"{image['tag']}  {loaded['Id'][:19]}\n"
        assert tuple(loaded["RootFS"]["Layers"]) == engine.image(image["id"]).layers  # type: ignore[union-attr]
        assert repro("rebuild", "--check", DOCKER_HOST=newest.url).returncode == 0
        again = repro("export-image", "-o", "again.tar", DOCKER_HOST=newest.url)
        assert again.returncode == 0, again.stderr
        assert (project.root / "again.tar").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("store", STORES)
def test_an_image_that_the_newest_engine_built_comes_over(
    image: dict[str, Any], repro: Repro, engine: Engine, project: Project, store: str
) -> None:
    """What it builds and pulls is compressed in the containerd store."""
    engine.remove_image(image["tag"])
    with newest_engine(store) as newest:  # type: ignore[arg-type]
        tiny_base(newest.client(), random.Random(1).randbytes(3 << 20))
        done = repro("rebuild", "--no-cache", "--json", DOCKER_HOST=newest.url)
        assert done.returncode == 0, done.stderr
        layers = newest.client().images.get(image["tag"]).attrs["RootFS"]["Layers"]
        done = repro("export-image", "-o", "new.tar", DOCKER_HOST=newest.url)
        assert done.returncode == 0, done.stderr
    blobs(project.root / "new.tar")
    done = repro("import-image", "new.tar")
    assert done.returncode == 0, done.stderr
    loaded = engine.image(image["tag"])
    assert loaded is not None
    assert list(loaded.layers) == layers


def test_docker_load_takes_the_file_as_it_is(file: Path, image: dict[str, Any], node: SecondEngine) -> None:
    node.client().images.load(file.read_bytes())
    assert node.client().images.get(image["tag"]).id == image["id"]
    clear(node.client())
    with newest_engine("containerd") as newest:
        argv = [str(programs() / "docker"), "-H", newest.url, "load", "-i", str(file)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert image["tag"] in done.stdout


def test_one_changed_byte_of_a_blob_is_told_with_its_name_and_nothing_is_loaded(
    file: Path, image: dict[str, Any], repro: Repro, node: SecondEngine
) -> None:
    with tarfile.open(file) as archive:
        layer = max(archive.getmembers(), key=lambda member: member.size)
    content = bytearray(file.read_bytes())
    content[layer.offset_data + layer.size // 2] ^= 1
    file.write_bytes(content)
    done = repro("import-image", file.name, DOCKER_HOST=node.url)
    assert done.returncode == 2
    assert f"blob sha256:{Path(layer.name).name}" in done.stderr
    assert "nothing of it was loaded" in done.stderr
    assert node.client().images.list(NAME) == []


def test_any_changed_byte_is_found_or_changes_nothing(file: Path, image: dict[str, Any]) -> None:
    """Padding and the fields of a tar that its readers ignore may change; what is loaded may not."""
    original = file.read_bytes()
    changed = file.with_name("changed.tar")
    dice, found, same = random.Random(7), 0, 0
    with tarfile.open(file) as archive:
        ends = [member.offset_data + member.size for member in archive.getmembers()]
    for place in sorted(dice.sample(range(max(ends)), 400)):
        content = bytearray(original)
        content[place] ^= 1 << dice.randrange(8)
        changed.write_bytes(content)
        with changed.open("rb") as opened:
            try:
                oci.check(opened, changed, lambda _line: None)
            except BadInputError:
                found += 1
                continue
        same += 1
        with tarfile.open(file) as before, tarfile.open(changed) as after:
            assert [(m.name, before.extractfile(m).read()) for m in before.getmembers()] == [  # type: ignore[union-attr]
                (m.name, after.extractfile(m).read())  # type: ignore[union-attr]
                for m in after.getmembers()
            ]
    assert found > 100
    assert same > 0


def test_a_file_that_ends_in_the_middle_and_one_that_is_none_are_told(
    file: Path, repro: Repro, node: SecondEngine
) -> None:
    content = file.read_bytes()
    for size in (0, 100, 512, 2000, len(content) // 2, len(content) - 12000):
        file.write_bytes(content[:size])
        done = repro("import-image", file.name, DOCKER_HOST=node.url)
        assert done.returncode == 2, (size, done.stderr)
        assert "Traceback" not in done.stderr
    file.write_text("hello\n" * 1000)
    assert "is no image file" in repro("import-image", file.name).stderr
    assert repro("import-image", "nosuch.tar").returncode == 2


def test_an_image_that_is_not_ours_is_neither_written_nor_loaded(
    file: Path, image: dict[str, Any], repro: Repro, engine: Engine, tmp_path: Path
) -> None:
    done = repro("export-image", "--image", BASE)
    assert (done.returncode, "was not built by repro" in done.stderr) == (2, True)
    done = repro("export-image", "--image", "test-nosuch:1")
    assert (done.returncode, "is not on this engine" in done.stderr) == (2, True)
    foreign = engine.image(BASE)
    assert foreign is not None
    oci.write(engine, foreign, f"{NAME}:0000000000000000", tmp_path / "x.tar", lambda _line: None)
    done = repro("import-image", str(tmp_path / "x.tar"))
    assert (done.returncode, "holds no image of ours" in done.stderr) == (2, True)


def test_a_disk_that_cannot_take_the_file_is_told_and_nothing_is_left(
    image: dict[str, Any], repro: Repro, project: Project
) -> None:
    before = sorted(project.root.iterdir())
    done = repro("export-image", "-o", "/dev/full/x.tar")
    assert done.returncode == 3
    assert "cannot be written" in done.stderr
    assert sorted(project.root.iterdir()) == before


def test_a_full_disk_is_told_with_how_much_is_needed(engine: Engine, debian_base: str, tmp_path: Path) -> None:
    require_root()  # to have a small disk
    found = engine.image(debian_base)
    assert found is not None
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        with pytest.raises(EnvironmentUnfitError) as caught:
            oci.write(engine, found, "x:1", tmp_path / "x.tar", lambda _line: None)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert "No space left on device" in str(caught.value)
    assert "it needs 0.3 GB for a moment" in str(caught.value)
    assert engine.image(debian_base) is not None  # the engine still answers on its connections


def test_an_image_that_lost_its_tag_is_written_under_the_name_of_the_configuration(
    image: dict[str, Any], repro: Repro, engine: Engine, project: Project
) -> None:
    assert repro("rebuild", "--no-cache").returncode == 0
    done = repro("export-image", "--image", image["id"], "-o", "old.tar", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tag"] == image["tag"]
    assert f"blobs/sha256/{image['id'][7:]}" in blobs(project.root / "old.tar")
