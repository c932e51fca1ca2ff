"""`repro rebuild --verify` on a real engine, by both builders: what it answers, and that nothing stays."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repro import image
from repro.engines.engine import Engine
from repro.experiment import ImageConfig
from repro.project import Project
from repro.recipe import assembly
from repro.recipe.assembly import FromHost
from repro.recipe.spec import ImageSpec

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "docker" / "Dockerfile"
START = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}"
Repro = Callable[..., "subprocess.CompletedProcess[str]"]

UNREPEATABLE = f"""{START} AS first
RUN mkdir /out && echo a >/out/a
{START.splitlines()[1]}
RUN date +%s.%N >/when && mkdir /p && echo x=1 >/p/m.py && cd /p && python3 -c 'import m' && \\
    echo installed at $(date +%N) >>/var/log/tool.log && echo hi | gzip >/hi && date +%N >/etc/machine-id && \\
    hostname >/host && nproc >/processors
COPY --from=first /out/a /opt/a
"""

REPEATABLE = f"""{START} AS first
RUN mkdir -p /out/opt && nproc >/tmp/x && hostname >>/tmp/x && date >>/tmp/x && echo a >/out/opt/a && \\
    find /out -exec touch -hcd @1 {{}} +
{START.splitlines()[1]}
COPY --from=first /out/ /
"""


@pytest.fixture
def named(
    project: Project, engine: Engine, debian_base: str, request: pytest.FixtureRequest
) -> Iterator[tuple[Project, str]]:
    """The project, its images under a name of its own that leaves nothing on the engine."""
    name = f"test-{os.getpid()}-{abs(hash(request.node.name))}"
    (project.conf / "image").mkdir()
    (project.conf / "image" / "tensorflow.yaml").write_text(
        f"variant: tensorflow\nbase: {debian_base}\nname: {name}\nrequirements: null\n"
    )
    yield project, name
    for tag in tags(engine, name):
        engine.remove_image(tag)


def tags(engine: Engine, name: str) -> list[str]:
    return [tag for found in engine.client.api.images(name) for tag in found["RepoTags"] or ()]


def write(project: Project, dockerfile: str) -> None:
    (project.docker / "Dockerfile").write_text(dockerfile)


def test_what_is_not_repeatable_is_named_with_its_cause_and_what_helps(
    named: tuple[Project, str], no_buildx: None, engine: Engine, repro: Repro
) -> None:
    project, name = named
    write(project, UNREPEATABLE)
    done = repro("rebuild", "--verify")
    assert done.returncode == 1, done.stderr
    assert f"{name}:" in done.stdout
    assert "not repeatable: 2 of 3 layers differ between two builds" in done.stdout
    assert "p/__pycache__/m.cpython-311.pyc  (time, content)" in done.stdout
    lines = done.stdout.splitlines()
    for path, cause in {
        "p/__pycache__/m.cpython-311.pyc": "Python bytecode with the time of its source",
        "var/log/tool.log": "a log, with times",
        "etc/machine-id": "at random",
        "when": "its content depends on time",
        "opt/a": "COPY: the time of the build",
    }.items():
        place = next(number for number, line in enumerate(lines) if line.startswith(f"      {path}  ("))
        assert cause in next(line for line in reversed(lines[:place]) if line.startswith("    ") and line[4] != " ")
        assert any(line.startswith("      try  ") for line in lines[place:])
    assert "layer 2" in done.stdout
    assert "date +%s.%N >/when" in done.stdout  # the instruction that made it
    assert "varied      time (" in done.stdout
    assert tags(engine, name) == []


def test_everything_that_differs_is_in_the_json_with_both_values(
    named: tuple[Project, str], any_builder: str, repro: Repro
) -> None:
    project, _name = named
    write(project, UNREPEATABLE)
    done = repro("rebuild", "--verify", "--json")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert answer["identical"] is False
    assert answer["present"] is None
    second, third = answer["differences"]
    assert [second["number"], third["number"]] == [2, 3]
    assert second["diff_ids"] == [answer["layers"][0][1], answer["layers"][1][1]]
    found = {each["path"]: each for each in second["differences"]}
    one, other = found["when"]["what"]["time"]
    assert other - one >= 3
    # what was varied is seen by the steps, and what this builder cannot vary is not
    varied = {word for text in answer["varied"] for word in text.split(" (")[:1]}
    assert ("content" in found["host"]["what"]) == ("host name" in varied)
    assert ("content" in found["processors"]["what"]) == ("one processor" in varied)
    assert varied == ({"time", "host name", "one processor"} if any_builder == "classic" else varied)


def test_a_repeatable_image_is_told_with_its_layers_and_its_own_image_is_compared_too(
    named: tuple[Project, str], any_builder: str, engine: Engine, repro: Repro
) -> None:
    project, name = named
    write(project, REPEATABLE)
    done = repro("rebuild", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "repeatable: two builds gave the same 2 layers, bit for bit" in done.stdout
    assert "the image that is here" not in done.stdout
    assert tags(engine, name) == []
    built = repro("rebuild")
    assert built.returncode == 0, built.stderr
    (tag,) = tags(engine, name)
    before = engine.image(tag)
    assert before is not None
    done = repro("rebuild", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the image that is here has these layers, too" in done.stdout
    assert [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("  layer")] == [*before.layers]
    assert (tags(engine, name), engine.image(tag)) == ([tag], before)


def test_an_image_that_is_here_and_came_out_otherwise_is_told(
    named: tuple[Project, str], any_builder: str, engine: Engine, repro: Repro
) -> None:
    """Say, of packages of another day; here, with a file that a container added."""
    project, name = named
    write(project, REPEATABLE)
    built = repro("rebuild")
    assert built.returncode == 0, built.stderr
    (tag,) = tags(engine, name)
    container = engine.client.containers.create(tag, ["sh", "-c", "echo b >/opt/b"])
    container.start()
    container.wait()
    repository, _, version = tag.partition(":")
    found = container.commit(repository, version)
    container.remove()
    done = repro("rebuild", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the image that is here has other layers" in done.stdout
    assert "opt/b  (only in the one that is here)" in done.stdout
    assert (engine.image(tag) or found).id == found.id


def test_neither_stages_nor_build_cache_stay_on_the_engine(
    named: tuple[Project, str], any_builder: str, engine: Engine, repro: Repro
) -> None:
    project, _name = named
    marker = f"marker-{os.getpid()}-{any_builder}"
    write(project, REPEATABLE.replace("RUN mkdir", f"RUN echo {marker} && mkdir"))
    assert repro("rebuild", "--verify").returncode == 0
    listed = engine.client.api.images(all=True)
    history = [step["CreatedBy"] for found in listed for step in engine.client.api.history(found["Id"])[:3]]
    assert [step for step in history if marker in step] == []
    cache = engine.client.api.df()["BuildCache"] or []
    assert [each["Description"] for each in cache if marker in each["Description"]] == []


def test_a_step_that_fails_is_told_as_in_any_build_and_leaves_nothing(
    named: tuple[Project, str], any_builder: str, engine: Engine, repro: Repro
) -> None:
    project, name = named
    write(project, f"{START}\nRUN echo broken && exit 3\n")
    done = repro("rebuild", "--verify")
    assert done.returncode == 2
    assert "docker/Dockerfile:3 failed" in done.stderr
    assert done.stdout == ""
    assert tags(engine, name) == []


def test_an_interrupted_verification_leaves_nothing(
    named: tuple[Project, str], any_builder: str, engine: Engine
) -> None:
    """In the second build, when the first is there already."""
    project, name = named
    write(project, f"{START}\nRUN echo be''gun; sleep 4\n")
    process = subprocess.Popen(
        [sys.executable, "-c", "from repro.__main__ import entry; entry()", "rebuild", "--verify", "-v"],
        cwd=project.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    begun = 0
    for line in process.stderr:
        begun += line.rstrip().endswith(" begun")
        if begun == 2:
            break
    assert len(tags(engine, name)) == 1
    process.send_signal(signal.SIGINT)
    process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 130
    assert tags(engine, name) == []


def test_the_documented_way_with_apt_is_repeatable(
    named: tuple[Project, str], any_builder: str, engine: Engine, repro: Repro
) -> None:
    project, _name = named
    page = (ROOT / "docs" / "repeatable-builds.md").read_text()
    (dockerfile,) = re.findall(r"```dockerfile\n(.*?)```", page, re.DOTALL)
    write(project, dockerfile)
    done = repro("rebuild", "--verify", "--json")
    assert done.returncode in (0, 1), done.stderr
    differences = [each["path"] for layer in json.loads(done.stdout)["differences"] for each in layer["differences"]]
    old = any_builder == "buildx" and int(engine.facts().version.split(".")[0]) < 23
    assert differences == (["etc"] if old else [])


# the shipped Dockerfile -------------------------------------------------------------------------------------------


def test_the_template_has_the_same_dockerfile() -> None:
    template = ROOT / "src" / "repro" / "template" / "docker" / "Dockerfile"
    assert template.read_bytes() == SHIPPED.read_bytes()


def use_shipped(project: Project) -> None:
    shutil.copy(SHIPPED, project.docker / "Dockerfile")
    # pure Python, compiled code, and a package that runs at every start of Python and needs others
    (project.docker / "requirements.txt").write_text("six==1.16.0\nmarkupsafe==3.0.2\nsetuptools==75.8.0\n")
    variant = project.conf / "image" / "tensorflow.yaml"
    variant.write_text(variant.read_text().replace("requirements: null\n", ""))


def test_the_shipped_dockerfile_is_repeatable_with_packages_from_the_index_and_from_the_host(
    named: tuple[Project, str], any_builder: str, engine: Engine, debian_base: str, repro: Repro, tmp_path: Path
) -> None:
    project, name = named
    use_shipped(project)
    built = repro("rebuild")
    assert built.returncode == 0, built.stderr
    done = repro("rebuild", "--verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the image that is here has these layers, too" in done.stdout
    (tag,) = tags(engine, name)
    ours = engine.image(tag)
    assert ours is not None
    code = (
        "import importlib.util, os, markupsafe, six\n"
        "found = importlib.util.cache_from_source(six.__file__)\n"
        "print(open(found, 'rb').read(8)[4:].hex(), os.stat(found).st_mtime, os.path.exists('/tmp/from-host'))"
    )
    answer = engine.client.containers.run(tag, ["python", "-c", code], network_mode="none", remove=True)
    assert answer.decode().split() == ["01000000", "946684800.0", "False"]  # bytecode that nobody checks, of 2000-01-01

    spec = ImageSpec.read(ImageConfig(variant="v", name=name, base=debian_base), project.root)
    assert spec.tag == tag
    made = image.ensure(spec, engine, say=print, no_cache=True, gather=lambda: with_wheels(project, tmp_path))
    found = engine.image(made.id)
    assert found is not None
    assert found.id != ours.id
    assert found.layers == ours.layers


def with_wheels(project: Project, folder: Path) -> FromHost:
    """What the host gives to a build: the packages, and that no index is to be asked."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--python-version=3.11"]
    requirements = str(project.docker / "requirements.txt")
    subprocess.run([*command, f"--dest={folder / 'wheels'}", "-r", requirements], check=True)
    wheels = {f"wheels/{file.name}": file for file in sorted((folder / "wheels").iterdir())}
    settings = b"[global]\nno-index = true\nfind-links = /tmp/from-host/wheels\n"
    return FromHost(files={**assembly.nothing().files, "pip.conf": settings, **wheels}, secrets={})
