"""Which files make an image, and what of them counts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from repro.build import context
from repro.build.context import ContextFile
from repro.errors import BadInputError

DOCKERFILE = "docker/Dockerfile"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a Dockerfile and requirements."""
    write(tmp_path, DOCKERFILE, "FROM base\n")
    write(tmp_path, "docker/requirements.txt", "numpy==2.0\n")
    return tmp_path


def write(root: Path, name: str, content: str | bytes = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(root: Path, *declared: str, requirements: str | None = "docker/requirements.txt") -> dict[str, ContextFile]:
    files = context.read(root, DOCKERFILE, requirements, declared)
    assert [file.path for file in files] == sorted(file.path for file in files)
    return {file.path: file for file in files}


def refused(root: Path, *declared: str, **options: str | None) -> str:
    with pytest.raises(BadInputError) as caught:
        read(root, *declared, **options)
    return str(caught.value)


# what is in a context --------------------------------------------------------------------------------------------


def test_only_the_dockerfile_the_requirements_and_what_is_declared_are_looked_at(root: Path) -> None:
    write(root, "huge.bin")
    write(root, "tools/install.sh")
    assert list(read(root)) == [DOCKERFILE, "docker/requirements.txt"]
    assert list(read(root, "tools")) == [DOCKERFILE, "docker/requirements.txt", "tools/install.sh"]
    assert list(read(root, requirements=None)) == [DOCKERFILE]


def test_requirements_bring_what_they_name_each_once_even_in_a_circle(root: Path) -> None:
    write(root, "docker/requirements.txt", "-r sub/more.txt\n--constraint=../pins.txt\n-r https://example.com/x.txt\n")
    write(root, "docker/sub/more.txt", "-r ../requirements.txt # back again\n  -rlast.txt\n")
    write(root, "docker/sub/last.txt", "-c \\\n  ../../pins.txt\n")
    write(root, "pins.txt", "# -r not-this.txt\n")
    assert list(read(root)) == [
        DOCKERFILE,
        "docker/requirements.txt",
        "docker/sub/last.txt",
        "docker/sub/more.txt",
        "pins.txt",
    ]


@pytest.mark.parametrize("line", ["./wheels/a.whl", "-e ./wheels", "../wheels", "wheels/a.whl", "--find-links wheels"])
def test_requirements_that_install_from_a_folder_ask_for_its_declaration(root: Path, line: str) -> None:
    write(root, "wheels/a.whl")
    write(root, "docker/requirements.txt", f"numpy\n{line}\n")
    said = refused(root)
    assert "docker/requirements.txt:2" in said
    assert "image.context: [" in said
    read(root, "wheels", "docker")


@pytest.mark.parametrize(
    "line", ["numpy>=2", "a[b]==1.0 ; python_version > '3'", "a @ https://example.com/a.whl", "--pre"]
)
def test_requirements_from_an_index_ask_for_nothing(root: Path, line: str) -> None:
    write(root, "docker/requirements.txt", line)
    read(root)


def test_a_declared_folder_is_taken_without_what_never_belongs_to_an_image(root: Path) -> None:
    for name in ("src/a.py", "src/.git/config", "src/__pycache__/a.pyc", "src/.venv/x", ".repro/y", ".hidden"):
        write(root, name)
    assert list(read(root, ".")) == [".hidden", DOCKERFILE, "docker/requirements.txt", "src/a.py"]


def test_what_runs_write_is_no_part_of_the_whole_project_unless_it_is_named(root: Path) -> None:
    before = read(root, ".")
    ours = ("runs/1/record.json", "mlflow.db", "mlflow.db-wal", "mlartifacts/1/x", "conf/local/default.yaml")
    for name in (*ours, "20261123-191500-mnist-3f9c1a.crate.zip"):
        write(root, name)
    assert read(root, ".") == before
    write(root, "src/runs/a.py")  # a name of ours elsewhere is the user's
    write(root, "runs2.txt")
    assert read(root, ".").keys() - before.keys() == {"src/runs/a.py", "runs2.txt"}
    assert "runs/1/record.json" in read(root, "runs")
    assert "runs/1/record.json" in read(root, "runs/1")
    assert "conf/local/default.yaml" not in read(root, "conf")


def test_a_dockerignore_that_is_no_text_is_said(root: Path) -> None:
    write(root, ".dockerignore", b"# caf\xe9\n")
    assert ".dockerignore is no UTF-8 text" in refused(root)


def test_dockerignore_is_obeyed_but_cannot_take_the_dockerfile(root: Path) -> None:
    write(root, ".dockerignore", "# remark\n**/*.log\ndocker\nsrc\n!src/keep.py\n")
    for name in ("src/drop.py", "src/keep.py", "tools/a.sh", "tools/a.log"):
        write(root, name)
    assert list(read(root, ".")) == [DOCKERFILE, "docker/requirements.txt", "src/keep.py", "tools/a.sh"]


# what of a file counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [DOCKERFILE, "docker/requirements.txt"])
def test_line_ends_and_byte_order_marks_of_edited_text_do_not_count(root: Path, name: str) -> None:
    before = read(root, "docker")
    write(root, name, b"\xef\xbb\xbf" + (root / name).read_bytes().replace(b"\n", b"\r\n"))
    assert read(root, "docker") == before


def test_every_byte_of_a_declared_file_counts(root: Path) -> None:
    write(root, "run.bat", b"\xef\xbb\xbfa\r\n")
    assert read(root, "run.bat")["run.bat"].content == b"\xef\xbb\xbfa\r\n"


def test_of_a_files_mode_only_the_owners_execution_counts(root: Path) -> None:
    file = write(root, "run.sh", "x")
    identities = []
    for mode in (0o644, 0o600, 0o664, 0o755, 0o700):
        file.chmod(mode)
        identities.append(read(root, "run.sh")["run.sh"].identity())
    assert identities[0] == identities[1] == identities[2]
    assert identities[3] == identities[4] != identities[0]


def test_times_and_the_place_of_the_project_do_not_count(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = write(root, "a/b.txt", "x")
    before = read(root, "a")
    os.utime(file, (0, 0))
    moved = tmp_path_factory.mktemp("other") / "place with spaces"
    root.rename(moved)
    assert read(moved, "a") == before


def test_names_are_the_same_however_unicode_spells_them(root: Path) -> None:
    write(root, "cafe\u0301/u\u0308.txt", "x")
    assert "caf\u00e9/\u00fc.txt" in read(root, "cafe\u0301")


@pytest.mark.parametrize("name", ["docker/../tools/a.sh", "./tools/a.sh", "tools//a.sh", "tools/", "tools"])
def test_a_file_has_one_name_however_it_is_declared(root: Path, name: str) -> None:
    write(root, "tools/a.sh")
    assert read(root, name).keys() == read(root, "tools/a.sh").keys()


# links -----------------------------------------------------------------------------------------------------------


def test_a_link_inside_the_project_stays_a_link(root: Path) -> None:
    write(root, "tools/a.sh")
    (root / "tools" / "b.sh").symlink_to("a.sh")
    found = read(root, "tools")["tools/b.sh"]
    assert (found.link, found.content) == ("a.sh", b"")
    assert found.identity() == {"link": "a.sh"}


@pytest.mark.parametrize("target", ["/etc/hostname", "../../outside.txt"])
def test_a_link_out_of_the_project_is_refused(root: Path, target: str) -> None:
    write(root, "tools/a.sh")
    (root / "tools" / "b.sh").symlink_to(target)
    said = refused(root, "tools")
    assert "tools/b.sh is a link out of the project" in said
    assert f"-> {target}" in said


def test_an_absolute_link_is_refused_since_it_differs_from_place_to_place(root: Path) -> None:
    (root / "link").symlink_to(write(root, "a.txt"))
    assert "link is a link out of the project" in refused(root, "link")


def test_a_folder_behind_a_link_out_of_the_project_is_refused(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside, "secret.txt")
    (root / "link").symlink_to(outside)
    assert "outside the project" in refused(root, "link/secret.txt")
    (root / "docker" / "requirements.txt").unlink()
    (root / "docker" / "requirements.txt").symlink_to(outside / "secret.txt")
    assert "docker/requirements.txt is a link out of the project" in refused(root)


# what cannot be in a context -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"), [(DOCKERFILE, "image.dockerfile"), ("docker/requirements.txt", "image.requirements")]
)
def test_a_missing_file_is_said_with_the_key_that_names_it(root: Path, name: str, key: str) -> None:
    (root / name).unlink()
    said = refused(root)
    assert f"{name} cannot be read" in said
    assert key in said


def test_a_missing_file_that_requirements_name_is_said_with_the_line(root: Path) -> None:
    write(root, "docker/requirements.txt", "numpy\n-r missing.txt\n")
    said = refused(root)
    assert "docker/missing.txt cannot be read" in said
    assert "docker/requirements.txt:2" in said


def test_a_declared_file_that_does_not_exist_is_said(root: Path) -> None:
    assert "image.context names tools, which does not exist" in refused(root, "tools")


@pytest.mark.parametrize("name", ["../other", "/etc/hostname", "a/../../b"])
def test_what_lies_outside_the_project_is_refused(root: Path, name: str) -> None:
    assert "outside the project" in refused(root, name)
    assert "outside the project" in refused(root, requirements=name)


def test_text_that_is_no_text_is_said_to_be_none(root: Path) -> None:
    write(root, "docker/requirements.txt", b"\xff\xfen\x00")
    assert "docker/requirements.txt is no UTF-8 text" in refused(root)


def test_a_pipe_is_refused_rather_than_waited_for(root: Path) -> None:
    os.mkfifo(root / "docker" / "pipe")
    assert "docker/pipe is neither a file, a folder nor a link" in refused(root, "docker")


def test_a_name_that_is_no_unicode_is_refused(root: Path) -> None:
    (root / "tools").mkdir()
    (root / "tools" / os.fsdecode(b"caf\xe9")).write_text("")
    assert r"'tools/caf\udce9' is a name that is not UTF-8" in refused(root, "tools")


# what a COPY finds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "source", "held"),
    [
        ([], "docker/Dockerfile", True),
        ([], "docker/requirements*.txt", True),
        ([], "docker/*.sh", False),
        ([], "*", False),
        ([], ".", False),
        (["."], ".", True),
        (["./"], ".", True),
        ([], "docker", False),  # of it only the two files are there
        (["docker"], "docker", True),
        (["./docker/"], "docker", True),
        (["."], "docker", True),
        (["tools/a.sh"], "tools/a.sh", True),
        (["tools/a.sh"], "tools/?.sh", True),
        (["tools/a.sh"], "tools/[ab].sh", True),
        (["tools/a.sh"], "tool*/a.sh", True),
        (["tools/a.sh"], "*/*.sh", True),
        (["tools/a.sh"], "*.sh", False),  # no wildcard crosses a slash
        (["tools/a.sh"], "tools", False),
        (["tools"], "tools", True),
        (["tools"], "tool", False),
        (["tools"], "tools/b.sh", False),
        (["tools"], "TOOLS/a.sh", False),
    ],
)
def test_whether_a_copy_finds_all_that_it_names(root: Path, declared: Sequence[str], source: str, held: bool) -> None:
    write(root, "tools/a.sh")
    assert context.holds(context.read(root, DOCKERFILE, "docker/requirements.txt", declared), declared, source) is held
