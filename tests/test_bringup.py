"""The scripts behind make: real shells, a real virtual environment, the engine that is there. Nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]

PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "toy"
version = "1"
"""

# builds an editable wheel with the standard library: the test needs no package index
BACKEND = """\
import os, zipfile

META = "Metadata-Version: 2.1\\nName: toy\\nVersion: 1\\nProvides-Extra: dev\\n"
WHEEL = "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("toy.pth", os.getcwd() + "/src")
        wheel.writestr("toy-1.dist-info/METADATA", META)
        wheel.writestr("toy-1.dist-info/WHEEL", WHEEL)
        wheel.writestr("toy-1.dist-info/RECORD", "")
    return name
"""


def call(*argv: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(argument) for argument in argv],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def tools(folder: Path, **programs: str) -> str:
    """A PATH that holds the programs of this machine but uv, and `programs` (shell scripts) before them."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    there = [Path(each) for each in os.environ["PATH"].split(os.pathsep)]
    return os.pathsep.join([str(folder), *(str(each) for each in there if not (each / "uv").exists())])


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A project of nothing, with our scripts."""
    root = tmp_path / "a project"
    (root / "src").mkdir(parents=True)
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "backend.py").write_text(BACKEND)
    (root / "src" / "toy.py").write_text("")
    shutil.copytree(ROOT / "scripts", root / "scripts")
    return root


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_correct_shell(script: Path) -> None:
    assert call("bash", "-n", script).stderr == ""
    if shutil.which("shellcheck"):
        assert call("shellcheck", "--external-sources", script.relative_to(ROOT)).stdout == ""


def test_every_target_of_make_starts_a_script_that_is_there() -> None:
    for target in ("demo", "test", "check", "bench", "setup", "engine"):
        done = call("make", "--no-print-directory", "--dry-run", target)
        assert done.returncode == 0, done.stderr
        programs = {line.split()[0] for line in done.stdout.splitlines()} - {".venv/bin/python"}
        assert all(os.access(ROOT / program, os.X_OK) for program in programs)


def test_the_environment_is_made_once_and_again_only_for_another_pyproject(toy: Path) -> None:
    path = tools(toy.parent / "bin")
    assert call("scripts/setup.sh", cwd=toy, PATH=path).stdout.splitlines()[-1].startswith(".venv made with pip")
    assert call(".venv/bin/python", "-c", "import toy; print(toy.__file__)", cwd=toy).stdout == f"{toy}/src/toy.py\n"

    broken = tools(toy.parent / "broken", **dict.fromkeys(("python3", "pip", "uv"), "exit 1"))  # it asks none of them
    assert call("scripts/setup.sh", cwd=toy, PATH=broken).stdout == ".venv is up to date\n"

    (toy / "pyproject.toml").write_text(PYPROJECT + "description = 'changed'\n")
    assert ".venv made" in call("scripts/setup.sh", cwd=toy, PATH=path).stdout


def test_an_installation_that_failed_is_tried_again(toy: Path) -> None:
    path = tools(toy.parent / "bin")
    (toy / "backend.py").rename(toy / "away.py")
    assert call("scripts/setup.sh", cwd=toy, PATH=path).returncode != 0
    (toy / "away.py").rename(toy / "backend.py")
    assert ".venv made" in call("scripts/setup.sh", cwd=toy, PATH=path).stdout


def test_a_python_that_is_too_old_is_named_in_two_lines(toy: Path) -> None:
    names = ("python3", *(f"python3.{minor}" for minor in range(10, 15)))
    old = dict.fromkeys(names, 'case "$1" in --version) echo Python 3.8.1;; *) exit 1;; esac')
    done = call("scripts/setup.sh", cwd=toy, PATH=tools(toy.parent / "bin", **old, id="echo 1000"))
    assert done.returncode == 3
    assert done.stderr.splitlines()[0].endswith("found: Python 3.8.1")
    assert done.stderr.splitlines()[1].startswith("try: ")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.engine
def test_nothing_is_done_where_an_engine_answers() -> None:
    done = call("scripts/engine-up.sh")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if "mmdebstrap" not in line] == [
        "an engine answers at the usual place"
    ]


def test_an_engine_that_the_user_names_and_that_is_silent_is_not_replaced(tmp_path: Path) -> None:
    silent = f"unix://{tmp_path}/none.sock"
    done = call("scripts/engine-up.sh", DOCKER_HOST=silent)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        f"no engine answers at DOCKER_HOST={silent}",
        "try: start that engine, or unset DOCKER_HOST to use the one of this machine",
    ]


@pytest.mark.skipif(not Path("/proc/self/root").exists(), reason="needs /proc")
def test_a_pid_file_is_stale_unless_its_process_is_that_program(tmp_path: Path) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    zombie = subprocess.Popen(["true"])  # not waited for
    time.sleep(0.2)
    expected = {"sleep": "there", "dockerd": "gone"}
    try:
        for program, state in expected.items():
            assert remains(tmp_path / "pid", str(sleeper.pid), program) == state
        assert remains(tmp_path / "pid", str(zombie.pid), "true") == "gone"
        assert remains(tmp_path / "pid", "", "sleep") == "gone"
    finally:
        sleeper.kill()
        sleeper.wait()
        zombie.wait()


def remains(file: Path, content: str, program: str) -> str:
    """Whether engine-up.sh leaves a pid file of this content."""
    file.write_text(content)
    script = '. scripts/engine-up.sh; remove_if_stale "$1" "$2" || true; [ -e "$1" ] && echo there || echo gone'
    return call("bash", "-c", script, "bash", file, program).stdout.strip()


def steps(script: str) -> subprocess.CompletedProcess[str]:
    return call("bash", "-c", f"set -eu; . scripts/steps.sh; {script}", V="")


def test_a_step_shows_its_answer_and_its_time() -> None:
    done = steps("step 1/2 engine sh -c 'echo installing; echo answers'")
    assert done.stdout.splitlines()[0] == "[1/2] engine …"
    assert done.stdout.splitlines()[1].startswith("[1/2] engine: answers · ")
    assert done.stdout.endswith(" s\n")


def test_a_step_that_fails_shows_all_that_it_said_and_ends_the_script() -> None:
    done = steps("step 1/2 engine sh -c 'echo one; echo two >&2; exit 3'; echo not reached")
    assert done.returncode == 3
    assert done.stderr == "  | one\n  | two\n"
    assert "not reached" not in done.stdout
