"""The files that an image is made from: the Dockerfile, the requirements with all that they name, declared others.

A file enters with its path, its bytes and its executable bit; nothing else of it counts. Text that people edit on
several systems (Dockerfile, requirements) has its line ends and its byte order mark taken away.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import re
import stat
import tarfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from repro.errors import BadInputError
from repro.experiment import Value

NEVER = frozenset({".git", "__pycache__", ".repro", ".venv"})
WRITTEN = (  # by runs and by us, and for one machine: in a context only if declared by name
    *("repro.lock", "pylock.*.toml"),
    *("runs", "mlartifacts", "mlruns", "mlflow.db*", "*.crate.zip"),
    "conf/local",
)
COMMENT = re.compile(r"(^|\s)#.*$")  # pip's own
INCLUDES = ("-r", "--requirement", "-c", "--constraint")
LOCALS = ("-e", "--editable", "-f", "--find-links")
MTIME = 946_684_800  # 2000-01-01 UTC: of every file in a context, so that equal contexts are equal bytes
FROM_HOST = "from-host"  # folder of a context for what a build may use and an image must not keep: no part of the hash
ARCHIVES = (".whl", ".zip", ".tar.gz", ".tar.bz2", ".tgz")


class ContextFile(Value, frozen=True, kw_only=True):
    """A file of a build context. `path` is relative to the project, with forward slashes, in Unicode NFC."""

    path: str
    content: bytes = b""
    executable: bool = False
    link: str | None = None  # target of a symlink
    text: bool = False  # the Dockerfile or requirements: line ends are normal, and people may want to read it later

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
    first = _text(root, dockerfile, "`image.dockerfile`")
    files = {first.path: first}
    if requirements is not None:
        files |= {file.path: file for file in _requirements(root, requirements, declared)}
    found: dict[str, str] = {}
    ignored = _ignored(root, dockerfile)
    for name in declared:
        for path in _declared(root, name):
            relative = path.relative_to(root).as_posix()
            if _below(normal(relative), FROM_HOST):
                raise BadInputError(
                    f"{relative}: the name {FROM_HOST}/ is taken, by what `repro` itself gives to a build",
                    hints=["rename the folder, or list it in .dockerignore"],
                )
            if ignored(relative):
                continue
            file = _file(root, path, relative)
            if found.setdefault(file.path, relative) != relative:
                raise BadInputError(
                    f"{file.path} is there twice, under names that differ only in how Unicode spells their letters",
                    hints=["rename one of them"],
                )
            files.setdefault(file.path, file)  # text that was normalised stays so
    return tuple(sorted(files.values(), key=lambda file: file.path.encode()))


def holds(files: Sequence[ContextFile], declared: Sequence[str], source: str) -> bool:
    """Whether a COPY's source, with wildcards per folder level, is in the context: a file, or a folder as a whole."""
    folders = [normal(name) for name in declared]
    if source == ".":
        return "." in folders  # it means the whole project
    wanted = source.split("/")
    for file in files:
        parts = file.path.split("/")
        if len(parts) < len(wanted) or not all(map(fnmatch.fnmatchcase, parts, wanted)):
            continue
        matched = "/".join(parts[: len(wanted)])
        if matched == file.path or any(_below(matched, folder) for folder in folders):
            return True  # of another folder only some files are here: a COPY of it would take less than it says
    return False


def of_host(source: str) -> bool:
    """Whether a COPY's source names the folder of what the host gives to a build, or something in it."""
    first = source.split("/", maxsplit=1)[0]
    return first != "*" and fnmatch.fnmatchcase(FROM_HOST, first)


def write(out: IO[bytes], files: Sequence[ContextFile], from_host: Mapping[str, Path | bytes]) -> None:
    """The tar of a build context: the hashed bytes, with one mode, owner and time for equal files.

    Args:
        out: gets the tar as it is made; it need not be seekable.
        files: what the image is made from.
        from_host: what goes into the folder FROM_HOST, by its path there; nothing makes no folder.
    """
    held = {f"{FROM_HOST}/{name}": content for name, content in from_host.items()}
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            if file.link is not None:
                entry = _entry(file.path, 0, 0o777)
                entry.type, entry.linkname = tarfile.SYMTYPE, file.link
                archive.addfile(entry)
            else:
                mode = 0o755 if file.executable else 0o644
                archive.addfile(_entry(file.path, len(file.content), mode), io.BytesIO(file.content))
        for name, content in sorted(held.items()):
            if isinstance(content, bytes):
                archive.addfile(_entry(name, len(content), 0o644), io.BytesIO(content))
            else:
                with content.open("rb") as opened:
                    archive.addfile(_entry(name, content.stat().st_size, 0o644), opened)


def _entry(name: str, size: int, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, mode, MTIME
    return entry


def _below(path: str, folder: str) -> bool:
    return folder in (".", path) or path.startswith(folder + "/")


def _text(root: Path, name: str, named_by: str) -> ContextFile:
    path = _inside(root, name, named_by)
    if not _leads_inside(root, path):
        raise BadInputError(f"{name} is a link out of the project", hints=["put the file itself there"])
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(
            f"{name} cannot be read", evidence=[str(error)], hints=[f"make the file, or correct {named_by}"]
        ) from error
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise _no_text(name, error) from error
    return ContextFile(path=normal(name), content=content, text=True)


def _no_text(name: str, error: UnicodeDecodeError) -> BadInputError:
    return BadInputError(f"{name} is no UTF-8 text", evidence=[str(error)], hints=["save it as UTF-8"])


def _requirements(root: Path, first: str, declared: Sequence[str]) -> list[ContextFile]:
    """The file, and those that its -r and -c lines name, each once; names are relative to the file that has them."""
    found: dict[str, ContextFile] = {}
    todo = [(normal(first), "`image.requirements`")]
    while todo:
        name, named_by = todo.pop()
        if name in found:
            continue
        found[name] = _text(root, name, named_by)
        folder = PurePosixPath(name).parent
        for number, line in logical_lines(found[name].content.decode()):
            option, value = _option(line)
            if option in INCLUDES and "://" not in value:
                todo.append((normal(folder / value), f"{name}:{number}"))
            elif _is_local(option, value):
                _require_declared(root, declared, folder, value, f"{name}:{number}")
    return list(found.values())


def requirement_lines(text: str) -> list[str]:
    """The lines of a requirements file that name a package themselves, without comments."""
    found = []
    for _, line in logical_lines(text):
        option, value = _option(line)
        if option in ("-e", "--editable") or (value and not option and not value.startswith("-")):
            found.append(line)
    return found


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number of the first line, line without its comment), with lines joined that end in a backslash."""
    begun, first = "", 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        first = first if begun else number
        begun += line
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        yield first, COMMENT.sub("", begun).strip()
        begun = ""


def _option(line: str) -> tuple[str, str]:
    """("-r", "more.txt") of an option line in any of its spellings; ("", requirement) of any other."""
    for option in (*INCLUDES, *LOCALS):
        rest = line.removeprefix(option)
        if rest != line and (len(option) == 2 or rest[:1] in ("=", " ", "\t")):
            return option, rest.lstrip("= \t").strip("\"'")
    return "", re.split(r"[\s;\[]", line, maxsplit=1)[0]


def _is_local(option: str, value: str) -> bool:
    """Whether a line installs from a file or folder beside it; absolute paths are the image's own."""
    if "://" in value or value.startswith(("/", "-", "git+")) or not value:
        return False
    if option in LOCALS:
        return True
    return not option and (value.startswith(".") or "/" in value or value.endswith(ARCHIVES))


def _require_declared(root: Path, declared: Sequence[str], folder: PurePosixPath, value: str, where: str) -> None:
    """pip takes such a path from the folder that it runs in, or from that of the file: either may be meant."""
    value = value.partition("[")[0]
    meant = [normal(folder / value), normal(value)]
    folders = [normal(each) for each in declared]
    if not any(_below(path, each) for path in meant for each in folders):
        path = next((each for each in meant if (root / each).exists()), meant[0])
        raise BadInputError(
            f"{where} installs {value}, which is not declared",
            hints=[f"declare it: `image.context: [{', '.join([*declared, path])}]`, and COPY it"],
        )


def _declared(root: Path, name: str) -> Iterator[Path]:
    top = _inside(root, name, "`image.context`")
    if not os.path.lexists(top):
        raise BadInputError(
            f"image.context names {name}, which does not exist",
            hints=[f"make it, or correct the list; it is looked for below {root}"],
        )
    yield from _walk(top, lambda path: path.name in NEVER or _written(path.relative_to(root).as_posix(), name))


def _walk(top: Path, left_out: Callable[[Path], bool]) -> Iterator[Path]:
    if top.is_symlink() or not top.is_dir():
        yield top
        return
    try:
        entries = sorted(top.iterdir())
    except OSError as error:
        raise BadInputError(f"{top} cannot be read", evidence=[str(error)]) from error
    for entry in entries:
        if not left_out(entry):
            yield from _walk(entry, left_out)


def _written(relative: str, declared: str) -> bool:
    """Whether it is what runs write, and not meant by its own name: `image.context: [.]` would never be the same."""
    for pattern in WRITTEN:
        depth = pattern.count("/") + 1
        top = "/".join(relative.split("/")[:depth])
        if fnmatch.fnmatchcase(top, pattern):
            return not _below(normal(declared), top)
    return False


def _ignored(root: Path, dockerfile: str) -> Callable[[str], bool]:
    """What .dockerignore (or the Dockerfile's own) says, by the builder's rules; these files themselves stay out.

    A builder that found one in the context would apply it again, to the Dockerfile and the requirements too.
    """
    from e2b_dockerfile_utils import PatternMatcher

    names = (f"{normal(dockerfile)}.dockerignore", ".dockerignore")
    for name in names:
        try:
            lines = (root / name).read_text(encoding="utf-8-sig").splitlines()
        except OSError:
            continue
        except UnicodeDecodeError as error:
            raise _no_text(name, error) from error
        patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        try:
            matcher = PatternMatcher(patterns)
        except ValueError as error:
            raise BadInputError(f"{name} cannot be read", evidence=[str(error)]) from error
        return lambda path: path in names or bool(matcher.matches(path))
    return names.__contains__


def _file(root: Path, path: Path, relative: str) -> ContextFile:
    try:
        relative.encode()
    except UnicodeEncodeError as error:
        raise BadInputError(f"{relative!a} is a name that is not UTF-8", hints=["rename it"]) from error
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode):
        target = os.readlink(path)  # noqa: PTH115 - the text of the link, not a path
        if Path(target).is_absolute() or not _leads_inside(root, path.parent / target):
            raise BadInputError(
                f"{relative} is a link out of the project",
                evidence=[f"-> {target}"],
                hints=["put the file itself there"],
            )
        return ContextFile(path=normal(relative), link=unicodedata.normalize("NFC", target))
    if not stat.S_ISREG(state.st_mode):
        raise BadInputError(f"{relative} is neither a file, a folder nor a link", hints=["list it in .dockerignore"])
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{relative} cannot be read", evidence=[str(error)]) from error
    return ContextFile(path=normal(relative), content=content, executable=bool(state.st_mode & stat.S_IXUSR))


def _inside(root: Path, name: str, named_by: str) -> Path:
    path = Path(os.path.normpath(root / name))
    folder = path if path == root else path.parent  # links on the way may lead out, too
    if Path(name).is_absolute() or not path.is_relative_to(root) or not _leads_inside(root, folder):
        raise BadInputError(
            f"{named_by} names {name}, which is outside the project", hints=["copy it into the project"]
        )
    return path


def _leads_inside(root: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def normal(name: str | PurePosixPath) -> str:
    """The one spelling of a path below the project: no `./`, no `//`, Unicode NFC."""
    return unicodedata.normalize("NFC", PurePosixPath(os.path.normpath(name)).as_posix())
