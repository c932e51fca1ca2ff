"""Images built on a real engine, by both builders: what comes out, what is left when it fails, who waits for whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from repro import image
from repro.engines.engine import Engine, connect
from repro.errors import BadInputError, EngineUnreachableError, EnvironmentUnfitError, ReproError
from repro.experiment import BuildConfig, ImageConfig
from repro.recipe import base, explain, inputs
from repro.recipe.spec import ImageSpec
from tests.second_engine import second_engine

pytestmark = pytest.mark.engine

START = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n"
SHIPPED = Path(__file__).parents[1] / "docker" / "Dockerfile"

# what a process of its own does with an image; stdout: "ready", the builder's lines, at the end "built" or "present"
ENSURE = """
import sys
from pathlib import Path
import msgspec
from repro import image
from repro.engines.engine import connect
from repro.experiment import ImageConfig
from repro.recipe.spec import ImageSpec
config = msgspec.json.decode(sys.argv[2], type=ImageConfig)
spec, engine = ImageSpec.read(config, Path(sys.argv[1])), connect()
print("ready", flush=True)
sys.stdin.readline()
made = image.ensure(spec, engine, say=lambda line: print("|", line, flush=True))
print("built" if made.built else "present", made.id)
"""

Made = Callable[..., ImageSpec]


class Recipe:
    """A project with a Dockerfile, under a name of its own that leaves nothing on the engine."""

    def __init__(self, root: Path, name: str, base_tag: str) -> None:
        self.root, self.name, self.base = root, name, base_tag
        (root / "docker").mkdir(parents=True)

    def config(self, **options: object) -> ImageConfig:
        options = {"base": self.base, "requirements": None, **options}
        return msgspec.convert({"variant": "v", "name": self.name, **options}, ImageConfig)

    def spec(self, dockerfile: str, **options: object) -> ImageSpec:
        (self.root / "docker" / "Dockerfile").write_text(START + dockerfile)
        build = BuildConfig(network=options.pop("network", None))  # type: ignore[arg-type]
        return ImageSpec.read(self.config(**options), self.root, build)

    def process(self) -> subprocess.Popen[str]:
        """Somebody else who wants the image of the Dockerfile that is there."""
        config = msgspec.json.encode(self.config()).decode()
        return subprocess.Popen(
            [sys.executable, "-c", ENSURE, str(self.root), config],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )


@pytest.fixture
def recipe(tmp_path: Path, engine: Engine, debian_base: str, request: pytest.FixtureRequest) -> Iterator[Recipe]:
    made = Recipe(tmp_path / "project", f"test-{os.getpid()}-{abs(hash(request.node.name))}", debian_base)
    yield made
    for tag in tags(engine, made.name):
        engine.remove_image(tag)


def tags(engine: Engine, name: str) -> list[str]:
    """Every tag of this name, also one that only a build in progress has."""
    return [tag for found in engine.client.api.images(name) for tag in found["RepoTags"] or ()]


def build(spec: ImageSpec, engine: Engine, **options: object) -> tuple[image.Image, list[str]]:
    """The image and what was said; who reads what a step prints needs `no_cache`."""
    said: list[str] = []
    return image.ensure(spec, engine, say=said.append, **options), said  # type: ignore[arg-type]


def failure(spec: ImageSpec, engine: Engine, **options: object) -> ReproError:
    with pytest.raises(ReproError) as caught:
        build(spec, engine, **options)
    return caught.value


# what comes out ---------------------------------------------------------------------------------------------------


def test_an_image_carries_its_spec_its_manifest_and_its_base(any_builder: str, recipe: Recipe, engine: Engine) -> None:
    spec = recipe.spec("RUN true\n")
    made, _ = build(spec, engine)
    found, started_from = engine.image(spec.tag), engine.image(recipe.base)
    assert found is not None
    assert started_from is not None
    assert made == image.Image(
        variant="v",
        tag=spec.tag,
        id=found.id,
        spec=spec.digest,
        base=recipe.base,
        base_resolved=started_from.id,
        platform="linux/amd64",
        digest=None,
        built=True,
        seconds=made.seconds,
        manifest=found.manifest,
        config=found.config,
        layers=found.layers,
        content=found.content,
    )
    assert found.labels["repro.spec"] == spec.digest
    assert inputs.read(found.labels["repro.manifest"]) == inputs.of_spec(spec)
    assert found.labels["repro.base"] == started_from.id
    assert tags(engine, recipe.name) == [spec.tag]


def test_an_image_of_very_many_files_carries_what_it_was_made_from(
    any_builder: str, recipe: Recipe, engine: Engine
) -> None:
    for number in range(5000):
        file = recipe.root / "tools" / f"d{number % 50}" / f"file{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(number))
    spec = recipe.spec("RUN true\n", context=("tools",))
    _, said = build(spec, engine)
    assert max(map(len, said)) < 1000
    found = engine.image(spec.tag)
    assert found is not None
    assert 48 << 10 < len(found.labels["repro.manifest"]) <= inputs.LABEL_LIMIT
    then = inputs.read(found.labels["repro.manifest"])
    assert then is not None
    assert explain.changes(then, inputs.of_spec(spec)) == ()
    (recipe.root / "tools" / "d0" / "file0.txt").unlink()
    now = recipe.spec("RUN false\n", context=("tools",))
    told = [change.text for change in explain.changes(then, inputs.of_spec(now))]
    assert told[0] == "docker/Dockerfile:3  RUN true -> RUN false"
    assert [line.partition("  ")[0] for line in told[1:]] == ["tools/d0/"]


def test_an_image_that_is_there_is_found_at_once_and_not_built_again(recipe: Recipe, engine: Engine) -> None:
    spec = recipe.spec("RUN true\n")
    made, _ = build(spec, engine)
    again, said = build(spec, engine)
    assert (again.id, again.built, said) == (made.id, False, [])


def test_the_bytes_that_were_hashed_are_the_bytes_in_the_image(
    any_builder: str, recipe: Recipe, engine: Engine
) -> None:
    tools = recipe.root / "tools"
    tools.mkdir()
    (tools / "run me.sh").write_bytes(b"#!/bin/sh\r\necho hi\n")
    (tools / "run me.sh").chmod(0o700)
    (tools / "data.bin").write_bytes(b"\x00\xff")
    (tools / "data.bin").chmod(0o600)
    (tools / "link").symlink_to("data.bin")
    spec = recipe.spec(
        "COPY tools /tools\nRUN cd /tools && stat -c '%n %a %u %g %s %F' *; readlink link\n", context=("tools",)
    )
    _, said = build(spec, engine, no_cache=True)
    text = "\n".join(said)
    assert "run me.sh 755 0 0 19 regular file" in text  # line ends of what is not ours stay
    assert "data.bin 644 0 0 2 regular file" in text
    assert "link 777 0 0 8 symbolic link" in text


def test_nothing_of_the_host_s_environment_gets_into_the_image(
    any_builder: str, recipe: Recipe, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("MINE", "secret")
    made, said = build(recipe.spec("ARG MINE\nRUN env\n"), engine, no_cache=True)
    found = engine.image(made.id)
    assert found is not None
    assert found.env == (f"PATH={base.PATH}",)
    assert "secret" not in "\n".join(said) + str(engine.client.api.history(made.id))


def test_arguments_target_and_network_reach_the_builder(any_builder: str, recipe: Recipe, engine: Engine) -> None:
    lines = (
        "FROM ${BASE_IMAGE} AS wanted\n"
        "ARG WHO=nobody\nRUN echo hello $WHO; echo interfaces: $(ls /sys/class/net)\n"
        "FROM ${BASE_IMAGE}\nRUN echo not this\n"
    )
    spec = recipe.spec(lines, build_args={"WHO": "world"}, network="none", target="wanted")
    _, said = build(spec, engine, no_cache=True)
    text = "\n".join(said)
    assert "hello world" in text
    assert "interfaces: lo\n" in text + "\n"
    assert "not this" not in text.replace("RUN echo not this", "")


def test_without_cache_the_tag_moves_to_what_was_built_anew(any_builder: str, recipe: Recipe, engine: Engine) -> None:
    spec = recipe.spec("RUN date +%N >/when\n")
    first, _ = build(spec, engine)
    second, _ = build(spec, engine, no_cache=True)
    assert first.id != second.id
    assert second.built
    assert tags(engine, recipe.name) == [spec.tag]
    engine.remove_image(first.id)


def test_a_tag_that_was_moved_by_hand_is_not_trusted(recipe: Recipe, engine: Engine) -> None:
    spec = recipe.spec("RUN true\n")
    engine.tag(recipe.base, spec.tag)
    assert image.accepted(spec, engine.image(spec.tag)) is None
    made, _ = build(spec, engine)
    assert made.built
    assert image.accepted(spec, engine.image(spec.tag)) is not None


def test_the_shipped_dockerfile_installs_whole_what_the_base_has_already(recipe: Recipe, engine: Engine) -> None:
    """A TensorFlow left in the base would not find the CUDA wheels that pip puts beside the new packages."""
    packages = "/usr/local/lib/python3.11/dist-packages"
    older = recipe.spec(
        f"RUN python3 -m venv /v && /v/bin/pip install -q --target {packages} six==1.16.0 idna==3.7 && rm -r /v\n"
    )
    with_packages, _ = build(older, engine)
    (recipe.root / "docker" / "Dockerfile").write_bytes(SHIPPED.read_bytes())
    (recipe.root / "docker" / "requirements.txt").write_text("-r requirements-more.txt\n")
    (recipe.root / "docker" / "requirements-more.txt").write_text("six==1.16.0\n")
    config = recipe.config(base=with_packages.tag, requirements="docker/requirements.txt")
    made, _ = build(ImageSpec.read(config, recipe.root), engine)
    code = "import six, idna; print(six.__file__, idna.__file__)"
    answer = engine.client.containers.run(made.id, ["python", "-c", code], network_mode="none", remove=True)
    assert answer.decode().split() == [
        "/opt/venv/lib/python3.11/site-packages/six.py",
        f"{packages}/idna/__init__.py",
    ]


# what fails -------------------------------------------------------------------------------------------------------


def test_a_failing_step_is_named_with_its_last_lines_and_leaves_no_tag(
    any_builder: str, recipe: Recipe, engine: Engine, tmp_path: Path
) -> None:
    spec = recipe.spec("RUN echo fine\n\nRUN echo one; \\\n    seq 30; echo broken; exit 3\n")
    log = tmp_path / "logs" / "build.log"
    error = failure(spec, engine, build_log=log)
    assert isinstance(error, BadInputError)
    assert error.what == "the image could not be built: docker/Dockerfile:5 failed"
    assert error.evidence[0].startswith("RUN echo one;")
    assert error.evidence[1:-2] == (*[str(number) for number in range(17, 31)], "broken")
    assert "3" in error.evidence[-2]
    assert error.evidence[-1] == f"log: {log}"
    assert "fine" in log.read_text()
    assert tags(engine, recipe.name) == []


@pytest.mark.parametrize(
    ("lines", "kind", "said"),
    [
        ("FROM 127.0.0.1:1/nosuch:1\n", EnvironmentUnfitError, "a base image cannot be had"),
        ("EXPOSE nonsense\n", BadInputError, "nonsense"),
        ("ARG X\nCOPY a$TARGETARCH$X /x\n", BadInputError, "could not be built"),
        ("RUN echo 'dial tcp: connection refused'; false\n", BadInputError, "could not be built"),
    ],
)
def test_what_kind_of_failure_it_is(
    any_builder: str, recipe: Recipe, engine: Engine, lines: str, kind: type[ReproError], said: str
) -> None:
    error = failure(recipe.spec(lines), engine)
    assert type(error) is kind
    assert said in str(error)
    assert tags(engine, recipe.name) == []


def test_a_base_that_cannot_be_pulled_says_so_before_the_build(recipe: Recipe, engine: Engine) -> None:
    error = failure(recipe.spec("RUN true\n", base="127.0.0.1:1/nosuch:1"), engine)
    assert isinstance(error, EnvironmentUnfitError)
    assert "127.0.0.1:1/nosuch:1 cannot be pulled" in error.what


BUILDKIT_ONLY = "RUN --mount=type=cache,target=/cache echo with a cache in $(ls -d /cache)\n"


def test_a_dockerfile_for_buildkit_is_refused_by_line_where_there_is_none(
    no_buildx: None, recipe: Recipe, engine: Engine
) -> None:
    error = failure(recipe.spec(BUILDKIT_ONLY), engine)
    assert isinstance(error, BadInputError)
    assert "docker/Dockerfile:3 needs BuildKit" in error.what
    assert "docker-buildx" in error.hints[0]


def test_a_dockerfile_for_buildkit_is_built_where_there_is_one(buildx: str, recipe: Recipe, engine: Engine) -> None:
    _, said = build(recipe.spec(BUILDKIT_ONLY), engine, no_cache=True)
    assert any(line.endswith("with a cache in /cache") for line in said)


def test_an_engine_that_ends_in_the_middle_is_told(
    buildx: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through BuildKit; test_second_engine has the classic builder's."""
    spec = recipe.spec("RUN echo begun; sleep 60\n", network="none")
    with second_engine(gpus=None) as other:
        other.copy_image(recipe.base)
        monkeypatch.setenv("DOCKER_HOST", other.url)

        def say(line: str) -> None:
            if line.endswith(" begun"):
                other.kill()

        with pytest.raises(EngineUnreachableError) as caught:
            image.ensure(spec, connect(), say=say)
        assert "the engine went away during the build" in caught.value.what


# who interrupts, who waits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_build_that_is_stopped_leaves_neither_a_tag_nor_a_process(
    any_builder: str, recipe: Recipe, engine: Engine, number: signal.Signals
) -> None:
    marker = f"marker-{os.getpid()}-{time.monotonic_ns()}"
    recipe.spec(f"RUN while true; do echo {marker}; sleep 0.2; done\n")
    process = recipe.process()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.rstrip().endswith(marker):
            break
    process.send_signal(number)
    process.wait(30)
    process.stdout.close()
    process.stdin.close()
    wait_until(lambda: not running(marker))
    assert tags(engine, recipe.name) == []


def test_a_build_that_is_killed_while_its_step_is_silent_leaves_no_tag(
    any_builder: str, recipe: Recipe, engine: Engine
) -> None:
    """Nothing is written then that would find the reader gone."""
    silent = f"sleep 5.{time.monotonic_ns()}"
    recipe.spec(f"RUN {silent}\n")
    process = recipe.process()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    wait_until(lambda: running(silent.replace(" ", "\0")))
    process.kill()
    process.communicate(timeout=30)
    wait_until(lambda: not running(silent.replace(" ", "\0")) and not running(f"--tag={recipe.name}"))
    assert tags(engine, recipe.name) == []


def test_two_who_want_the_same_missing_image_get_one_build(recipe: Recipe, engine: Engine) -> None:
    spec = recipe.spec("RUN sleep 2; date +%N >/when\n")
    both = [recipe.process(), recipe.process()]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = [process.communicate("\n", timeout=120)[0] for process in both]  # communicate: the first waits
    last = sorted(answer.splitlines()[-1].split() for answer in answers)
    assert [word for word, _ in last] == ["built", "present"]
    assert len({number for _, number in last}) == 1
    assert tags(engine, recipe.name) == [spec.tag]


def running(marker: str) -> bool:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker in file.read_bytes().decode(errors="replace"):
                return True
        except OSError:
            continue
    return False


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.1)
