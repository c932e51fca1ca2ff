"""Why an image is another one: which input changed, as a user finds it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from repro.recipe import explain, inputs
from repro.recipe.inputs import Inputs

FILE = "docker/Dockerfile"
REQUIREMENTS = "docker/requirements.txt"
DOCKERFILE = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN one\nRUN two\n"
PINNED = "# what we need\nnumpy==2.0.0\n-r more.txt\ntensorflow[and-cuda]==2.20.0\n"


def entry(content: str, *, executable: bool = False) -> dict[str, Any]:
    return {"executable": executable, "sha256": inputs.sha256(content.encode())}


def made(dockerfile: str = DOCKERFILE, wanted: str = PINNED, **changes: Any) -> Inputs:
    texts = {FILE: dockerfile, REQUIREMENTS: wanted}
    files = {path: entry(text) for path, text in texts.items()} | changes.pop("files", {})
    manifest = {
        "schema": 2,
        "base": "debian:12",
        "build_args": {"A": "1"},
        "dockerfile": FILE,
        "files": files,
        "platform": "linux/amd64",
        "requirements": REQUIREMENTS,
        **changes,
    }
    return Inputs.of("", {key: value for key, value in manifest.items() if value is not None}, texts)


def told(before: Inputs, after: Inputs) -> list[str]:
    return [change.text for change in explain.changes(before, after)]


def test_nothing_changed_between_equals() -> None:
    assert told(made(), made()) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"base": "debian:13"}, "image.base  debian:12 -> debian:13"),
        ({"platform": "linux/arm64"}, "image.platform  linux/amd64 -> linux/arm64"),
        ({"target": "last"}, "image.target  added last"),
        ({"network": "host"}, "build.network  added host"),
        ({"schema": 3}, "schema  2 -> 3"),
        ({"requirements": "other.txt"}, f"image.requirements  {REQUIREMENTS} -> other.txt"),
        ({"build_args": {"A": "2"}}, "image.build_args  A 1 -> 2"),
        ({"build_args": {"A": "1", "B": ""}}, "image.build_args  B added ''"),
        ({"build_args": None}, "image.build_args  A removed 1"),
        ({"pins": {"debian:12": "sha256:" + "1" * 64}}, f"repro.lock  debian:12 added sha256:{'1' * 12}"),
        ({"bootstrap": {"suite": "bookworm"}}, "image.bootstrap  suite added bookworm"),
        ({"files": {"tools/a.sh": entry("x")}}, f"tools/a.sh  added sha256:{inputs.sha256(b'x')[:12]}"),
        ({"files": {"link": {"link": "a"}}}, "link  added link to a"),
        ({"later": "x"}, "image.later  added x"),  # of a schema that is not known yet
    ],
)
def test_each_input_is_named_as_a_user_finds_it(changes: dict[str, Any], line: str) -> None:
    assert told(made(), made(**changes)) == [line]


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ("numpy==2.0.0\n", "\nNumpy == 2.1.0\n", [f"{REQUIREMENTS}:2  numpy 2.0.0 -> 2.1.0"]),
        ("a_b==1\n", "A-b==1  # why\n", [f"{REQUIREMENTS}  comments, order, hashes or spacing"]),
        ("a==1\n", "a>=1\n", [f"{REQUIREMENTS}:1  a 1 -> >=1"]),
        ("a\n", "a<2,>1\n", [f"{REQUIREMENTS}:1  a any version -> <2,>1"]),
        ("a==1\n", "a==1\nb==2\n", [f"{REQUIREMENTS}:2  b added 2"]),
        ("a==1\nb==2\n", "a==1\n", [f"{REQUIREMENTS}:2  b removed 2"]),
        ("a[y,x]==1\n", "a[x,y]==2\n", [f"{REQUIREMENTS}:1  a[x,y] 1 -> 2"]),
        ("a==1\n", "a==1; python_version > '3'\n", [f'{REQUIREMENTS}:1  a 1 -> 1; python_version > "3"']),
        ("a @ https://x/a.whl\n", "a @ https://x/b.whl\n", [f"{REQUIREMENTS}:1  a @ https://x/a.whl -> @ https://x/b.whl"]),
        ("-i https://a/\n", "-i https://b/\n", [f"{REQUIREMENTS}:1  -i https://a/ -> https://b/"]),
        ("--index-url=https://a/\n", "--index-url https://b/\n", [f"{REQUIREMENTS}:1  --index-url https://a/ -> https://b/"]),
        ("./a.whl\n", "./b.whl\n", [f"{REQUIREMENTS}:1  ./a.whl -> ./b.whl"]),
        ("a==1 --hash=sha256:1\n", "a==2 --hash=sha256:2\n", [f"{REQUIREMENTS}:1  a 1 -> 2"]),
        ("a==1 --hash=sha256:1\n", "a==1 --hash=sha256:2\n", [f"{REQUIREMENTS}  comments, order, hashes or spacing"]),
        ("-i https://u:a@h/\n", "-i https://u:b@h/\n", [f"{REQUIREMENTS}  comments, order, hashes or spacing"]),
        (
            "a==1; sys_platform == 'linux'\na==2; sys_platform == 'win32'\n",
            "a==3; sys_platform == 'linux'\na==2; sys_platform == 'win32'\n",
            [f'{REQUIREMENTS}:1  a 1; sys_platform == "linux" -> 3; sys_platform == "linux"'],
        ),
    ],
)  # fmt: skip
def test_of_requirements_each_package_is_told(before: str, after: str, lines: list[str]) -> None:
    found = told(made(wanted=before), made(wanted=after))
    assert [line.partition(" sha256:")[0] for line in found] == lines


def test_of_a_dockerfile_each_line_is_told() -> None:
    after = "# new\nARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n\nRUN one more\n"
    assert told(made(), made(after)) == [
        f"{FILE}:1  added # new",
        f"{FILE}:5  RUN one -> RUN one more",
        f"{FILE}:4  removed RUN two",
    ]


def test_a_secret_in_a_dockerfile_is_told_by_its_digest() -> None:
    one, other = made("ENV API_TOKEN=hunter1\n"), made("ENV API_TOKEN=hunter2\n")
    (line,) = told(one, other)
    assert (
        line == f"{FILE}:1  ENV API_TOKEN=sha256:{inputs.sha256(b'hunter1')[:12]} -> ENV API_TOKEN=sha256:f52fbd32b2b3"
    )
    assert "hunter" not in line


def test_a_secret_build_argument_is_told_by_its_digest() -> None:
    (line,) = told(made(build_args={"TOKEN": "hunter1"}), made(build_args={"TOKEN": "hunter2"}))
    assert line.startswith("image.build_args  TOKEN sha256:")
    assert "hunter" not in line


def test_of_a_file_the_content_the_mode_and_the_kind_are_told() -> None:
    one, other = entry("1"), entry("2", executable=True)
    was = made(files={"a": one, "b": one, "c": {"link": "x"}, "d": {"link": "x"}})
    now = made(files={"a": other, "b": {**one, "executable": True}, "c": {"link": "y"}, "d": one})
    digests = [f"sha256:{each['sha256'][:12]}" for each in (one, other)]
    assert told(was, now) == [
        f"a  {digests[0]} -> {digests[1]}",
        "a  mode 644 -> 755",
        "b  mode 644 -> 755",
        "c  link to x -> link to y",
        f"d  link to x -> {digests[0]}",
    ]


def test_a_text_that_is_too_long_is_told_by_its_digest() -> None:
    long = "x" * inputs.TEXT_LIMIT
    (line,) = told(made(wanted=f"{long}1"), made(wanted=f"{long}2"))
    assert line.startswith(f"{REQUIREMENTS}  sha256:")


def test_a_long_line_is_cut_for_people_and_whole_for_programs() -> None:
    (change,) = explain.changes(made("RUN a\n"), made(f"RUN {'b' * 500}\n"))
    assert change.after == f"RUN {'b' * 500}"
    assert change.text == f"{FILE}:1  RUN a -> RUN {'b' * 93}..."


PYTHON = {"libc": "glibc 2.36", "python": "3.11.2", "sha256": "1" * 64}


@pytest.mark.parametrize(
    ("packages", "locked", "lines"),
    [
        (PYTHON, {"numpy": "1", "scipy": "1"}, []),
        (PYTHON | {"sha256": "2" * 64}, {"numpy": "2", "scipy": "1"}, ["repro.lock  numpy 1 -> 2"]),
        (PYTHON | {"sha256": "2" * 64}, {"numpy": "1"}, ["repro.lock  scipy removed 1"]),
        (PYTHON | {"python": "3.12.1"}, {"numpy": "1", "scipy": "1"}, ["repro.lock  python 3.11.2 -> 3.12.1"]),
        (
            PYTHON | {"sha256": "2" * 64},
            {"numpy": "1", "scipy": "1"},
            [f"repro.lock  sha256:{'1' * 12} -> sha256:{'2' * 12}"],
        ),
        (None, {}, ["repro.lock  packages 2 pinned -> not pinned"]),  # the lock is stale: it does not count
    ],
)
def test_of_the_lock_s_packages_each_is_told(
    packages: dict[str, str] | None, locked: dict[str, str], lines: list[str]
) -> None:
    before = msgspec.structs.replace(made(packages=PYTHON), packages={"numpy": "1", "scipy": "1"})
    after = msgspec.structs.replace(made(packages=packages), packages=locked)
    assert told(before, after) == lines


def test_causes_come_first() -> None:
    was = made(pins={"debian:12": "sha256:1"})
    now = made(
        DOCKERFILE + "RUN three\n",
        PINNED.replace("2.0.0", "2.1.0"),
        base="debian:13",
        pins={"debian:12": "sha256:2"},
        build_args={"A": "2"},
        files={"a": entry("1")},
        platform="linux/arm64",
        schema=3,
    )
    assert [change.input for change in explain.changes(was, now)] == [
        *("image.base", "repro.lock", FILE, REQUIREMENTS, "image.build_args", "a", "image.platform", "schema"),
    ]


def test_an_image_whose_label_has_folders_alone_is_compared_by_folder() -> None:
    many = {f"tools/d{each % 50}/{each}": entry(str(each)) for each in range(5000)}
    stored = inputs.read(inputs.label(made(files=many)))
    assert stored is not None
    assert told(stored, made(files=many)) == []
    (line,) = told(stored, made(files=many | {"tools/d1/x": entry("")}))
    assert line.startswith("tools/d1/  100 files, tree sha256:")
    assert " -> 101 files, tree sha256:" in line


def test_an_image_of_before_the_texts_travelled_is_compared_by_digests() -> None:
    before = made()
    old = inputs.read(inputs.canonical(before.manifest).decode())
    assert old is not None
    (line,) = told(old, made(wanted="a\n"))
    assert line.startswith(f"{REQUIREMENTS}  sha256:")
