"""Bundles on real engines: out of one, into another that has nothing, and run again without anything of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repro.images.pieces import Say
from repro.project import Project
from repro.record import RunFolder, folders
from tests.conftest import commit, script, write_experiment
from tests.second_engine import SecondEngine, second_engine

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


def quiet(_line: str) -> None:
    """Nobody listens."""


SILENT: Say = quiet


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
    import hashlib

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
        [sys.executable, "-c", "from repro.cli import entry; entry()", *arguments],
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
    kept = tmp_path / bundle.name
    shutil.move(bundle, kept)
    before = {path.relative_to(run.path): path.read_bytes() for path in run.outputs.rglob("*") if path.is_file()}
    digest = json.loads(json.dumps(run.read().planned.run))
    shutil.rmtree(lab.root)
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(tmp_path / "source")
    there = tmp_path / "empty"
    done = elsewhere(there, "import", str(kept), DOCKER_HOST=node.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == digest
    found = RunFolder(there / "runs" / digest)
    after = {path.relative_to(found.path): path.read_bytes() for path in found.outputs.rglob("*") if path.is_file()}
    assert before == after
    planned = found.read().planned
    assert tuple(node.client().images.get(planned.image.tag).attrs["RootFS"]["Layers"]) == planned.image.layers
    again = elsewhere(there, "import", str(kept), DOCKER_HOST=node.url)
    assert (again.returncode, "was here" in again.stderr) == (0, True)
    assert elsewhere(there, "show", "latest").returncode in (0, 2)


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
    print(done.stdout)
    assert done.stdout.splitlines()[-1].startswith("REPRODUCED")
    assert reproduce(folder, bare, node.url).returncode == 2
