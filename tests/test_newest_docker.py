"""The whole path on a Docker of today, in both of its image stores: the ids of images mean another thing in each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repro.engines.engine import connect
from repro.project import Project
from tests.conftest import use_base
from tests.debian_engine import USER, as_user, docker_engine
from tests.test_run_engine import latest

pytestmark = [pytest.mark.engine, pytest.mark.podman]

GIT = shutil.which("git") or "/usr/bin/git"
Repro = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module", params=["overlay2", "containerd"])
def store(request: pytest.FixtureRequest, debian_base: str) -> Iterator[str]:
    """Docker 28 with either store, and the base image on it."""
    with docker_engine("forky", containerd=request.param == "containerd", gpus=True) as engine:
        engine.copy_image(debian_base)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", engine.url)
            yield str(request.param)


def run(repro: Repro, *arguments: str) -> subprocess.CompletedProcess[str]:
    return repro("run", "experiment=toy", "tracking.enabled=false", *arguments)


def test_an_image_is_built_locked_run_pinned_and_pruned(
    lab: Project, repro: Repro, store: str, any_builder: str, tmp_path: Path
) -> None:
    if any_builder == "classic":  # without the docker command, but not without git
        (tmp_path / "no-programs").mkdir()
        (tmp_path / "no-programs" / "git").symlink_to(GIT)
    (lab.docker / "Dockerfile").write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nRUN echo {any_builder} > /built\n")
    built = repro("rebuild", "--json")
    assert built.returncode == 0, built.stderr
    image = json.loads(built.stdout)
    assert image["digest"] is None  # the containerd store has one for every image; no registry has seen this one
    assert repro("rebuild", "--check").returncode == 0
    done = run(repro, "--locked", "gpus=none")
    assert done.returncode == 0, done.stderr
    record, folder = latest(lab)
    assert record.planned.image.id == image["id"]
    assert record.planned.host.engine.endswith(f"({store})")
    owner = (folder.outputs / "x").stat()
    assert (owner.st_uid, owner.st_gid) == (os.getuid(), os.getgid())

    assert repro("pin", image["tag"]).returncode == 0
    (row,) = [row for row in json.loads(repro("images", "--json").stdout) if row["tag"] == image["tag"]]
    assert (row["pinned"], row["runs"]) == (True, [record.planned.run])
    assert "it is pinned" in repro("prune", "--force", "--dry-run").stderr
    assert repro("pin", "--remove", image["tag"]).returncode == 0
    forced = repro("prune", "--force", "--dry-run")
    assert f"run {record.planned.run} could not be re-executed from this image" in forced.stderr
    assert "can be pulled again" not in forced.stderr
    connect().remove_image(image["tag"])


def test_a_base_that_was_made_here_can_be_built_on(
    lab: Project, repro: Repro, store: str, buildx: str, debian_base: str
) -> None:
    connect().tag(debian_base, "test-own-base:1")
    use_base(lab, "test-own-base:1")  # a name that no registry knows, with a digest in the containerd store
    built = repro("rebuild", "--json")
    assert built.returncode == 0, built.stderr
    connect().remove_image(json.loads(built.stdout)["tag"])


@pytest.mark.parametrize(("asked", "given"), [("all", "all"), ("auto", "all"), ("1", "0"), ("[1]", "1")])
def test_gpus_that_only_cdi_announces_are_given(lab: Project, repro: Repro, store: str, asked: str, given: str) -> None:
    done = run(repro, f"gpus={asked}", "command=[sh,-c,'test -d /fake-gpu && echo gpus=$NVIDIA_VISIBLE_DEVICES']")
    assert done.returncode == 0, done.stderr
    assert latest(lab)[1].output_log.read_text() == f"gpus={given}\n"
    assert "NO GPU" not in done.stderr


def test_a_gpu_that_there_is_not_is_refused(lab: Project, repro: Repro, store: str) -> None:
    done = run(repro, "gpus=[7]")
    assert done.returncode == 3
    assert "unresolvable CDI devices nvidia.com/gpu=7" in done.stderr


def test_the_doctor_knows_what_an_id_is_made_of(lab: Project, repro: Repro, store: str) -> None:
    found = {each["what"]: each for each in json.loads(repro("doctor", "--json").stdout)}
    assert found["engine"]["facts"]["store"] == store
    assert found["image ids"]["facts"]["id_of"] == ("manifest" if store == "containerd" else "configuration")
    assert found["gpu"]["facts"]["engine"] == "cdi"


def test_a_rootless_docker_gives_all_files_to_the_caller(lab: Project, debian_base: str) -> None:
    with docker_engine("forky", rootless=True) as engine:
        engine.copy_image(debian_base)
        with as_user(engine, lab) as call:
            done, theirs = call("gpus=none", "tracking.enabled=false", "resources.memory=1GB")
            assert done.returncode == 0, done.stderr
            record, folder = latest(theirs)
            assert record.planned.user == "0:0"  # root in there is the caller out here
            owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in folder.path.rglob("*")}
            assert owners == {(USER, USER)}
            unkept = engine.client().info()["MemoryLimit"] is False
            assert ("note: resources.memory: Docker takes the limit" in done.stderr) is unkept
