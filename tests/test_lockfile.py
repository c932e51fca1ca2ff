"""repro.lock: what is written comes back, what differs is named, what cannot be read is said."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro import lockfile
from repro.errors import BadInputError, RefusedError
from repro.experiment import ImageConfig
from repro.image import Image
from repro.lockfile import Lock, LockedImage, Resolved
from repro.recipe.spec import ImageSpec

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


RESOLVED = st.builds(
    Resolved,
    as_of=WORDS,
    platform=WORDS,
    images=st.dictionaries(WORDS, WORDS),
    requirements=st.dictionaries(WORDS, WORDS),
    python=st.none() | WORDS,
    libc=st.none() | WORDS,
    pylock=st.none() | WORDS,
    pylock_sha256=st.none() | WORDS,
)


@given(st.dictionaries(WORDS, ENTRIES, max_size=3), st.dictionaries(WORDS, RESOLVED, max_size=3))
def test_every_lock_survives_its_file(images: dict[str, LockedImage], resolved: dict[str, Resolved]) -> None:
    lock = Lock(images=images, resolved=resolved)
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


PUSHED = msgspec.structs.replace(IMAGE, digest="reg.example.com/my-tf@sha256:3")
WITH_REGISTRY = msgspec.structs.replace(SPEC, registry="reg.example.com")


def test_a_repo_digest_is_noted_and_names_what_is_pulled(tmp_path: Path) -> None:
    path = tmp_path / "repro.lock"
    lockfile.note(path, PUSHED)
    assert lockfile.read(path).images["debian"].digest == PUSHED.digest
    assert lockfile.pushed(lockfile.read(path), WITH_REGISTRY) == PUSHED.digest
    moved = msgspec.structs.replace(SPEC, registry="other:5000/team")
    assert lockfile.pushed(lockfile.read(path), moved) == "other:5000/team/my-tf@sha256:3"


def test_nothing_is_pulled_without_a_registry_a_digest_or_for_another_spec() -> None:
    lock = lockfile.updated(Lock(), PUSHED)
    assert lockfile.pushed(lock, SPEC) is None
    assert lockfile.pushed(LOCK, WITH_REGISTRY) is None
    assert lockfile.pushed(lock, msgspec.structs.replace(WITH_REGISTRY, platform="linux/arm64")) is None
    assert lockfile.pushed(Lock(), WITH_REGISTRY) is None


def test_a_locked_digest_stays_with_its_image_and_with_no_other() -> None:
    lock = lockfile.updated(Lock(), PUSHED)
    assert lockfile.updated(lock, IMAGE) == lock  # the same id, on an engine that got it as a file
    elsewhere = msgspec.structs.replace(PUSHED, digest="localhost:5000/my-tf@sha256:3")
    assert lockfile.updated(lock, elsewhere) == lock
    other = msgspec.structs.replace(IMAGE, id="sha256:4")
    assert lockfile.updated(lock, other).images["debian"].digest is None


def test_the_id_may_differ_where_the_repo_digest_is_the_same() -> None:
    """Image stores count the same image differently."""
    lock = lockfile.updated(Lock(), PUSHED)
    other = msgspec.structs.replace(PUSHED, id="sha256:4")
    assert lockfile.conflicts(lock, WITH_REGISTRY, other) == []
    unknown = msgspec.structs.replace(other, digest=None)
    assert lockfile.conflicts(lock, WITH_REGISTRY, unknown) == [f"image.debian.id: locked {IMAGE.id}, found sha256:4"]
    with pytest.raises(RefusedError) as caught:
        lockfile.require(lock, msgspec.structs.replace(WITH_REGISTRY, pushed=PUSHED.digest), unknown)
    assert "`repro rebuild --pull`" in str(caught.value)


def test_before_the_image_is_there_only_the_spec_is_compared() -> None:
    lock = Lock(images={"debian": msgspec.structs.replace(ENTRY, id="other", base_resolved="other")})
    assert lockfile.conflicts(lock, SPEC) == []


def test_what_the_lock_does_not_name_is_refused() -> None:
    with pytest.raises(RefusedError) as caught:
        lockfile.require(Lock(), SPEC)
    assert "image.debian: not in the lock" in str(caught.value)
    assert "repro rebuild" in str(caught.value)


# what `repro lock` wrote -----------------------------------------------------------------------------------------

DIGEST = "base@sha256:" + "3" * 64
PYLOCK = b'lock-version = "1.0"\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with an image that takes something from three others, and requirements in two files."""
    for name, text in {
        "docker/Dockerfile": (
            f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nCOPY --from=uv:1 /a /b\nCOPY --from={DIGEST} /a /c\n"
        ),
        "docker/requirements.txt": "numpy\n-r more.txt\n",
        "docker/more.txt": "scipy\n",
        "pylock.v.toml": PYLOCK.decode(),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def wanted(root: Path, **options: object) -> ImageSpec:
    return ImageSpec.read(ImageConfig(variant="v", **{"base": "base:1", **options}), root)  # type: ignore[arg-type]


def resolution(root: Path) -> Resolved:
    """As `repro lock` writes it down for the project as it is."""
    return Resolved(
        as_of="2026-01-01T00:00:00Z",
        platform="linux/amd64",
        images={"base:1": DIGEST, "uv:1": "sha256:" + "4" * 64},
        requirements=lockfile.requirement_files(wanted(root)),
        python="3.11.2",
        libc="glibc 2.36",
        pylock="pylock.v.toml",
        pylock_sha256=hashlib.sha256(PYLOCK).hexdigest(),
    )


def test_what_was_resolved_becomes_part_of_the_spec_and_of_its_hash(root: Path) -> None:
    before = wanted(root)
    lock = Lock(resolved={"v": resolution(root)})
    spec, stale = lockfile.applied(before, lock, root)
    assert stale == ()
    assert spec.pins == {"base:1": DIGEST}
    assert spec.expected == {"uv:1": "sha256:" + "4" * 64}
    assert spec.packages is not None
    assert (spec.packages.content, spec.packages.target.python) == (PYLOCK, "3.11.2")
    manifest = spec.manifest()
    assert manifest["pins"] == {"base:1": DIGEST}
    sha256 = hashlib.sha256(PYLOCK).hexdigest()
    assert manifest["packages"] == {"libc": "glibc 2.36", "python": "3.11.2", "sha256": sha256}
    assert spec.digest != before.digest
    other = Lock(resolved={"v": msgspec.structs.replace(resolution(root), python="3.12.0")})
    assert lockfile.applied(before, other, root)[0].digest != spec.digest


def test_the_id_of_an_image_without_a_registry_is_no_part_of_the_hash(root: Path) -> None:
    lock = resolution(root)
    moved = msgspec.structs.replace(lock, images={**lock.images, "uv:1": "sha256:" + "5" * 64})
    one, two = (lockfile.applied(wanted(root), Lock(resolved={"v": each}), root)[0] for each in (lock, moved))
    assert one.digest == two.digest
    assert one.expected != two.expected


def test_a_pushed_image_on_a_base_that_was_locked_before_is_not_pulled_any_more(root: Path) -> None:
    lock = resolution(root)
    ours = msgspec.structs.replace(lock, images={**lock.images, "base:1": "sha256:" + "6" * 64})
    before = wanted(root, registry="registry.example.com/team")
    spec, _ = lockfile.applied(before, Lock(resolved={"v": ours}), root)
    entry = msgspec.structs.replace(
        ENTRY,
        spec=spec.digest,
        base_resolved="sha256:" + "6" * 64,
        digest=f"registry.example.com/team/my-tf@{DIGEST[5:]}",
    )
    assert lockfile.pushed(Lock(images={"v": entry}), spec) is not None
    other = msgspec.structs.replace(entry, base_resolved="sha256:" + "7" * 64)
    assert lockfile.pushed(Lock(images={"v": other}), spec) is None


def test_the_line_ends_of_a_checkout_do_not_make_a_lock_stale(root: Path) -> None:
    lock = Lock(resolved={"v": resolution(root)})
    before, _ = lockfile.applied(wanted(root), lock, root)
    (root / "pylock.v.toml").write_bytes(PYLOCK.replace(b"\n", b"\r\n"))
    assert lockfile.applied(wanted(root), lock, root) == (before, ())


STALE = {
    "docker/more.txt: changed": lambda root: (root / "docker" / "more.txt").write_text("scipy>1\n"),
    "docker/more.txt: gone": lambda root: (root / "docker" / "requirements.txt").write_text("numpy\n"),
    "docker/new.txt: new": lambda root: (
        (root / "docker" / "new.txt").write_text("x\n"),
        (root / "docker" / "requirements.txt").write_text("numpy\n-r more.txt\n-r new.txt\n"),
    ),
    "image mc:2: not resolved": lambda root: (
        (root / "docker" / "Dockerfile").open("a").write("COPY --from=mc:2 /a /b\n")
    ),
    "image uv:1: not used any more": lambda root: (root / "docker" / "Dockerfile").write_text(
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n"
    ),
    "pylock.v.toml is not the file that `repro lock` wrote": lambda root: (root / "pylock.v.toml").write_text("x"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("said", STALE)
def test_what_changed_since_is_named_and_the_lock_does_not_count(root: Path, said: str) -> None:
    lock = Lock(resolved={"v": resolution(root)})
    STALE[said](root)
    spec, stale = lockfile.applied(wanted(root), lock, root)
    assert said in stale
    assert spec == wanted(root)
    assert any(said in each for each in refused(lock, spec, stale))


def refused(lock: Lock, spec: ImageSpec, stale: tuple[str, ...]) -> list[str]:
    with pytest.raises(RefusedError) as caught:
        lockfile.require(lock, spec, stale=stale)
    return list(caught.value.evidence)


def test_another_platform_and_another_base_are_stale_and_a_step_of_the_dockerfile_is_not(root: Path) -> None:
    lock = Lock(resolved={"v": resolution(root)})
    assert lockfile.applied(wanted(root, platform="linux/arm64"), lock, root)[1] == (
        "image.platform: linux/amd64 was resolved, linux/arm64 is asked for",
    )
    assert lockfile.applied(wanted(root, base="base:2"), lock, root)[1] == (
        "image base:2: not resolved",
        "image base:1: not used any more",
    )
    with (root / "docker" / "Dockerfile").open("a") as file:
        file.write("RUN true\n")
    assert lockfile.applied(wanted(root), lock, root)[1] == ()


def test_without_requirements_there_is_nothing_to_resolve_but_images(root: Path) -> None:
    (root / "docker" / "requirements.txt").write_text("# none\n--index-url https://example.com\n")
    assert lockfile.requirement_files(wanted(root)) == {}


def test_a_resolution_and_an_image_stand_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "repro.lock"
    resolved = Resolved(as_of="x", platform="linux/amd64")
    lockfile.note(path, IMAGE)
    lockfile.change(path, lambda lock: lockfile.with_resolved(lock, "debian", resolved))
    lockfile.note(path, msgspec.structs.replace(IMAGE, variant="other"))
    assert lockfile.read(path) == Lock(images={"debian": ENTRY, "other": ENTRY}, resolved={"debian": resolved})
