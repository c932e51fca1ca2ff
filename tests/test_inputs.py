"""What an image was made from, as it travels: whole where it fits, bounded where not, and never with a secret in it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.experiment import BaseRecipe, ImageConfig
from repro.recipe import explain, inputs
from repro.recipe.inputs import Inputs
from repro.recipe.pylock import Target
from repro.recipe.spec import ImageSpec, LockedPackages

DOCKERFILE = "docker/Dockerfile"
MANIFEST = {
    "base": "debian:12",
    "build_args": {"A": "1"},
    "dockerfile": DOCKERFILE,
    "files": {DOCKERFILE: {"executable": False, "sha256": "0" * 64}},
    "platform": "linux/amd64",
    "schema": 2,
}


def made(text: str = "FROM x\n", **changes: object) -> Inputs:
    manifest = {**MANIFEST, **changes}
    return Inputs.of(inputs.sha256(inputs.canonical(manifest)), manifest, {DOCKERFILE: text})


def many(count: int, folders: int = 50) -> dict[str, object]:
    """A context of many files, whose digests nothing compresses."""
    return {
        f"tools/d{number % folders}/file{number}.py": {"executable": False, "sha256": inputs.sha256(b"%d" % number)}
        for number in range(count)
    }


def test_inputs_survive_both_forms() -> None:
    wanted = made()
    assert inputs.read(inputs.label(wanted)) == wanted
    assert inputs.read(inputs.document(wanted)) == wanted


def test_inputs_that_were_read_again_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n")
    recipe = BaseRecipe(suite="bookworm", packages=("python3",), source_date_epoch=1)
    wanted = ImageConfig(variant="v", base="x", bootstrap=recipe, dockerfile="Dockerfile", requirements=None)
    found = inputs.of_spec(ImageSpec.read(wanted, tmp_path))
    again = inputs.read(inputs.label(found))
    assert again == found
    assert again is not None
    assert explain.changes(again, found) == ()


def test_a_label_is_compressed_only_where_that_is_shorter() -> None:
    tiny = Inputs(spec="", manifest={"schema": 2})
    assert inputs.label(tiny) == '{"form":1,"manifest":{"schema":2},"spec":""}'
    assert inputs.label(made(files=many(20))).startswith("zlib:")
    assert inputs.read(inputs.label(tiny)) == tiny


def test_the_label_of_an_image_of_long_ago_can_be_read() -> None:
    text = inputs.canonical(MANIFEST).decode()
    assert inputs.read(text) == Inputs(spec=inputs.sha256(text.encode()), manifest=MANIFEST, texts={})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "null",
        "[1]",
        "zlib:",
        "zlib:!",
        "zlib:AAAA",
        "zlib:é",
        '{"manifest":{}}',
        '{"form":2,"manifest":1}',
        '{"manifest":{"files":[]}}',
        '{"files":{"a":1}}',
    ],
)
def test_what_is_no_such_label_is_none(text: str) -> None:
    assert inputs.read(text) is None


def test_a_label_of_someone_else_cannot_fill_the_memory() -> None:
    import base64
    import zlib

    bomb = zlib.compress(b"[" * (inputs.UNPACKED_LIMIT * 2), 9)
    assert inputs.read("zlib:" + base64.urlsafe_b64encode(bomb).decode()) is None


# secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"API_TOKEN": "hunter2"},
        {"password": "hunter2"},
        {"SshKey": "hunter2"},
        {"CLIENT_SECRET": "hunter2"},
        {"CREDENTIALS": "hunter2"},
        {"INDEX": "https://me:hunter2@example.com/simple"},
        {"INDEX": "https://hunter2@example.com/simple"},
        {"LONG": "hunter2" * 12},
    ],
)
def test_of_a_build_argument_that_may_be_secret_or_is_long_there_is_a_digest_alone(arguments: dict[str, str]) -> None:
    found = made(build_args=arguments)
    for text in (inputs.document(found), inputs.label(found)):
        read = inputs.read(text)
        assert read is not None
        ((name, value),) = read.manifest["build_args"].items()
        assert value == {"sha256": inputs.sha256(arguments[name].encode())}
    assert "hunter2" not in inputs.document(found)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "RUN pip install -i https://me:pw@example.com/simple x",
            "RUN pip install -i https://***@example.com/simple x",
        ),
        ("RUN curl https://me:p@ss@example.com/x", "RUN curl https://***@example.com/x"),
        ("ADD https://t0ken@example.com/x /x", "ADD https://***@example.com/x /x"),
        ("ADD git+ssh://git@example.com/x /x", "ADD git+ssh://git@example.com/x /x"),
        ("ENV API_TOKEN=abc B=2", "ENV API_TOKEN=sha256:ba7816bf8f01 B=2"),
        ("env PASSWORD abc", "env PASSWORD sha256:ba7816bf8f01"),
        ("ARG MY_SECRET='a b'", "ARG MY_SECRET=sha256:01c24613281d"),
        ("ENV API_TOKEN=$TOKEN", "ENV API_TOKEN=$TOKEN"),
        ("RUN --mount=type=secret,id=token,target=/t cat /t", "RUN --mount=type=secret,id=token,target=/t cat /t"),
        ("ENV PATH=/opt/venv/bin:$PATH", "ENV PATH=/opt/venv/bin:$PATH"),
    ],
)
def test_of_a_dockerfile_what_is_secret_is_not_shown(line: str, shown: str) -> None:
    assert made(f"FROM x\n{line}\n").texts == {DOCKERFILE: f"FROM x\n{shown}\n"}


def test_requirements_are_shown_without_users_and_hashes_line_for_line() -> None:
    text = (
        "--index-url https://me:pw@example.com/simple\nkeyring==25 \\\n    --hash=sha256:12 \\\n    --hash=sha256:34\n"
    )
    shown = inputs.without_secrets(text, dockerfile=False)
    assert shown == "--index-url https://***@example.com/simple\nkeyring==25 \\\n    --hash=... \\\n    --hash=...\n"


def test_a_long_text_is_left_to_its_digest() -> None:
    assert made("x" * inputs.TEXT_LIMIT).texts != {}
    assert made("x" * (inputs.TEXT_LIMIT + 1)).texts == {}


def test_of_the_lock_each_package_is_there_by_name_and_version(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n")
    wanted = ImageConfig(variant="v", base="debian:12", dockerfile="Dockerfile", requirements=None)
    content = (
        b'[[packages]]\nname = "numpy"\nversion = "2.4.6"\n[[packages]]\nname = "ours"\narchive = {path = "a.whl"}\n'
    )
    target = Target(python="3.11.2", platform="linux/amd64", libc="glibc 2.36")
    spec = ImageSpec.read(wanted, tmp_path)
    assert inputs.of_spec(spec).packages == {}
    for text, packages in (
        (content, {"numpy": "2.4.6", "ours": "a file"}),
        (b"]", {}),
        (b"", {}),
        (b"packages = 1", {}),
    ):
        locked = LockedPackages(name="pylock.toml", content=text, target=target)
        assert inputs.of_spec(msgspec.structs.replace(spec, packages=locked)).packages == packages


# many files -------------------------------------------------------------------------------------------------------


def test_a_label_of_a_thousand_files_has_each_of_them() -> None:
    wanted = made(files={**MANIFEST["files"], **many(1000)})  # type: ignore[dict-item]
    assert inputs.read(inputs.label(wanted)) == wanted


@pytest.mark.parametrize("folders", [1, 50, 2500])
def test_a_label_of_very_many_files_is_bounded_and_has_digests_of_folders(folders: int) -> None:
    wanted = made(files={**MANIFEST["files"], **many(5000, folders)})  # type: ignore[dict-item]
    text = inputs.label(wanted)
    assert len(text) <= inputs.LABEL_LIMIT
    found = inputs.read(text)
    assert found is not None
    assert found.texts == wanted.texts
    assert found.manifest["files"][DOCKERFILE] == MANIFEST["files"][DOCKERFILE]  # type: ignore[index]
    assert sum(each.get("files", 1) for each in found.manifest["files"].values()) == 5001
    assert any(path.endswith("/") for path in found.manifest["files"])


def test_a_summary_of_a_folder_leaves_the_recipe_in_it_alone() -> None:
    beside = {f"docker/{number}": {"sha256": inputs.sha256(b"%d" % number)} for number in range(5000)}
    found = inputs.read(inputs.label(made(files={**MANIFEST["files"], **beside})))  # type: ignore[dict-item]
    assert found is not None
    assert found.manifest["files"].keys() == {DOCKERFILE, "docker/"}
    assert found.manifest["files"]["docker/"]["files"] == 5000
    left, right = inputs.aligned(found.manifest["files"], {**MANIFEST["files"], **beside})  # type: ignore[dict-item]
    assert left == right


def test_texts_go_last_from_a_label_that_is_too_large() -> None:
    import random

    texts = {f"r{number}.txt": random.Random(number).randbytes(12_000).hex() for number in range(20)}
    found = inputs.read(inputs.label(Inputs.of("1", MANIFEST, texts)))
    assert found is not None
    assert found.texts == {}
    assert found.manifest == MANIFEST


PATHS = st.lists(st.sampled_from(["a", "b", "tree", "files"]), min_size=1, max_size=4).map("/".join)
FILES = st.dictionaries(PATHS, st.fixed_dictionaries({"sha256": st.sampled_from(["1", "2"])}), max_size=8)


def is_tree(files: dict[str, object]) -> bool:
    """No path is both a file and a folder."""
    return not any(other.startswith(f"{path}/") for path in files for other in files)


@given(FILES.filter(is_tree), FILES.filter(is_tree), st.sampled_from(["a/", "a/b/", "./"]))
def test_a_folder_s_digest_differs_exactly_where_its_files_do(
    one: dict[str, object], other: dict[str, object], folder: str
) -> None:
    """However one of the two lists was summarised."""
    coarse = inputs.folded(one, [folder], keep=())
    left, right = inputs.aligned(coarse, other)
    prefix = "" if folder == "./" else folder

    def outside(files: dict[str, object]) -> dict[str, object]:
        return {path: entry for path, entry in files.items() if not path.startswith(prefix)}

    def below(files: dict[str, object]) -> dict[str, object]:
        return {path: entry for path, entry in files.items() if path.startswith(prefix)}

    assert (left.get(folder) == right.get(folder)) == (below(one) == below(other) or not below(one))
    assert outside(left) == outside(one)
    assert left.keys() - right.keys() <= {folder, *outside(one)}


@given(FILES.filter(is_tree))
def test_folders_summarised_step_by_step_are_as_if_at_once(files: dict[str, object]) -> None:
    steps = files
    for folder in ("a/b/a/", "a/b/", "b/", "a/", "./"):
        steps = inputs.folded(steps, [folder], keep=())
    assert steps == inputs.folded(files, ["./"], keep=())


def test_inputs_are_a_value_that_json_carries() -> None:
    wanted = made(files=many(3))
    assert msgspec.json.decode(msgspec.json.encode(wanted), type=Inputs) == wanted
