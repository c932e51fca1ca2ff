"""A commit, with those of the repositories inside it -> a git bundle, and back.

The bytes depend on the commits alone: however the repository keeps its objects, packed or loose, they are packed anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from repro import scratch
from repro.code import lfs
from repro.code.repository import Repository, bare_repository, git, open_repository, reading
from repro.errors import BadInputError

BLOCK = 1 << 20
NAME = "code.bundle"
LFS = "lfs"
LINE = 256  # bytes of a line that are looked at
# each of these would let what a repository or its owner happens to have decide about the bytes
_PLAIN = tuple(
    word
    for setting in (
        *("pack.threads=1", "pack.useBitmaps=false", "pack.allowPackReuse=false", "pack.usePathWalk=false"),
        *("pack.compression=6", "pack.windowMemory=0", "pack.packSizeLimit=0", "pack.useSparse=false"),
        *(
            "core.commitGraph=false",
            "core.multiPackIndex=false",
            "core.bigFileThreshold=64m",
            "core.deltaBaseCacheLimit=96m",
        ),
        *("pack.deltaCacheSize=256m", "pack.deltaCacheLimit=1000", "pack.indexVersion=2", "gc.auto=0"),
    )
    for word in ("-c", setting)
)
_PACK = ("pack-objects", "--stdout", "--revs", "-q", "--no-reuse-object", "--window=10", "--depth=50")


def write(repository: Repository, commit: str, prefix: str, path: Path) -> None:
    """Write the bundle of a commit, with all of its history and with the commits of repositories inside the project.

    Each commit is there as `refs/repro/snap/<commit>`.

    Raises:
        BadInputError: a commit is not there, or its history was not fetched.
    """
    found = dict(_commits(repository, commit, prefix))
    for each in found.values():
        if git(each.top, "rev-parse", "--is-shallow-repository").strip() == b"true":
            raise BadInputError(
                f"{each.top} is a shallow clone, and a bundle holds the whole history of its code",
                hints=["`git fetch --unshallow`"],
            )
    kind = git(repository.top, "rev-parse", "--show-object-format").decode().strip()
    with scratch.folder("repro-bundle-") as temporary:
        git(temporary, "init", "-q", "--bare", "--template=", f"--object-format={kind}", ".")
        folders = sorted({str(each.common_dir / "objects") for each in found.values()})
        (temporary / "objects" / "info").mkdir(exist_ok=True)
        (temporary / "objects" / "info" / "alternates").write_text("".join(f"{folder}\n" for folder in folders))
        asked = "".join(f"{each}\n" for each in sorted(found)).encode()
        with path.open("wb") as out, reading(temporary, *_PLAIN, *_PACK, stdin=asked) as pack:
            out.write(b"# v2 git bundle\n" if kind == "sha1" else f"# v3 git bundle\n@object-format={kind}\n".encode())
            out.write(f"{commit} HEAD\n".encode())  # so that `git clone` has something to check out
            out.writelines(f"{each} refs/repro/snap/{each}\n".encode() for each in sorted(found))
            out.write(b"\n")
            shutil.copyfileobj(pack, out, BLOCK)


def _commits(repository: Repository, commit: str, prefix: str) -> Iterator[tuple[str, Repository]]:
    yield commit, repository
    treeish = f"{commit}:{prefix}" if prefix else commit
    for line in os.fsdecode(git(repository.top, "ls-tree", "-r", "-z", "--full-tree", treeish)).split("\0")[:-1]:
        facts, path = line.split("\t", 1)
        mode, _kind, oid = facts.split(" ")
        if mode == "160000":
            inner = repository.top / prefix / path
            if repository.bare:
                yield from _commits(repository, oid, "")
            elif (inner / ".git").exists():
                yield from _commits(open_repository(inner), oid, "")


def opened(archive: Path, folder: Path) -> Repository:
    """A repository in the empty folder `folder` with what the bundle in `archive` holds, and the LFS content beside it.

    It has no working tree: `checkout.write_commit` and commands that read objects work with it.

    Raises:
        BadInputError: the bundle is damaged.
    """
    bundle = archive / NAME
    with bundle.open("rb") as file:
        file.readline(LINE)
        second = file.readline(LINE)
    kind = "sha256" if second == b"@object-format=sha256\n" else "sha1"
    git(folder, "init", "-q", "--bare", "--template=", f"--object-format={kind}", ".")
    git(folder, *_PLAIN, "bundle", "unbundle", str(bundle.absolute()))
    if (archive / LFS).is_dir():
        (folder / LFS).symlink_to((archive / LFS).absolute())
    return bare_repository(folder)


def contents(repository: Repository, commit: str, prefix: str) -> set[str]:
    """The sha256 of everything that Git LFS pointers in these commits stand for."""
    found = set()
    for each, where in _commits(repository, commit, prefix):
        words = ("grep", "-z", "-l", "-e", "^version https://git-lfs.github.com/spec/v1", each)
        for line in os.fsdecode(git(where.top, *words, fine=(0, 1))).split("\0")[:-1]:
            pointer = lfs.parse(git(where.top, "cat-file", "blob", line))
            if pointer:
                found.add(pointer.sha256)
    return found


def keep_content(archive: Path, sha256: str, source: Path) -> None:
    """Lay a file where `opened` finds it as the content of a Git LFS pointer."""
    place = archive / LFS / "objects" / sha256[:2] / sha256[2:4] / sha256
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)
