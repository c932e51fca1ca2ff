"""Of any project: changing an input changes the hash, and changing anything else does not."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.build import context
from repro.errors import BadInputError
from repro.experiment import BaseRecipe, BuildConfig, ImageConfig, SecretSource
from repro.recipe.pylock import Target
from repro.recipe.spec import ImageSpec, LockedPackages
from tests import golden_reference
from tests.conftest import commit

RECIPE = BaseRecipe(suite="bookworm", packages=("python3",), source_date_epoch=1)
DOCKERFILE = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE} AS one\nARG REQUIREMENTS\nFROM ${BASE_IMAGE} AS two\nCOPY ctx /ctx\n"
FIELDS = {  # of the configuration: what they become
    "base": "debian:11",
    "bootstrap": RECIPE,
    "requirements": None,
    "context": ("ctx", "docker"),
    "build_args": {"A": "another"},
    "target": "one",
    "platform": "linux/arm64",
}

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=4).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200 and name not in context.NEVER
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TREES = st.dictionaries(PATHS, st.tuples(st.binary(max_size=5), st.booleans()), min_size=2, max_size=5)


def locked(content: bytes = b"1", python: str = "3.11.2", libc: str = "glibc 2.36") -> LockedPackages:
    target = Target(python=python, platform="linux/amd64", libc=libc)
    return LockedPackages(name="pylock.v.toml", content=content, target=target)


class Checkout:
    """A project with its configuration, and what is done to it."""

    def __init__(self, root: Path, tree: dict[str, tuple[bytes, bool]], build_args: dict[str, str]) -> None:
        self.root = root
        self.config = ImageConfig(variant="v", base="debian:12", context=("ctx",), build_args=build_args, target="two")
        self.build = BuildConfig(network="host")
        self.pins = {"debian:12": "debian@sha256:1"}
        self.packages = locked()
        self.expected: dict[str, str] = {}
        (root / "docker").mkdir(parents=True)
        (root / "docker" / "Dockerfile").write_text(DOCKERFILE)
        (root / "docker" / "requirements.txt").write_text("numpy==1\n-r more.txt\n")
        (root / "docker" / "more.txt").write_text("scipy==1\n")
        (root / "docker" / "notes.txt").write_text("no part of it\n")
        for name, (content, executable) in tree.items():
            file = root / "ctx" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            file.chmod(0o755 if executable else 0o644)

    def spec(self) -> ImageSpec:
        read = ImageSpec.read(self.config, self.root, self.build)
        return msgspec.structs.replace(read, pins=self.pins, packages=self.packages, expected=self.expected)

    def identity(self) -> tuple[str, bytes]:
        """The hash, and what a builder gets."""
        spec, out = self.spec(), io.BytesIO()
        context.write(out, spec.files, {})
        return spec.digest, out.getvalue()

    def files(self) -> list[Path]:
        return sorted(path for path in (self.root / "ctx").rglob("*") if path.is_symlink() or path.is_file())

    def reconfigure(self, **changes: Any) -> None:
        self.config = msgspec.structs.replace(self.config, **changes)


@contextmanager
def checkout(tree: dict[str, tuple[bytes, bool]], build_args: dict[str, str]) -> Iterator[Checkout]:
    """A project of these files; a tree that no file system holds, or that is refused, is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = Checkout(Path(folder) / "project", tree, build_args)
            made.spec()
        except (OSError, BadInputError):  # a file and a folder of one name; two names that are one in NFC
            made = Checkout(Path(folder) / "plain", {"a": (b"", False), "b/c": (b"1", True)}, {})
        yield made


# what can be done to an input ------------------------------------------------------------------------------------


def append(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"#")


def to_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("elsewhere")


INPUTS: dict[str, Callable[[Checkout, Path], object]] = {
    "content": lambda _, file: append(file),
    "executable bit": lambda _, file: file.chmod(file.stat().st_mode ^ stat.S_IXUSR),
    "name": lambda _, file: file.rename(file.with_name("another name")),
    "folder": lambda there, file: file.rename(there.root / "ctx" / "another folder of it"),
    "removed": lambda _, file: file.unlink(),
    "kind": lambda _, file: to_link(file),
    "added": lambda _, file: file.with_name("another name").write_bytes(b""),
    "Dockerfile": lambda there, _: append(there.root / "docker" / "Dockerfile"),
    "requirements": lambda there, _: append(there.root / "docker" / "requirements.txt"),
    "included requirements": lambda there, _: append(there.root / "docker" / "more.txt"),
    "name of the Dockerfile": lambda there, _: (
        shutil.copy(there.root / "docker" / "Dockerfile", there.root / "docker" / "other"),
        there.reconfigure(dockerfile="docker/other"),
    ),
    "network": lambda there, _: setattr(there, "build", BuildConfig(network="none")),
    "pins": lambda there, _: setattr(there, "pins", {"debian:12": "debian@sha256:2"}),
    "packages": lambda there, _: setattr(there, "packages", locked(content=b"2")),
    "Python of the packages": lambda there, _: setattr(there, "packages", locked(python="3.12.0")),
    "libc of the packages": lambda there, _: setattr(there, "packages", locked(libc="musl 1.2")),
    **{field: lambda there, _, to=to, field=field: there.reconfigure(**{field: to}) for field, to in FIELDS.items()},
}


@pytest.mark.parametrize("what", INPUTS)
@settings(max_examples=20, deadline=None)
@given(TREES, st.dictionaries(st.sampled_from("AB"), st.text(max_size=3)), st.integers(0, 4))
def test_changing_an_input_changes_the_hash(
    what: str, tree: dict[str, tuple[bytes, bool]], build_args: dict[str, str], chosen: int
) -> None:
    with checkout(tree, build_args) as there:
        before = there.spec().digest
        files = there.files()
        INPUTS[what](there, files[chosen % len(files)])
        assert there.spec().digest != before


@settings(max_examples=50, deadline=None)
@given(TREES, st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=3))
def test_a_second_implementation_computes_the_same(
    tree: dict[str, tuple[bytes, bool]], build_args: dict[str, str]
) -> None:
    with checkout(tree, build_args) as there:
        config = msgspec.to_builtins(there.config) | {"network": there.build.network}
        packages = {"text": "1", "python": "3.11.2", "libc": "glibc 2.36"}
        expected = golden_reference.canonical(config, there.root, there.pins, packages)
        assert there.spec().canonical().decode() == expected


def test_every_field_of_the_configuration_is_an_input_or_a_name() -> None:
    fields = {field.name for field in msgspec.structs.fields(ImageConfig)}
    assert fields == {*FIELDS, "dockerfile", "name", "variant", "registry"}
    assert {field.name for field in msgspec.structs.fields(BuildConfig)} == {"network", "ca_bundle", "secrets"}


# what can be done to anything else -------------------------------------------------------------------------------


def move(there: Checkout) -> None:
    there.root = there.root.rename(there.root.with_name("another place"))


def clone(there: Checkout) -> None:
    """By somebody else, with another umask."""
    mask = os.umask(0o077)
    try:
        copy = there.root.with_name("clone")
        shutil.copytree(there.root, copy, symlinks=True, copy_function=shutil.copyfile)
        for file in there.files():
            executable = file.stat().st_mode & stat.S_IXUSR
            (copy / file.relative_to(there.root)).chmod(0o700 if executable else 0o600)
        there.root = copy
    finally:
        os.umask(mask)


def give_away(there: Checkout) -> None:
    for file in there.files():
        if os.geteuid() == 0:
            os.chown(file, 1234, 5678)


def to_windows(there: Checkout) -> None:
    for file in (there.root / "docker").iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))


def age(there: Checkout) -> None:
    for file in there.root.rglob("*"):
        os.utime(file, (1, 1))


def keep_secret(there: Checkout, value: str) -> None:
    os.environ["REPRO_TEST_SECRET"] = value
    (there.root / "ca.pem").write_text(value)
    secrets = {"token": SecretSource(env="REPRO_TEST_SECRET")}
    there.build = BuildConfig(network="host", ca_bundle="ca.pem", secrets=secrets)


def spell(there: Checkout) -> None:
    there.reconfigure(
        dockerfile="./docker//Dockerfile", requirements="docker/../docker/requirements.txt", context=("./ctx/", "ctx")
    )


OTHERS: dict[str, Callable[[Checkout], object]] = {
    "place": move,
    "clone": clone,
    "owner": give_away,
    "times": age,
    "line ends": to_windows,
    "commit": lambda there: commit(there.root),
    "another commit": lambda there: (commit(there.root), commit(there.root)),
    "undeclared files": lambda there: (there.root / "train.py").write_text("x"),
    "empty folders": lambda there: (there.root / "ctx" / "nothing").mkdir(exist_ok=True),
    "secrets": lambda there: keep_secret(there, "1"),
    "other secrets": lambda there: (keep_secret(there, "1"), keep_secret(there, "2")),
    "ids of bases that no registry has": lambda there: there.expected.update({"debian:12": "sha256:1"}),
    "spelling": spell,
    "order": lambda there: there.reconfigure(build_args=dict(reversed(there.config.build_args.items()))),
    "names": lambda there: there.reconfigure(name="team/other", variant="w", registry="registry.example.com"),
}


@pytest.mark.parametrize("what", OTHERS)
@settings(max_examples=15, deadline=None)
@given(TREES, st.dictionaries(st.sampled_from("AB"), st.text(max_size=3)))
def test_changing_anything_else_changes_neither_the_hash_nor_the_context(
    what: str, tree: dict[str, tuple[bytes, bool]], build_args: dict[str, str]
) -> None:
    with checkout(tree, build_args) as there:
        before = there.identity()
        OTHERS[what](there)
        assert there.identity() == before
