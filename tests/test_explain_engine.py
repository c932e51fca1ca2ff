"""`repro rebuild` says why: what changed since the image of the lock, or the newest one, on a real engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from repro.engines.engine import Engine
from repro.project import Project

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
DOCKERFILE = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nARG REQUIREMENTS\nCOPY ${REQUIREMENTS} /tmp/\nARG API_TOKEN\n"


@pytest.fixture
def named(lab: Project, engine: Engine, debian_base: str) -> Iterator[str]:
    """The lab with an image of a name of its own, of which nothing stays; the name."""
    name = f"test-explain-{os.getpid()}"
    (lab.conf / "image" / "tensorflow.yaml").write_text(f"variant: tensorflow\nbase: {debian_base}\nname: {name}\n")
    (lab.docker / "Dockerfile").write_text(f"{DOCKERFILE}ENV AT={time.time()}\n")
    (lab.docker / "requirements.txt").write_text("# ours\ntensorflow==2.20.0\n-i https://me:hunter1@example.com/x\n")
    yield name
    for found in engine.client.api.images(name):
        engine.remove_image(found["Id"], force=True)


def edit(project: Project, file: str, old: str, new: str) -> None:
    text = (project.root / file).read_text()
    assert old in text
    (project.root / file).write_text(text.replace(old, new))


def test_the_line_that_changed_is_named_before_anything_is_built(lab: Project, named: str, repro: Repro) -> None:
    nothing = repro("rebuild", "--explain")
    assert nothing.returncode == 1
    assert nothing.stdout.endswith("there is no earlier image here to compare with\n")
    first = repro("rebuild", "--if-changed")
    assert "because  there is no earlier image here to compare with\n" in first.stderr
    same = repro("rebuild", "--explain")
    tag = same.stdout.split()[0]
    assert same.returncode == 0
    assert same.stdout.startswith(f"{tag}  up to date\nsince {tag} (")
    assert same.stdout.endswith(" old, the same): nothing changed\n")

    edit(lab, "docker/requirements.txt", "2.20.0", "2.21.0")
    edit(lab, "docker/requirements.txt", "hunter1@example.com/x", "hunter2@example.com/y")
    edit(lab, "docker/Dockerfile", "ARG API_TOKEN", "ENV API_TOKEN=hunter3")
    changed = repro("rebuild", "--explain", "+image.build_args.API_TOKEN=hunter4")
    assert changed.returncode == 1
    heading, since, *lines = changed.stdout.splitlines()
    assert heading.endswith("  out of date: `repro rebuild` builds it")
    assert since.startswith(f"since {tag} (")
    assert since.endswith(" old, repro.lock names it for tensorflow):")
    assert [line.partition("sha256:")[0] for line in lines] == [
        "  docker/Dockerfile:5  ARG API_TOKEN -> ENV API_TOKEN=",
        "  docker/requirements.txt:2  tensorflow 2.20.0 -> 2.21.0",
        "  docker/requirements.txt:3  -i https://***@example.com/x -> https://***@example.com/y",
        "  image.build_args  API_TOKEN added ",
    ]
    built = repro("rebuild", "--if-changed")
    assert "because  docker/Dockerfile:5  ARG API_TOKEN -> ENV API_TOKEN=sha256:" in built.stderr
    assert f", and 2 more changes, since {tag}\n" in built.stderr
    for said in (changed.stdout, changed.stderr, built.stdout, built.stderr):
        assert "hunter" not in said


IMPORTED = """
import sys
from repro.cli import main
code = main(sys.argv[1:])
print(code, *({"docker", "requests", "mlflow", "repro.recipe.explain"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("flag", ["--check", "--if-changed"])
def test_a_look_imports_nothing_slow(lab: Project, named: str, repro: Repro, flag: str) -> None:
    assert repro("rebuild").returncode == 0
    command = [sys.executable, "-c", IMPORTED, "rebuild", flag]
    looked = subprocess.run(command, cwd=lab.root, check=True, capture_output=True, text=True)
    assert looked.stdout.splitlines()[1:] == ["0"]


def test_programs_get_the_same_from_check_and_explain(lab: Project, named: str, repro: Repro) -> None:
    tag = repro("rebuild").stdout.split()[0]
    edit(lab, "docker/requirements.txt", "2.20.0", "2.21.0")
    check, explain = repro("rebuild", "--check", "--json"), repro("rebuild", "--explain", "--json")
    assert (check.returncode, check.stdout) == (explain.returncode, explain.stdout)
    answer = json.loads(check.stdout)
    assert answer["present"] is False
    assert answer["since"]["tag"] == tag
    assert answer["changes"] == [
        {"input": "docker/requirements.txt", "line": 2, "what": "tensorflow", "before": "2.20.0", "after": "2.21.0"}
    ]
    edit(lab, "docker/requirements.txt", "2.21.0", "2.20.0")
    check = repro("rebuild", "--check", "--json")
    answer = json.loads(check.stdout)
    assert (check.returncode, answer["present"], answer["changes"], answer["since"]["tag"]) == (0, True, [], tag)


def test_without_the_image_of_the_lock_the_newest_of_the_same_dockerfile_is_compared(
    lab: Project, named: str, repro: Repro
) -> None:
    repro("rebuild")
    edit(lab, "docker/requirements.txt", "# ours\n", "# ours\nnumpy==1\n")
    second = repro("rebuild").stdout.split()[0]
    (lab.docker / "other").write_text((lab.docker / "Dockerfile").read_text())
    assert repro("rebuild", "image.dockerfile=docker/other").returncode == 0
    lab.lock.unlink()
    edit(lab, "docker/requirements.txt", "numpy==1", "numpy==2")
    _, since, *lines = repro("rebuild", "--explain").stdout.splitlines()
    assert since.startswith(f"since {second} (")
    assert since.endswith(f" old, the newest of {named} here):")
    assert lines == ["  docker/requirements.txt:2  numpy 1 -> 2"]


def test_an_image_that_is_there_is_explained_since_the_lock(lab: Project, named: str, repro: Repro) -> None:
    """As `repro run` leaves it, which builds and writes no lock; `--locked` refuses it."""
    first = repro("rebuild").stdout.split()[0]
    lock = lab.lock.read_text()
    edit(lab, "docker/requirements.txt", "2.20.0", "2.21.0")
    repro("rebuild")
    lab.lock.write_text(lock)
    told = repro("rebuild", "--explain")
    assert told.returncode == 0
    heading, since, *lines = told.stdout.splitlines()
    assert heading.endswith("up to date")
    assert since.startswith(f"since {first} (")
    assert lines == ["  docker/requirements.txt:2  tensorflow 2.20.0 -> 2.21.0"]


def test_an_image_that_lost_its_label_is_said_to_be_silent(
    lab: Project, named: str, repro: Repro, engine: Engine
) -> None:
    made = json.loads(repro("rebuild", "--json").stdout)
    recipe = f"FROM {made['id']}\nLABEL repro.manifest=\n"
    subprocess.run(["docker", "build", "-qt", made["tag"], "-"], input=recipe.encode(), check=True, capture_output=True)
    edit(lab, "repro.lock", made["id"], "sha256:" + "0" * 64)
    edit(lab, "docker/requirements.txt", "2.20.0", "2.21.0")
    told = repro("rebuild", "--explain")
    assert told.stdout.splitlines()[1].endswith(
        "repro.lock names it for tensorflow): it does not say what it was made from"
    )
    assert json.loads(repro("rebuild", "--check", "--json").stdout)["changes"] is None
    assert "is another one, and it does not say" in repro("rebuild", "--if-changed").stderr


def test_another_base_of_the_lock_is_told_although_the_hash_is_the_same(
    lab: Project, named: str, repro: Repro, engine: Engine, debian_base: str
) -> None:
    """An id is no part of the hash: it names an image that no registry has."""
    (lab.docker / "requirements.txt").write_text("")
    repro("rebuild")
    before = engine.image(debian_base)
    recipe = f"FROM {debian_base}\nLABEL test={named}\n"
    command = ["docker", "build", "-qt", f"{named}:other", "-"]
    subprocess.run(command, input=recipe.encode(), check=True, capture_output=True)
    other = engine.image(f"{named}:other")
    assert before is not None
    assert other is not None
    resolved = f"""[resolved.tensorflow]\nas_of = "2026-01-01T00:00:00Z"\nplatform = "linux/amd64"
[resolved.tensorflow.images]\n"{debian_base}" = "{other.id}"\n"""
    edit(lab, "repro.lock", "[image.tensorflow]", resolved + "\n[image.tensorflow]")
    told = repro("rebuild", "--explain")
    assert told.returncode == 1
    assert told.stdout.splitlines()[2:] == [f"  repro.lock  {debian_base} {before.id[:19]} -> {other.id[:19]}"]


def test_an_explanation_builds_nothing(lab: Project, named: str, repro: Repro, engine: Engine) -> None:
    repro("rebuild", "--explain")
    assert engine.client.api.images(named) == []
    assert not lab.lock.exists()
