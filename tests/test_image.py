"""The name of an image: everything that decides it is in the hash, and nothing else is."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from repro import config, image
from repro.build import context
from repro.engines.imagefacts import ImageFacts
from repro.errors import BadInputError
from repro.experiment import BaseRecipe, BuildConfig, ImageConfig, SecretSource
from repro.project import Project
from repro.recipe.spec import ImageSpec

RECIPE = BaseRecipe(suite="bookworm", packages=("python3",), source_date_epoch=1)
CONFIG = ImageConfig(
    variant="tensorflow",
    base="tensorflow/tensorflow:2.21.0",
    context=("tools",),
    build_args={"B": "2", "A": "1"},
    target="last",
)
HOST = BuildConfig(network="host")
DOCKERFILE = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE} AS last\nCOPY docker/requirements.txt tools/a.sh /tmp/\n"
# The hash is a contract: images that exist are found by it. A change here needs a new `image.SCHEMA`, and its reason.
GOLDEN = "9ffee33944fce47f0c203eaa6e7e0516171150798aceb2d29da3eafcb57c5067"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of CONFIG."""
    for name, text in {
        "docker/Dockerfile": DOCKERFILE,
        "docker/requirements.txt": "numpy==2.0\n-r more.txt\n",
        "docker/more.txt": "scipy\n",
        "tools/a.sh": "echo a\n",
        "tools/sub/b.txt": "b",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644)
    (tmp_path / "tools" / "a.sh").chmod(0o755)
    (tmp_path / "tools" / "link").symlink_to("a.sh")
    return tmp_path


def spec(root: Path, build: BuildConfig = HOST, **changes: object) -> ImageSpec:
    return ImageSpec.read(msgspec.structs.replace(CONFIG, **changes), root, build)


def sent(found: ImageSpec) -> bytes:
    """The build context, as a builder gets it."""
    out = io.BytesIO()
    context.write(out, found.files, {})
    return out.getvalue()


# what decides ----------------------------------------------------------------------------------------------------


def test_the_hash_is_a_contract(root: Path) -> None:
    assert spec(root).digest == GOLDEN


def test_the_hash_can_be_computed_by_anybody_from_the_documented_form(root: Path) -> None:
    """As docs/image-identity.md describes it, with the standard library alone."""

    def sha256(name: str) -> str:
        return hashlib.sha256((root / name).read_bytes()).hexdigest()

    def plain(name: str) -> dict[str, object]:
        return {"executable": False, "sha256": sha256(name)}

    documented = {
        "schema": 2,
        "base": "tensorflow/tensorflow:2.21.0",
        "build_args": {"A": "1", "B": "2"},
        "dockerfile": "docker/Dockerfile",
        "files": {
            "docker/Dockerfile": plain("docker/Dockerfile"),
            "docker/more.txt": plain("docker/more.txt"),
            "docker/requirements.txt": plain("docker/requirements.txt"),
            "tools/a.sh": {"executable": True, "sha256": sha256("tools/a.sh")},
            "tools/link": {"link": "a.sh"},
            "tools/sub/b.txt": plain("tools/sub/b.txt"),
        },
        "network": "host",
        "platform": "linux/amd64",
        "requirements": "docker/requirements.txt",
        "target": "last",
    }
    text = json.dumps(documented, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert spec(root).digest == hashlib.sha256(text.encode()).hexdigest()
    assert spec(root).tag == f"my-tf:{spec(root).digest[:16]}"


CHANGES = {
    "base": "tensorflow/tensorflow:2.20.0",
    "bootstrap": RECIPE,
    "requirements": None,
    "context": ("tools", "docker"),
    "build_args": {"A": "1", "B": "3"},
    "target": None,
    "platform": "linux/arm64",
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_that_decides_an_image_changes_the_hash(root: Path, field: str) -> None:
    (root / "docker" / "extra.txt").write_text("x")
    (root / "docker" / "Dockerfile").write_text(
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE} AS last\n"
    )  # copies nothing: valid for all of them
    assert spec(root, **{field: CHANGES[field]}).digest != spec(root).digest


def test_a_pin_changes_the_hash(root: Path) -> None:
    pinned = msgspec.structs.replace(spec(root), pins={CONFIG.base: "tensorflow/tensorflow@sha256:" + "0" * 64})
    assert pinned.digest != spec(root).digest


def test_the_network_of_the_build_changes_the_hash_and_nothing_else_of_how_it_is_built(root: Path) -> None:
    (root / "ca.pem").write_text("x")
    other = BuildConfig(network="host", ca_bundle="ca.pem", secrets={"a": SecretSource(env="A")})
    assert spec(root, other).digest == spec(root).digest
    assert spec(root, BuildConfig()).digest != spec(root).digest
    assert spec(root, BuildConfig(network="default")).digest == spec(root, BuildConfig()).digest


def test_the_two_lists_cover_every_field() -> None:
    fields = {field.name for field in msgspec.structs.fields(ImageConfig)}
    assert fields == {*CHANGES, "dockerfile", "name", "variant", "registry"}


@pytest.mark.parametrize("field", ["suite", "packages", "source_date_epoch"])
def test_every_field_of_a_bootstrap_changes_the_hash(root: Path, field: str) -> None:
    other = {"suite": "trixie", "packages": ("python3", "git"), "source_date_epoch": 2}[field]
    changed = msgspec.structs.replace(RECIPE, **{field: other})
    assert spec(root, bootstrap=RECIPE).digest != spec(root, bootstrap=changed).digest


@pytest.mark.parametrize(
    "name", ["docker/Dockerfile", "docker/requirements.txt", "docker/more.txt", "tools/a.sh", "tools/sub/b.txt"]
)
def test_every_file_changes_the_hash(root: Path, name: str) -> None:
    before = spec(root).digest
    with (root / name).open("a") as file:
        file.write("# more\n")
    assert spec(root).digest != before


def test_a_renamed_moved_added_or_removed_file_changes_the_hash(root: Path) -> None:
    (root / "docker" / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE} AS last\n")
    sub = root / "tools" / "sub"
    seen = {spec(root).digest}
    (sub / "b.txt").rename(sub / "c.txt")
    seen.add(spec(root).digest)
    (sub / "c.txt").rename(root / "tools" / "c.txt")
    seen.add(spec(root).digest)
    (root / "tools" / "d.txt").write_text("")
    seen.add(spec(root).digest)
    (root / "tools" / "a.sh").unlink()
    seen.add(spec(root).digest)
    assert len(seen) == 5


def test_the_executable_bit_and_the_target_of_a_link_change_the_hash(root: Path) -> None:
    seen = {spec(root).digest}
    (root / "tools" / "a.sh").chmod(0o644)
    seen.add(spec(root).digest)
    (root / "tools" / "link").unlink()
    (root / "tools" / "link").symlink_to("sub/b.txt")
    seen.add(spec(root).digest)
    (root / "tools" / "link").unlink()
    (root / "tools" / "link").write_text("sub/b.txt")
    seen.add(spec(root).digest)
    assert len(seen) == 4


def test_the_same_dockerfile_under_another_name_changes_the_hash(root: Path) -> None:
    shutil.copy(root / "docker" / "Dockerfile", root / "docker" / "other")
    assert spec(root, dockerfile="docker/other").digest != spec(root).digest


@given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_different_build_arguments_never_share_a_hash(one: dict[str, str], other: dict[str, str]) -> None:
    def digest(build_args: dict[str, str]) -> str:
        return ImageSpec(
            **{field: getattr(CONFIG, field) for field in ("name", "variant", "base", "bootstrap", "dockerfile")},
            requirements=None,
            declared=(),
            files=(),
            build_args=build_args,
            target=None,
            platform="p",
            network=None,
        ).digest

    assert (digest(one) == digest(other)) == (one == other)
    assert digest(one) == digest(dict(reversed(one.items())))


# what does not ---------------------------------------------------------------------------------------------------


def test_the_name_of_the_image_and_of_its_variant_do_not_count(root: Path) -> None:
    renamed = spec(root, name="registry.example.com/team/img", variant="other")
    assert renamed.digest == spec(root).digest
    assert renamed.tag == f"registry.example.com/team/img:{renamed.digest[:16]}"


def test_time_umask_and_place_do_not_count(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = spec(root)
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    old = os.umask(0o077)
    try:
        shutil.copytree(root, copy, symlinks=True, copy_function=shutil.copyfile)
    finally:
        os.umask(old)
    (copy / "tools" / "a.sh").chmod(0o700)
    for file in copy.rglob("*"):
        os.utime(file, (1, 1), follow_symlinks=False)
    assert spec(copy).digest == before.digest
    assert sent(spec(copy)) == sent(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_does_not_count(root: Path) -> None:
    before = spec(root)
    for file in root.rglob("*"):
        os.chown(file, 1234, 5678, follow_symlinks=False)
    assert spec(root).digest == before.digest
    assert sent(spec(root)) == sent(before)


def test_windows_line_ends_do_not_count(root: Path) -> None:
    before = spec(root).digest
    for name in ("docker/Dockerfile", "docker/requirements.txt", "docker/more.txt"):
        file = root / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert spec(root).digest == before


def test_files_that_are_not_declared_do_not_count(root: Path) -> None:
    before = spec(root).digest
    (root / "docker" / "notes.txt").write_text("x")
    (root / "train.py").write_text("x")
    (root / "tools" / "__pycache__").mkdir()
    (root / "tools" / "__pycache__" / "a.pyc").write_text("x")
    assert spec(root).digest == before


def test_how_names_are_spelt_does_not_count(root: Path) -> None:
    spelt = spec(
        root,
        dockerfile="./docker/Dockerfile",
        requirements="docker/../docker/requirements.txt",
        context=("./tools/", "tools/sub", "tools"),
    )
    assert spelt.digest == spec(root).digest
    assert spelt.dockerfile_text == DOCKERFILE


def test_the_order_of_keys_in_yaml_does_not_count(root: Path) -> None:
    raw = msgspec.to_builtins(CONFIG)
    digests = set()
    for each in (raw, dict(reversed(raw.items())) | {"build_args": {"A": "1", "B": "2"}}):
        file = root / "conf" / "image" / "tensorflow.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(each, sort_keys=False))
        digests.add(ImageSpec.read(config.compose_image(Project(root), ["image=tensorflow"])[0], root, HOST).digest)
    assert digests == {spec(root).digest}


# the context is the hashed bytes ---------------------------------------------------------------------------------


def test_the_context_holds_exactly_the_hashed_files(root: Path) -> None:
    found = spec(root)
    with tarfile.open(fileobj=io.BytesIO(sent(found))) as archive:
        members = archive.getmembers()
        read = tuple(
            context.ContextFile(path=each.name, link=each.linkname)
            if each.issym()
            else context.ContextFile(
                path=each.name,
                content=archive.extractfile(each).read(),
                executable=bool(each.mode & 0o100),  # type: ignore[union-attr]
            )
            for each in members
        )
    assert read == tuple(msgspec.structs.replace(file, text=False) for file in found.files)
    assert {(each.uid, each.gid, each.uname, each.gname, each.mtime) for each in members} == {
        (0, 0, "", "", context.MTIME)
    }
    assert {each.mode for each in members} == {0o644, 0o755, 0o777}


def test_names_of_any_length_and_script_fit_into_a_context(root: Path) -> None:
    name = "tools/" + "long/" * 50 + "\u65e5\u672c\u8a9e.txt"
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text("x")
    with tarfile.open(fileobj=io.BytesIO(sent(spec(root)))) as archive:
        assert name in archive.getnames()


def test_build_arguments_tell_the_dockerfile_its_base_and_requirements(root: Path) -> None:
    ours = {"BASE_IMAGE": "name@sha256:1", "REQUIREMENTS": "docker/requirements.txt", "A": "1", "B": "2"}
    assert spec(root).arguments("name@sha256:1") == ours
    (root / "docker" / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE} AS last\n")
    assert "REQUIREMENTS" not in spec(root, requirements=None).arguments("b")


@pytest.mark.parametrize("argument", ["BASE_IMAGE", "REQUIREMENTS"])
def test_a_build_argument_cannot_contradict_what_decides_it(root: Path, argument: str) -> None:
    with pytest.raises(BadInputError, match=f"image.build_args sets {argument}"):
        spec(root, build_args={argument: "x"})


# copies of what is not declared ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "add"),
    [
        ("COPY docker/setup.sh /tmp/", "docker/setup.sh"),
        ("COPY docker/*.sh /tmp/", "docker/*.sh"),
        ("COPY docker /tmp/", "docker"),
        ("COPY . /app", "."),
        ("ADD docker/setup.sh /tmp/", "docker/setup.sh"),
        ("ARG F=docker/setup.sh\nCOPY $F /tmp/", "docker/setup.sh"),
        ("COPY ${FROM_CONFIG} /tmp/", None),
    ],
)
def test_a_copy_of_what_is_not_declared_names_the_line_and_the_key(root: Path, line: str, add: str | None) -> None:
    (root / "docker" / "setup.sh").write_text("")
    (root / "docker" / "Dockerfile").write_text(
        f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}} AS last\nARG FROM_CONFIG\n{line}\n"
    )
    with pytest.raises(BadInputError) as caught:
        spec(root, build_args={"FROM_CONFIG": "docker/setup.sh"})
    said = str(caught.value)
    number = 4 + line.count("\n")
    assert f"docker/Dockerfile:{number}: " in said
    assert f"`image.context: [tools, {add or 'docker/setup.sh'}]`" in said


def test_following_the_advice_makes_the_copy_valid(root: Path) -> None:
    (root / "docker" / "setup.sh").write_text("")
    (root / "docker" / "Dockerfile").write_text(
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE} AS last\nCOPY docker/setup.sh /tmp/\n"
    )
    assert spec(root, context=("tools", "docker/setup.sh")).digest


def test_a_copy_of_what_does_not_exist_says_so(root: Path) -> None:
    (root / "docker" / "Dockerfile").write_text(
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE} AS last\nCOPY docker/misspelt.sh /tmp/\n"
    )
    with pytest.raises(BadInputError) as caught:
        spec(root)
    assert "docker/misspelt.sh does not exist" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE} AS last\n",
        "ARG BASE_IMAGE=other:1\nFROM $BASE_IMAGE AS last\n",
        "ARG BASE_IMAGE\nARG BASE=${BASE_IMAGE}\nFROM debian:12 AS build\nFROM $BASE AS last\n",
        "ARG BASE_IMAGE\nFROM $BASE_IMAGE AS build\nFROM scratch AS last\nCOPY --from=build /x /x\n",
        "FROM tensorflow/tensorflow:2.21.0 AS last\n",  # the same, in full
    ],
)
def test_a_dockerfile_may_use_its_base_in_any_way(root: Path, text: str) -> None:
    (root / "docker" / "Dockerfile").write_text(text)
    assert spec(root).base == CONFIG.base


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("FROM python:3.12-slim AS last\n", {}),
        ("FROM python:3.12-slim AS last\nFROM tensorflow/tensorflow:2.21.0\n", {}),  # behind the target
        ("FROM python:3.12-slim AS last\nARG BASE_IMAGE\nENV X=$BASE_IMAGE\n", {}),
        ("FROM tensorflow/tensorflow:2.21.0 AS last\n", {"bootstrap": RECIPE}),
    ],
)
def test_a_dockerfile_that_is_not_built_on_its_base_is_refused(
    root: Path, text: str, changes: dict[str, object]
) -> None:
    (root / "docker" / "Dockerfile").write_text(text)
    with pytest.raises(BadInputError) as caught:
        spec(root, **changes)
    assert "is not built on BASE_IMAGE" in caught.value.what
    assert f"docker/Dockerfile:1: {text.splitlines()[0]}" in caught.value.evidence
    assert f"`base: {text.split()[1]}`" in caught.value.hints[0]


def test_the_recipe_of_an_image_is_there_however_its_files_were_declared(root: Path) -> None:
    recipe = {"docker/Dockerfile", "docker/requirements.txt", "docker/more.txt"}
    assert spec(root).recipe().keys() == recipe
    assert spec(root, context=(".",)).recipe().keys() == recipe


def test_a_double_wildcard_is_no_mistake_of_ours(root: Path) -> None:
    (root / "docker" / "Dockerfile").write_text(f"{DOCKERFILE}COPY src/**.py /x/\n")
    with pytest.raises(BadInputError, match="not declared"):
        spec(root)


# what counts as present ------------------------------------------------------------------------------------------


def facts(**changes: object) -> ImageFacts:
    found = ImageFacts(
        id="sha256:1",
        tags=("my-tf:x",),
        digests=(),
        labels={},
        env=(),
        created="",
        size=1,
        layers=(),
        platform="linux/amd64",
    )
    return msgspec.structs.replace(found, **changes)


def test_an_image_is_present_when_its_label_has_the_whole_hash_and_its_platform_is_right(root: Path) -> None:
    wanted = spec(root)
    labels = {image.SPEC_LABEL: wanted.digest}
    assert image.accepted(wanted, facts(labels=labels))
    assert image.accepted(wanted, None) is None
    assert image.accepted(wanted, facts()) is None
    assert image.accepted(wanted, facts(labels={image.SPEC_LABEL: wanted.digest[:16] + "0" * 48})) is None
    assert image.accepted(wanted, facts(labels=labels, platform="linux/arm64")) is None


# what the host gives to a build ----------------------------------------------------------------------------------

STAGES = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE} AS made\n%s\nFROM ${BASE_IMAGE} AS last\n%s\n"


@pytest.mark.parametrize(
    ("first", "last", "refused"),
    [
        ("COPY from-host /tmp/x", "COPY --from=made /opt /opt", False),
        ("COPY from-host/wheels /tmp/x", "RUN --mount=type=bind,source=from-host,target=/x true", False),
        ("RUN true", "COPY from-host /x", True),
        ("RUN true", "COPY tools from-hos[t] /x/", True),
        ("RUN true", "ADD ./from-host/wheels/ /x/", True),
        ("COPY from-host /tmp/x", "COPY . /x", True),
        ("RUN --mount=type=bind,source=.,target=/x true\nCOPY from-host /y", "RUN true", False),
        ("RUN true", "COPY . /x", False),  # nothing asks for the folder, so it is not there
    ],
)
def test_what_the_host_gives_cannot_stay_in_the_image(root: Path, first: str, last: str, refused: bool) -> None:
    (root / "docker" / "Dockerfile").write_text(STAGES % (first, last))
    if not refused:
        assert spec(root, context=(".",)).uses_host == ("from-host" in first + last)
        return
    with pytest.raises(BadInputError, match="no part of its identity") as caught:
        spec(root, context=(".",))
    assert f"docker/Dockerfile:5: {last}" in caught.value.evidence


def test_a_stage_that_stands_on_one_with_files_of_the_host_keeps_them_too(root: Path) -> None:
    lines = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE} AS Made\nCOPY from-host /x\nFROM made\nRUN true\n"
    (root / "docker" / "Dockerfile").write_text(lines)
    with pytest.raises(BadInputError, match="no part of its identity") as caught:
        spec(root, target=None)
    assert caught.value.evidence == ("docker/Dockerfile:3: COPY from-host /x",) or caught.value.evidence == [
        "docker/Dockerfile:3: COPY from-host /x"
    ]


def test_what_takes_everything_in_an_earlier_stage_takes_the_files_of_the_host_too(root: Path) -> None:
    (root / "docker" / "Dockerfile").write_text(
        STAGES % ("COPY from-host/pip.conf /y/\nCOPY . /src", "COPY --from=made /src /s")
    )
    with pytest.raises(BadInputError, match="no part of its identity"):
        spec(root, context=(".",))


def test_what_the_lock_writes_does_not_change_an_image_that_holds_the_whole_project(root: Path) -> None:
    (root / "docker" / "Dockerfile").write_text(STAGES % ("RUN true", "COPY . /x"))
    before = spec(root, context=(".",)).digest
    (root / "repro.lock").write_text("x")
    (root / "pylock.tensorflow.toml").write_text("x")
    assert spec(root, context=(".",)).digest == before
    assert spec(root, context=(".", "repro.lock")).digest != before


def test_the_folder_of_the_host_is_not_the_users(root: Path) -> None:
    (root / "from-host").mkdir()
    (root / "from-host" / "a").write_text("x")
    with pytest.raises(BadInputError, match="is taken"):
        spec(root, context=(".",))


def test_what_the_host_gives_is_in_its_folder_of_the_context(root: Path) -> None:
    out = io.BytesIO()
    context.write(out, spec(root).files, {"wheels/a.whl": root / "tools" / "a.sh", "README": b"x"})
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        added = [each.name for each in archive.getmembers() if each.name.startswith("from-host")]
        assert added == ["from-host/README", "from-host/wheels/a.whl"]
        assert archive.extractfile("from-host/wheels/a.whl").read() == b"echo a\n"  # type: ignore[union-attr]
