"""A run on one machine, pushed, and pulled on another: two clones, two engines, a real registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from repro.engines.engine import Engine
from repro.project import Project
from repro.record import RunFolder
from repro.sharing import images
from tests.conftest import commit, script
from tests.registry_server import RegistryServer
from tests.second_engine import SecondEngine, second_engine
from tests.test_registry_engine import NAME, clear, configure
from tests.test_run_engine import latest
from tests.test_sharing import clone, git

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    server = RegistryServer(tmp_path_factory.mktemp("registry"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def node() -> Iterator[SecondEngine]:
    """The other machine's engine, which has none of our images."""
    with second_engine(gpus=None, host_network=True) as engine:
        yield engine


@pytest.fixture
def alice(
    lab: Project, registry: RegistryServer, engine: Engine, debian_base: str, tmp_path: Path
) -> Iterator[Project]:
    """A project with a git remote, a registry, and an image that nobody has."""
    (lab.docker / "Dockerfile").write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nENV AT={uuid.uuid4()}\n")
    configure(lab, registry.host, debian_base)
    script(lab, "toy.sh", "cat words.txt > $REPRO_OUTPUTS/x")
    (lab.root / ".gitignore").write_text("/runs/\n/.repro/\n/mlflow.db*\n/repro.lock\n")
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "remote.git")
    commit(lab.root)
    git(lab.root, "remote", "add", "origin", str(tmp_path / "remote.git"))
    git(lab.root, "push", "-q", "origin", "main")
    (lab.root / "words.txt").write_text("never committed\n")
    yield lab
    clear(engine.client)


def bobs(project: Project, node: SecondEngine) -> Repro:
    """The command line on the other machine."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "repro", *arguments],
            cwd=project.root,
            env={**os.environ, "DOCKER_HOST": node.url},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return call


def test_a_run_goes_from_one_machine_to_another_with_code_and_image(
    alice: Project, repro: Repro, node: SecondEngine, registry: RegistryServer, tmp_path: Path
) -> None:
    done = repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    record, folder = latest(alice)
    done = repro("push", "--json")
    assert done.returncode == 0, done.stderr
    assert "A words.txt" in done.stderr
    digest = json.loads(done.stdout)["image"]
    assert digest == images.shared(folder).image
    assert digest.partition("@")[2] in registry.tags(NAME).values()
    before = len(registry.requests())
    assert json.loads(repro("push", "--json").stdout)["image"] == digest
    assert not [line for line in registry.requests()[before:] if not line.startswith(("GET", "HEAD"))]

    bob = clone(tmp_path / "remote.git", tmp_path / "bob")
    there = bobs(bob, node)
    done = there("pull", "--image", record.planned.run)
    assert done.returncode == 0, done.stderr
    pulled = RunFolder(bob.runs / record.planned.run)
    assert pulled.read() == record
    assert node.client().images.get(record.planned.image.id).attrs["RepoDigests"] == [digest]
    assert git(bob.root, "show", f"{record.planned.code.commit}:words.txt") == "never committed"


def test_a_colleague_reproduces_a_run_and_signs_that_and_it_comes_back(
    alice: Project, repro: Repro, node: SecondEngine, tmp_path: Path
) -> None:
    assert repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false").returncode == 0
    run = latest(alice)[0].planned.run
    assert repro("push").returncode == 0
    (alice.root / "words.txt").write_text("later\n")
    bob = clone(tmp_path / "remote.git", tmp_path / "bob")
    there = bobs(bob, node)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    public = (tmp_path / "key.pub").read_text().strip()
    policy = tmp_path / "policy.toml"
    policy.write_text(f'threshold = 1\nlevel = "E5"\n[keys]\nbob = "{public}"\n')

    assert there("pull", run).returncode == 0
    done = there("verify", run, "--policy", str(policy))
    assert (done.returncode, done.stdout) == (4, "0 of 1 signers that the policy demands\n"), done.stderr
    done = there("reproduce", run, "--expect", "E5", "--sign", str(tmp_path / "key"))
    assert done.returncode == 0, done.stderr
    assert node.client().images.get(latest(alice)[0].planned.image.id)
    assert there("push", run).returncode == 0

    assert repro("pull", run).returncode == 0
    done = repro("verify", run, "--policy", str(policy))
    assert (done.returncode, "1 of 1 signers that the policy demands: bob" in done.stdout) == (0, True), done.stderr
    folder = latest(alice)[1]
    record = msgspec.structs.replace(folder.read().planned, notices=("another",))
    folder.write(msgspec.structs.replace(folder.read(), planned=record))
    done = repro("verify", run, "--policy", str(policy))
    assert (done.returncode, "it is about another record" in done.stdout) == (4, True)


def test_an_image_of_another_build_in_the_registry_keeps_its_tag(
    alice: Project, repro: Repro, registry: RegistryServer
) -> None:
    assert repro("rebuild", "--push").returncode == 0
    before = registry.tags(NAME)
    assert repro("rebuild", "--no-cache", "--no-pull").returncode == 0
    assert repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false").returncode == 0
    done = repro("push", "--json")
    assert done.returncode == 0, done.stderr
    image = latest(alice)[0].planned.image
    now = registry.tags(NAME)
    assert set(now) - set(before) == {f"{image.spec[:16]}-{image.id[7:19]}"}
    assert {tag: now[tag] for tag in before} == before


def test_without_a_registry_the_image_stays_and_that_is_told(alice: Project, repro: Repro, debian_base: str) -> None:
    configure(alice, None, debian_base)
    assert repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false").returncode == 0
    done = repro("push")
    assert (done.returncode, "not sent (no `image.registry`)" in done.stderr) == (0, True), done.stderr


def test_an_image_that_is_gone_is_told(alice: Project, repro: Repro, engine: Engine) -> None:
    assert repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false").returncode == 0
    engine.client.api.remove_image(latest(alice)[0].planned.image.id, force=True)
    done = repro("push")
    assert (done.returncode, "is not on this engine any more: not sent" in done.stderr) == (0, True), done.stderr


def test_an_image_that_no_registry_has_is_told_and_the_run_is_here_all_the_same(
    alice: Project, repro: Repro, node: SecondEngine, tmp_path: Path
) -> None:
    assert repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false").returncode == 0
    assert repro("push", "--no-image").returncode == 0
    bob = clone(tmp_path / "remote.git", tmp_path / "bob")
    done = bobs(bob, node)("pull", "--image", "latest")
    assert (done.returncode, "no registry is known to have it" in done.stderr) == (3, True), done.stderr
    assert latest(bob)[0] == latest(alice)[0]
