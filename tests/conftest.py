"""Fixtures that several test files share; the engine's are in engine_fixtures.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from repro.project import Project
from tests.engine_fixtures import any_builder, buildx, buildx_config, debian_base, engine, no_buildx  # noqa: F401
from tests.tracking_servers import database, folder_of_files  # noqa: F401

# how long an example takes is the machine's business: a busy one must not fail a test
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

GIT_IDENTITY = {
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.com",
}

EXPERIMENT = """\
# @package _global_
name: {name}
command: {command}
params: {{epochs: 3, optimizer: {{lr: 0.1}}}}
"""


@pytest.fixture(scope="session", autouse=True)
def _away_from_the_users_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's tracking store; caches stay, since they are content-addressed."""
    for name in ("MLFLOW_TRACKING_URI", "REPRO_RUNS_DIR", "HYDRA_FULL_ERROR"):
        os.environ.pop(name, None)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.update(GIT_IDENTITY)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project from nothing: conf/ with one experiment, docker/, and git."""
    root = tmp_path / "project"
    (root / "conf" / "experiment").mkdir(parents=True)
    (root / "docker").mkdir()
    (root / "docker" / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n")
    (root / "docker" / "requirements.txt").write_text("")
    write_experiment(root, "toy", "[sh, toy.sh]")
    (root / "toy.sh").write_text("echo hello\n")
    commit(root)
    return Project(root)


def as_nobody(imports: str, code: str, argument: Path) -> subprocess.CompletedProcess[str]:
    """Python code about the path `argument`, run by somebody who may not read everything, as root may.

    What it imports comes first: the interpreter may be root's alone.
    """
    leave = "os.setgid(65534)\nos.setuid(65534)" if os.geteuid() == 0 else ""
    code = f"import os, sys\nfrom pathlib import Path\n{imports}\nargument = Path(sys.argv[1])\n{leave}\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code, str(argument)],
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


def write_experiment(root: Path, name: str, command: str, more: str = "") -> None:
    """conf/experiment/NAME.yaml."""
    file = root / "conf" / "experiment" / f"{name}.yaml"
    file.write_text(EXPERIMENT.format(name=name, command=command) + more)


def commit(root: Path) -> str:
    """Everything in `root` as a commit; its id."""
    if not (root / ".git").exists():
        subprocess.run(["git", "init", "-q", "-b", "main", str(root)], check=True)
    subprocess.run(["git", "-C", str(root), "add", "-A"], check=True)
    subprocess.run(["git", "-C", str(root), "commit", "-qm", "work", "--allow-empty"], check=True)
    answer = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return answer.stdout.strip()


@pytest.fixture
def lab(project: Project, debian_base: str) -> Project:  # noqa: F811 - the fixture imported above
    """The project with an image that is built in a second: the bare Debian base, with Python and a shell in it."""
    use_base(project, debian_base)
    logged = "repro-log step=1 loss=0.5; repro-log step=2 loss=0.25"
    script(project, "toy.sh", f"echo hello; {logged}; echo 42 > $REPRO_OUTPUTS/x")
    return project


def use_base(project: Project, base: str) -> None:
    """Let the default variant start from `base`."""
    (project.conf / "image").mkdir(exist_ok=True)
    (project.conf / "image" / "tensorflow.yaml").write_text(f"variant: tensorflow\nbase: {base}\n")


def script(project: Project, name: str, text: str) -> None:
    """A file of the project's."""
    (project.root / name).write_text(text + "\n")


@pytest.fixture
def repro(project: Project) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line as a user runs it, in the project: `repro("run", "experiment=toy")`."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from repro.__main__ import entry; entry()", *arguments],
            cwd=project.root,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=240,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library that answers as NVIDIA's does on a machine with two GPUs, where the loader finds it."""
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [
            "cc",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Werror",
            "-o",
            str(library),
            str(Path(__file__).parent / "gpu-shim" / "nvml.c"),
        ],
        check=True,
    )
    return folder
