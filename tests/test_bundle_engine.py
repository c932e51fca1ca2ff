"""Bundles on real engines: out of one, into another that has nothing, and run again without anything of ours."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repro.bundle import checking
from repro.bundle.stored import Reader
from repro.engines.engine import connect
from repro.errors import BadInputError
from repro.images import oci
from repro.project import Project
from repro.record import Record, RunFolder, folders
from tests.conftest import commit, script, write_experiment
from tests.second_engine import SecondEngine, second_engine
from tests.test_bundle import rewritten

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
EXPERIMENT = """\
echo hello; repro-log step=1 loss=0.5
cat code/link > "$REPRO_OUTPUTS/linked"; ./code/program > "$REPRO_OUTPUTS/made by a program"
cat /data/numbers/deep/one /data/numbers/two > "$REPRO_OUTPUTS/data"
printf %s "$WORD" > "$REPRO_OUTPUTS/word"; cp "$REPRO_CONFIG" "$REPRO_OUTPUTS/config.json"
date +%N > "$REPRO_OUTPUTS/when.txt"
"""
SETTINGS = """\
env: {WORD: "it's \\"two\\" $words\\n"}
resources: {cpus: 1, memory: 268435456, time_limit: 60, tmp: 16777216}
gpus: none
outputs: {by_products: ["*.txt"]}
tracking: {enabled: false}
"""


@pytest.fixture(scope="module")
def node() -> Iterator[SecondEngine]:
    """An engine that has nothing."""
    with second_engine(gpus=None) as engine:
        yield engine


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data cache of this test's own."""
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(lab: Project, repro: Repro, cache: Path) -> RunFolder:
    """A finished run that has used code, links, data and an environment."""
    source = lab.root.parent / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "one").write_text("1\n")
    (source / "two").write_text("2\n")
    sums = {name: hashlib.sha256((source / name).read_bytes()).hexdigest() for name in ("deep/one", "two")}
    data = json.dumps({"numbers": {"files": sums, "sources": [str(source)]}})
    (lab.root / "code").mkdir()
    (lab.root / "code" / "text").write_text("through a link\n")
    (lab.root / "code" / "link").symlink_to("text")
    (lab.root / "code" / "program").write_text("#!/bin/sh\necho ran\n")
    (lab.root / "code" / "program").chmod(0o755)
    script(lab, "toy.sh", EXPERIMENT)
    write_experiment(lab.root, "toy", "[sh, toy.sh]", f"{SETTINGS}data: {data}\n")
    commit(lab.root)
    (lab.root / "uncommitted").write_text("too\n")
    done = repro("run", "experiment=toy")
    assert done.returncode == 0, done.stderr
    return list(folders(lab.runs))[-1]


@pytest.fixture
def bundle(run: RunFolder, repro: Repro, lab: Project) -> Path:
    """The run as one file."""
    done = repro("export")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path == lab.root / f"{run.path.name}.crate.zip"
    return path


def elsewhere(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in another folder, with another cache."""
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", "from repro.__main__ import entry; entry()", *arguments],
        cwd=folder,
        env={**os.environ, "REPRO_CACHE": str(folder.parent / "other-cache"), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_exporting_twice_gives_the_same_file_whatever_state_the_repository_is_in(
    bundle: Path, lab: Project, repro: Repro
) -> None:
    subprocess.run(["git", "-C", str(lab.root), "gc", "-q", "--aggressive", "--prune=now"], check=True)
    assert repro("export", "-o", "again.zip").returncode == 0
    assert (lab.root / "again.zip").read_bytes() == bundle.read_bytes()


def test_a_run_comes_back_on_an_engine_that_has_nothing(
    bundle: Path, run: RunFolder, tmp_path: Path, node: SecondEngine, lab: Project
) -> None:
    kept = shutil.move(bundle, tmp_path / bundle.name)
    before = {path.name: path.read_bytes() for path in run.outputs.iterdir()}
    record = run.read()
    for gone in (lab.root, tmp_path / "cache", tmp_path / "source"):
        shutil.rmtree(gone)
    there = tmp_path / "empty"
    done = elsewhere(there, "import", str(kept), DOCKER_HOST=node.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == record.planned.run
    found = RunFolder(there / "runs" / record.planned.run)
    assert {path.name: path.read_bytes() for path in found.outputs.iterdir()} == before
    assert record.planned.image.tag not in [tag for image in node.client().images.list() for tag in image.tags]
    image = node.client().images.get(imported_tag(record))
    assert tuple(image.attrs["RootFS"]["Layers"]) == record.planned.image.layers
    again = elsewhere(there, "import", str(kept), "--json", DOCKER_HOST=node.url)
    assert (again.returncode, json.loads(again.stdout)["new"]) == (0, []), again.stderr
    exported = elsewhere(there, "export", "-o", "again.zip", DOCKER_HOST=node.url)
    assert exported.returncode == 0, exported.stderr
    assert (there / "again.zip").read_bytes() == kept.read_bytes()
    assert elsewhere(there, "verify", DOCKER_HOST=node.url).returncode == 0
    run_again = elsewhere(there, "reproduce", record.planned.run, "--offline", "--expect", "E5", DOCKER_HOST=node.url)
    assert run_again.returncode == 0, run_again.stdout + run_again.stderr
    clear(node)
    options = ("--offline", "--expect", "E5")
    from_file = elsewhere(tmp_path / "empty too", "reproduce", str(kept), *options, DOCKER_HOST=node.url)
    assert from_file.returncode == 0, from_file.stdout + from_file.stderr
    clear(node)


def clear(node: SecondEngine) -> None:
    """No image is left there."""
    for image in node.client().images.list(all=True):
        node.client().images.remove(image.id, force=True)


def test_an_import_that_was_killed_can_be_repeated(bundle: Path, tmp_path: Path, node: SecondEngine) -> None:
    there = tmp_path / "there"
    there.mkdir()
    environment = {**os.environ, "REPRO_CACHE": str(tmp_path / "other-cache"), "DOCKER_HOST": node.url}
    command = [sys.executable, "-c", "from repro.__main__ import entry; entry()", "import", str(bundle)]
    process = subprocess.Popen(command, cwd=there, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(there.glob("runs/.importing-*/run/archive")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list(there.glob("runs/2*"))
    done = elsewhere(there, "import", str(bundle), DOCKER_HOST=node.url)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in there.glob("runs/.importing-*")] == []
    clear(node)


def test_a_changed_byte_of_image_data_and_code_is_found_and_named_and_nothing_is_brought_in(
    bundle: Path, tmp_path: Path, node: SecondEngine
) -> None:
    with bundle.open("rb") as file:
        reader = Reader(file, bundle)
        places = [(name, reader.starts[name], member.size) for name, member in reader.members.items() if member.size]
    dice = random.Random(6)
    large = max(places, key=lambda place: place[2])
    parts = ("image/index", "data/", "outputs/data", "code/code/program", "code.bundle", "inside/bin")
    chosen = [large, *(next(place for place in places if place[0].startswith(part)) for part in parts)]
    for name, start, size in chosen:
        with bundle.open("r+b") as file:
            position = start + dice.randrange(size)
            file.seek(position)
            byte = file.read(1)
            file.seek(position)
            file.write(bytes([byte[0] ^ 1 << dice.randrange(8)]))
            file.flush()
            done = elsewhere(tmp_path / "there", "import", str(bundle), DOCKER_HOST=node.url)
            file.seek(position)
            file.write(byte)
        assert (done.returncode, f"  | {name}: expected " in done.stderr) == (2, True), done.stderr
    assert list((tmp_path / "there").iterdir()) == []
    assert node.client().images.list(all=True) == []


def test_an_image_with_the_right_layers_and_an_environment_of_its_own_is_refused(bundle: Path, tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        manifest = json.loads(files["image/manifest.json"])[0]
        config = json.loads(files.pop(f"image/{manifest['Config']}"))
        index = json.loads(files["image/index.json"])["manifests"][0]
        del files[f"image/{oci.BLOBS}{index['digest'].removeprefix('sha256:')}"]
        config["config"]["Env"] = [*(config["config"].get("Env") or ()), "LD_PRELOAD=/data/numbers/two"]
        content = json.dumps(config).encode()
        name = hashlib.sha256(content).hexdigest()
        blobs = [each.removeprefix(oci.BLOBS) for each in manifest["Layers"]]
        layers = [(each, len(files[f"image/{oci.BLOBS}{each}"])) for each in blobs]
        made, small = oci._frame(manifest["RepoTags"][0], name, len(content), layers, index["platform"])
        small |= {oci.BLOBS + name: content, oci.BLOBS + hashlib.sha256(made).hexdigest(): made}
        files.update({f"image/{each}": text for each, text in small.items()})

    lying = rewritten(bundle, tmp_path / "lying.zip", change)
    with pytest.raises(BadInputError, match="another environment"), checking.opened(lying, print):
        pass


def imported_tag(record: Record) -> str:
    return f"{record.planned.image.tag}-{record.planned.image.content.removeprefix('sha256:')[:12]}"


def test_a_tag_that_another_image_has_stays_with_it(bundle: Path, tmp_path: Path, node: SecondEngine) -> None:
    assert elsewhere(tmp_path / "first", "import", str(bundle), DOCKER_HOST=node.url).returncode == 0
    client = node.client()
    (image,) = client.images.list()
    (own,) = image.tags
    name, _, version = own.rpartition("-")[0].rpartition(":")
    clear(node)
    client.images.load(b"".join(_of_one_file()))
    mine = client.images.list(all=True)[0]
    mine.tag(name, version)
    done = elsewhere(tmp_path / "second", "import", str(bundle), DOCKER_HOST=node.url)
    assert (done.returncode, own in done.stderr) == (0, True), done.stderr
    assert client.images.get(f"{name}:{version}").id == mine.id
    assert client.images.get(image.id).tags == [own]
    done = elsewhere(tmp_path / "third", "import", str(bundle), DOCKER_HOST=node.url)
    assert (done.returncode, own in done.stderr) == (0, False), done.stderr
    clear(node)


def _of_one_file() -> Iterator[bytes]:
    """An image as `docker save` writes it."""
    import io
    import tarfile

    def packed(files: dict[str, bytes]) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return out.getvalue()

    layer = packed({"mine": b"mine"})
    facts = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": facts}).encode()
    listed = json.dumps([{"Config": "c.json", "RepoTags": ["mine:1"], "Layers": ["l.tar"]}]).encode()
    yield packed({"c.json": config, "l.tar": layer, "manifest.json": listed})


PROGRAMS = ["docker", "sh", "cat", "chmod", "dirname", "head", "id", "ln", "ls", "mkdir", "sha256sum", "tail"]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH with an engine's client, a shell and coreutils."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).symlink_to(shutil.which(name) or f"no {name}")
    return folder


def unpacked(bundle: Path, folder: Path) -> Path:
    """Unpacked by something that keeps neither modes nor links."""
    with zipfile.ZipFile(bundle) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    return folder


def reproduce(folder: Path, path: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(path / "sh"), str(folder / "reproduce.sh"), *arguments],
        env={"PATH": str(path), "DOCKER_HOST": url},
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )


def test_the_script_runs_it_again_with_nothing_of_ours(
    bundle: Path, tmp_path: Path, node: SecondEngine, bare: Path
) -> None:
    folder = unpacked(bundle, tmp_path / "a folder")
    done = reproduce(folder, bare, node.url)
    assert done.returncode == 0, done.stderr + done.stdout
    *lines, last = done.stdout.splitlines()
    names = ("config.json", "data", "linked", "made by a program", "word")
    assert sorted(line for line in lines if "when.txt" not in line) == [f"same bytes  {name}" for name in names]
    assert last.startswith("REPRODUCED")
    assert "is there already" in reproduce(folder, bare, node.url).stderr
    (folder / "expected" / "results-sha256.txt").write_text(f"{'0' * 64}  word\n{'0' * 64}  nosuch\n")
    done = reproduce(folder, bare, node.url, str(tmp_path / "second"))
    assert (done.returncode, "expected/results-sha256.txt: FAILED" in done.stderr) == (3, True)
    with (folder / "manifest-sha256.txt").open("w") as manifest:
        sums = ["sha256sum", "expected/results-sha256.txt"]
        subprocess.run(sums, cwd=folder, stdout=manifest, check=True)
    done = reproduce(folder, bare, node.url, str(tmp_path / "second"))
    assert (done.returncode, done.stdout.splitlines()[:2]) == (1, ["differs     word", "missing     nosuch"])
    clear(node)


def test_a_thin_bundle_says_what_it_lacks_and_is_enough_where_that_is(
    run: RunFolder, repro: Repro, lab: Project, tmp_path: Path, bare: Path
) -> None:
    done = repro("export", "--thin", "-o", "thin.zip")
    assert done.returncode == 0, done.stderr
    record = run.read()
    text = (unpacked(lab.root / "thin.zip", tmp_path / "x") / "fetch.txt").read_text()
    lines = [line.split("\t") for line in text.splitlines()]
    assert [line[2] for line in lines] == ["image", "data/numbers/deep/one", "data/numbers/two"]
    done = repro("import", "thin.zip", REPRO_RUNS_DIR=str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert "without image, data numbers" in done.stderr
    assert RunFolder(tmp_path / "runs" / record.planned.run).read() == record
    done = reproduce(tmp_path / "x", bare, os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    assert (done.returncode, "the dataset numbers is not in this bundle" in done.stderr) == (3, True)


# not getrusage: a process that has just been made begins with the peak of the one that made it
MEASURED = r"""
import re, sys
from pathlib import Path
from repro.cli import main
code = main(sys.argv[1:])
print(re.search("VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""
LARGE = int(os.environ.get("REPRO_TEST_LARGE_IMAGE", "300"))  # MB


def test_memory_does_not_grow_with_the_image(
    lab: Project, repro: Repro, node: SecondEngine, tmp_path: Path, cache: Path
) -> None:
    with (lab.docker / "Dockerfile").open("a") as dockerfile:
        dockerfile.write(f"RUN head -c {LARGE}000000 /dev/urandom > /large\n")
    assert repro("run", "experiment=toy", "tracking.enabled=false").returncode == 0
    used = list(folders(lab.runs))[-1].read().planned.image

    def peak(*arguments: str, **environment: str) -> float:
        command = [sys.executable, "-c", MEASURED, *arguments]
        began = time.monotonic()
        done = subprocess.run(
            command, cwd=lab.root, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        megabytes = int(done.stdout.splitlines()[-1]) / 1000
        print(f"{arguments[0]}: {megabytes:.0f} MB, {time.monotonic() - began:.1f} s")
        return megabytes

    assert peak("export", "-o", "large.zip") < 150
    assert (lab.root / "large.zip").stat().st_size > LARGE * 1_000_000
    peak_in = peak(
        "import", "large.zip", DOCKER_HOST=node.url, REPRO_RUNS_DIR=str(tmp_path / "r"), REPRO_CACHE=str(tmp_path / "c")
    )
    assert peak_in < 150
    lab_engine = connect()
    lab_engine.remove_image(used.id, force=True)
    clear(node)


def test_secrets_stay_at_home_and_are_given_anew_by_name(
    lab: Project, repro: Repro, tmp_path: Path, bare: Path, cache: Path
) -> None:
    script(lab, "toy.sh", 'printf %s "$TOKEN" | sha256sum > $REPRO_OUTPUTS/sum; echo $TOKEN')
    write_experiment(lab.root, "toy", "[sh, toy.sh]", "secrets: {TOKEN: {env: FROM_HERE, to: env}}\n")
    done = repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false", FROM_HERE="s3cret-s3cret-s3cret")
    assert done.returncode == 0, done.stderr
    assert repro("export", "-o", "run.zip").returncode == 0
    folder = unpacked(lab.root / "run.zip", tmp_path / "unpacked")
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"s3cret" not in everything
    assert b"TOKEN" in everything
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "TOKEN").write_text("s3cret-s3cret-s3cret")
    environment = {"PATH": str(bare), "SECRETS": str(tmp_path / "secrets")}
    command = [str(bare / "sh"), str(folder / "reproduce.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "same bytes  sum"), done.stderr
    (tmp_path / "secrets" / "TOKEN").write_text("another")
    done = subprocess.run([*command, str(tmp_path / "2")], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "differs     sum"), done.stderr
