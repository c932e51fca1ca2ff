"""reproduce.sh on Podman, with its own program and with Docker's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repro.project import Project
from tests.conftest import script
from tests.debian_engine import PODMAN, DebianEngine, podman_engine, root_file_system
from tests.test_bundle_engine import PROGRAMS, unpacked

pytestmark = [pytest.mark.engine, pytest.mark.podman]

Repro = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def podman() -> Iterator[DebianEngine]:
    with podman_engine("bookworm") as engine:
        yield engine


def client(podman: DebianEngine) -> str:
    """Podman's program, out of the root file system that its engine runs in."""
    root = root_file_system("bookworm", "podman", PODMAN)
    libraries = f"{root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu"
    loader = f"{root}/lib64/ld-linux-x86-64.so.2 --library-path {libraries}"
    return f'#!/bin/sh\nHOME=/nowhere exec {loader} {root}/usr/bin/podman --remote --url {podman.url} "$@"\n'


@pytest.mark.parametrize("name", ["podman", "docker"])
def test_the_script_runs_on_podman(lab: Project, repro: Repro, podman: DebianEngine, tmp_path: Path, name: str) -> None:
    script(lab, "toy.sh", "echo hello; id -u > $REPRO_OUTPUTS/user; echo 42 > $REPRO_OUTPUTS/x")
    assert repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false").returncode == 0
    assert repro("export", "-o", "run.zip").returncode == 0
    folder = unpacked(lab.root / "run.zip", tmp_path / "unpacked")
    path = tmp_path / "bin"
    path.mkdir()
    for each in PROGRAMS:
        if each != "docker":
            (path / each).symlink_to(shutil.which(each) or f"no {each}")
    if name == "podman":
        (path / "podman").write_text(client(podman))
        (path / "podman").chmod(0o755)
    else:
        (path / "docker").symlink_to(shutil.which("docker") or "no docker")
    done = subprocess.run(
        [str(path / "sh"), str(folder / "reproduce.sh")],
        env={"PATH": str(path), "DOCKER_HOST": podman.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert [line.split()[-1] for line in done.stdout.splitlines()[:-1]] == ["user", "x"]
