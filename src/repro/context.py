"""The files that an image is made from: the Dockerfile, the requirements with all that they name, declared others.

A file enters with its path, its bytes and its executable bit; nothing else of it counts. Text that people edit on
several systems (Dockerfile, requirements) has its line ends and its byte order mark taken away.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from repro.errors import BadInputError
from repro.experiment import Value

NEVER = frozenset({".git", "__pycache__", ".repro", ".venv"})
INCLUDE = re.compile(r"^(?:-r|--requirement|-c|--constraint)(?:\s+|=)(\S+)")
LOCAL = re.compile(r"^(?:(?:-e|--editable)(?:\s+|=))?(\.{1,2}(?:/[^\s;\[]*)?)(?:[\s;\[]|$)")


class ContextFile(Value, frozen=True, kw_only=True):
    """A file of a build context. `path` is relative to the project, with forward slashes, in Unicode NFC."""

    path: str
    content: bytes = b""
    executable: bool = False
    link: str | None = None  # target of a symlink

    def identity(self) -> dict[str, Any]:
        """What of it is hashed."""
        if self.link is not None:
            return {"link": self.link}
        return {"executable": self.executable, "sha256": hashlib.sha256(self.content).hexdigest()}


def read(root: Path, dockerfile: str, requirements: str | None, declared: Sequence[str]) -> tuple[ContextFile, ...]:
    """The files of a context, sorted by path.

    Raises:
        BadInputError: one is missing, lies outside the project, or is of a kind that no context can hold.
    """
    files = {dockerfile: _text(root, dockerfile, "image.dockerfile")}
    if requirements is not None:
        files |= {file.path: file for file in _requirements(root, requirements, declared)}
    for name in declared:
        for file in _declared(root, name):
            files.setdefault(file.path, file)  # text that was normalised stays so
    return tuple(sorted(files.values(), key=lambda file: file.path.encode()))


def holds(files: Sequence[ContextFile], declared: Sequence[str], source: str) -> bool:
    """Whether a COPY's source, with wildcards per folder level, names anything in the context."""
    if source == ".":
        return any(PurePosixPath(name) == PurePosixPath() for name in declared)  # it means the whole project
    wanted = source.split("/")
    for file in files:
        parts = file.path.split("/")[: len(wanted)]
        if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
            return True
    return False


def _text(root: Path, name: str, key: str) -> ContextFile:
    path = _inside(root, name, key)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(
            f"{name} cannot be read", evidence=[str(error)], hints=[f"make the file, or correct `{key}`"]
        ) from error
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise BadInputError(f"{name} is no UTF-8 text", evidence=[str(error)]) from error
    return ContextFile(path=_normal(name), content=content)


def _requirements(root: Path, first: str, declared: Sequence[str]) -> list[ContextFile]:
    """The file, and those that its -r and -c lines name, each once; names are relative to the file that has them."""
    found: dict[str, ContextFile] = {}
    todo = [_normal(first)]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found[name] = _text(root, name, "image.requirements")
        folder = PurePosixPath(name).parent
        for number, line in enumerate(found[name].content.decode().splitlines(), 1):
            if include := INCLUDE.match(line.strip()):
                if "://" not in include[1]:
                    todo.append(_normal(os.path.normpath(folder / include[1])))
            elif local := LOCAL.match(line.strip()):
                path = _normal(os.path.normpath(folder / local[1]))
                if not any(path == _normal(each) or path.startswith(_normal(each) + "/") for each in declared):
                    raise BadInputError(
                        f"{name}:{number} installs {local[1]}, which is not declared",
                        evidence=[line.strip()],
                        hints=[f"declare it: `image.context: [{', '.join([*declared, path])}]`, and COPY it"],
                    )
    return list(found.values())


def _declared(root: Path, name: str) -> Iterator[ContextFile]:
    top = _inside(root, name, "image.context")
    if not os.path.lexists(top):
        raise BadInputError(
            f"image.context names {name}, which does not exist",
            hints=[f"make it, or correct the list; it is looked for below {root}"],
        )
    ignored = _ignored(root)
    for path in _walk(top):
        relative = path.relative_to(root).as_posix()
        if not ignored(relative):
            yield _file(root, path, relative)


def _walk(top: Path) -> Iterator[Path]:
    if top.is_symlink() or not top.is_dir():
        yield top
        return
    for entry in sorted(top.iterdir()):
        if entry.name not in NEVER:
            yield from _walk(entry)


def _ignored(root: Path) -> Any:
    """What .dockerignore says, by the builder's own rules."""
    from e2b_dockerfile_utils import PatternMatcher

    try:
        lines = (root / ".dockerignore").read_text(encoding="utf-8-sig").splitlines()
    except OSError:
        return lambda _path: False
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    try:
        return PatternMatcher(patterns).matches
    except ValueError as error:
        raise BadInputError(".dockerignore cannot be read", evidence=[str(error)]) from error


def _file(root: Path, path: Path, relative: str) -> ContextFile:
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode):
        target = os.readlink(path)  # noqa: PTH115 - the text of the link, not a path
        if not (path.parent / target).resolve().is_relative_to(root.resolve()):
            raise BadInputError(
                f"{relative} is a link out of the project",
                evidence=[f"-> {target}"],
                hints=["put the file itself there"],
            )
        return ContextFile(path=_normal(relative), link=unicodedata.normalize("NFC", target))
    if not stat.S_ISREG(state.st_mode):
        raise BadInputError(f"{relative} is neither a file, a folder nor a link", hints=["list it in .dockerignore"])
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{relative} cannot be read", evidence=[str(error)]) from error
    return ContextFile(path=_normal(relative), content=content, executable=bool(state.st_mode & stat.S_IXUSR))


def _inside(root: Path, name: str, key: str) -> Path:
    path = root / name
    if Path(name).is_absolute() or not Path(os.path.normpath(path)).is_relative_to(root):
        raise BadInputError(f"{key} names {name}, which is outside the project", hints=["copy it into the project"])
    return path


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", PurePosixPath(os.path.normpath(name)).as_posix())
