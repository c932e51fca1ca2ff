"""repro.lock: what is written comes back, what differs is named, what cannot be read is said."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro import lockfile
from repro.errors import BadInputError, RefusedError
from repro.image import Image
from repro.lockfile import Lock, LockedImage
from repro.spec import ImageSpec

SPEC = ImageSpec(
    name="my-tf",
    variant="debian",
    base="debian:bookworm",
    bootstrap=None,
    dockerfile="docker/Dockerfile",
    requirements=None,
    declared=(),
    files=(),
    build_args={},
    target=None,
    platform="linux/amd64",
    network=None,
)
IMAGE = Image(
    variant="debian",
    tag=SPEC.tag,
    id="sha256:" + "1" * 64,
    spec=SPEC.digest,
    base=SPEC.base,
    base_resolved="sha256:" + "2" * 64,
    platform="linux/amd64",
    digest=None,
    built=True,
    seconds=1.5,
)
ENTRY = LockedImage(
    spec=IMAGE.spec, base=IMAGE.base, base_resolved=IMAGE.base_resolved, id=IMAGE.id, platform=IMAGE.platform
)
LOCK = Lock(images={"debian": ENTRY})
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ENTRIES = st.builds(LockedImage, spec=WORDS, base=WORDS, base_resolved=WORDS, id=WORDS, platform=WORDS)


@given(st.dictionaries(WORDS, ENTRIES, max_size=3))
def test_every_lock_survives_its_file(images: dict[str, LockedImage]) -> None:
    lock = Lock(images=images)
    assert lockfile.loads(lockfile.dumps(lock)) == lock


def test_equal_locks_are_equal_bytes_whatever_the_order_of_variants() -> None:
    other = msgspec.structs.replace(ENTRY, spec="b")
    assert lockfile.dumps(Lock(images={"a": ENTRY, "b": other})) == lockfile.dumps(
        Lock(images={"b": other, "a": ENTRY})
    )


def test_the_file_says_who_writes_it_and_reads_as_a_table_per_variant() -> None:
    text = lockfile.dumps(LOCK)
    assert text.startswith("# Written by `repro lock`")
    assert "lock-version = 2\n" in text
    assert "[image.debian]\n" in text
    assert f'spec = "{SPEC.digest}"\n' in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lock-version = 2\n[image.debian\n", "line 2"),
        ("<<<<<<< HEAD\nlock-version = 2\n", "line 1"),
        ("lock-version = 3\n", "lock-version 3, and this repro reads 2"),
        ("", "lock-version None"),
        ("lock-version = 2\nfuture = true\n", "unknown field `future`"),
        ("lock-version = 2\n[image.debian]\nspec = 'x'\n", "missing required field"),
        ("lock-version = 2\nimage = 3\n", "Expected `object`"),
    ],
)
def test_a_lock_that_cannot_be_read_is_the_users_to_correct(text: str, said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        lockfile.loads(text)
    assert "repro.lock" in caught.value.what
    assert said in str(caught.value)


def test_a_lock_that_is_no_text_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "repro.lock").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInputError, match=r"repro\.lock"):
        lockfile.read(tmp_path / "repro.lock")


def test_no_file_is_an_empty_lock(tmp_path: Path) -> None:
    assert lockfile.read(tmp_path / "repro.lock") == Lock()


def test_a_noted_image_is_in_the_file_beside_the_others(tmp_path: Path) -> None:
    path = tmp_path / "repro.lock"
    lockfile.note(path, IMAGE)
    lockfile.note(path, msgspec.structs.replace(IMAGE, variant="other"))
    assert lockfile.read(path).images == {"debian": ENTRY, "other": ENTRY}


def test_noting_the_same_image_again_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "repro.lock"
    lockfile.note(path, IMAGE)
    before = path.stat()
    lockfile.note(path, msgspec.structs.replace(IMAGE, built=False, seconds=0.1))
    assert path.stat().st_ino == before.st_ino


def test_what_matches_has_no_conflicts() -> None:
    assert lockfile.conflicts(LOCK, SPEC) == []
    assert lockfile.conflicts(LOCK, SPEC, IMAGE) == []
    lockfile.require(LOCK, SPEC, IMAGE)


@pytest.mark.parametrize("key", ["spec", "base", "base_resolved", "id", "platform"])
def test_each_difference_is_named_by_its_path(key: str) -> None:
    lock = Lock(images={"debian": msgspec.structs.replace(ENTRY, **{key: "other"})})
    assert lockfile.conflicts(lock, SPEC, IMAGE) == [f"image.debian.{key}: locked other, found {getattr(ENTRY, key)}"]


def test_before_the_image_is_there_only_the_spec_is_compared() -> None:
    lock = Lock(images={"debian": msgspec.structs.replace(ENTRY, id="other", base_resolved="other")})
    assert lockfile.conflicts(lock, SPEC) == []


def test_what_the_lock_does_not_name_is_refused() -> None:
    with pytest.raises(RefusedError) as caught:
        lockfile.require(Lock(), SPEC)
    assert "image.debian: not in the lock" in str(caught.value)
    assert "repro rebuild" in str(caught.value)
