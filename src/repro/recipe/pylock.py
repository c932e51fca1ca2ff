"""pylock.toml (PEP 751), as `uv` writes it -> what pip takes with --require-hashes, and the files for one target; pure.

The lock is made for one platform and one Python, so each package is one file, and its sha256 is the only one allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from repro.errors import BadInputError
from repro.experiment import Value

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # an image's architecture -> Python's word for it
LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}  # minor version of glibc 2 -> older name, PEP 600
OPTION = re.compile(r"\s*(-i|--index-url|--extra-index-url|-f|--find-links|--trusted-host|--pre)\b")


class Target(Value, frozen=True, kw_only=True):
    """The Python that will install a lock."""

    python: str  # 3.11.2
    platform: str  # linux/amd64
    libc: str  # "glibc 2.36" or "musl 1.2"


class Package(Value, frozen=True, kw_only=True):
    """One package of a lock and the one file of it that the target takes."""

    name: str
    version: str  # "" for a file that does not tell
    file: str  # its name
    url: str | None  # None: a file of the project
    path: str | None  # of a file of the project, relative to the lock
    sha256: str
    size: int | None  # bytes
    wheel: bool  # else it is a source distribution, built where it is installed


def packages(text: str, target: Target, name: str) -> tuple[Package, ...]:
    """What a lock installs on the target, sorted by name.

    Raises:
        BadInputError: no PEP 751, nothing for this target, or a package without a hash that pip could check.
    """
    from packaging.pylock import Pylock, PylockSelectError, PylockUnsupportedVersionError, PylockValidationError

    try:
        lock = Pylock.from_dict(msgspec.toml.decode(text))
        chosen = list(lock.select(environment=_environment(target), tags=list(_tags(target))))
    except (msgspec.MsgspecError, PylockValidationError, PylockUnsupportedVersionError, PylockSelectError) as error:
        raise BadInputError(
            f"{name} cannot be used", evidence=[str(error)], hints=["`repro lock` writes it anew"]
        ) from error
    return tuple(sorted((_package(package, file) for package, file in chosen), key=lambda each: each.name))


def _package(package: Any, file: Any) -> Package:
    from packaging.pylock import PackageArchive, PackageWheel

    where = getattr(file, "path", None) or getattr(file, "url", None) or ""
    if not hasattr(file, "hashes"):
        raise _without_hash(package, where)
    sha256 = file.hashes.get("sha256")
    if sha256 is None:
        raise _without_hash(package, where)
    named = getattr(file, "name", None) or unquote(PurePosixPath(urlsplit(where).path).name)
    return Package(
        name=package.name,
        version=str(package.version or ""),
        file=named,
        url=file.url,
        path=file.path,
        sha256=sha256,
        size=file.size,
        wheel=isinstance(file, PackageWheel) or (isinstance(file, PackageArchive) and named.endswith(".whl")),
    )


def _without_hash(package: Any, where: str) -> BadInputError:
    return BadInputError(
        f"{package.name} cannot be locked: no hash can be checked for it" + (f" ({where})" if where else ""),
        hints=[
            "a folder of the project (`-e ./x`) goes into a step of its own, `RUN pip install --no-deps ./x`",
            "from a repository: name an archive of the commit instead of `git+https://...`",
        ],
    )


def requirements(found: tuple[Package, ...], written: str, name: str, *, wheels_given: bool = False) -> str:
    """What takes the place of the requirements: one line a package, with the only hash that pip may accept.

    Args:
        found: the packages of the lock.
        written: the requirements as they are, with all that they include: where to look is said there, and how the
            files of the project are called.
        name: of the lock, for who reads the text.
        wheels_given: pip finds every wheel in a folder, so that none has to be fetched from its URL.
    """
    lines = [f"# {name}, made by `repro lock`: pip accepts these files alone"]
    lines += dict.fromkeys(line.strip() for line in written.splitlines() if OPTION.match(line))
    for package in found:
        wanted = f"{package.name}=={package.version}"
        if package.path is not None:
            wanted = _as_written(package, written)
        elif not package.version or (_is_direct(package, written) and not (wheels_given and package.wheel)):
            wanted = f"{package.name} @ {package.url}"
        lines.append(f"{wanted} --hash=sha256:{package.sha256}")
    return "\n".join(lines) + "\n"


def _as_written(package: Package, written: str) -> str:
    found = re.search(rf"(?m)^\s*((?:\S*/)?{re.escape(package.file)})(?![\w.-])", written)
    return found[1] if found else f"./{package.path}"


def _is_direct(package: Package, written: str) -> bool:
    """Whether the requirements name the file itself, and no index has to have it."""
    return package.url is not None and package.url.partition("#")[0] in written


def _environment(target: Target) -> Any:
    short = ".".join(target.python.split(".")[:2])
    return {
        "implementation_name": "cpython",
        "implementation_version": target.python,
        "os_name": "posix",
        "platform_machine": _machine(target),
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": target.python,
        "python_version": short,
        "sys_platform": "linux",
    }


def _machine(target: Target) -> str:
    architecture = target.platform.split("/")[1]
    return MACHINES.get(architecture, architecture)


def _tags(target: Target) -> Iterator[Any]:
    """The wheel tags that the target's pip takes, best first."""
    from packaging.tags import compatible_tags, cpython_tags

    version = tuple(int(part) for part in target.python.split(".")[:2])
    interpreter = "cp" + "".join(str(part) for part in version)
    platforms = list(_platforms(target))
    yield from cpython_tags(version, abis=[interpreter], platforms=platforms)
    yield from compatible_tags(version, interpreter, platforms)


def _platforms(target: Target) -> Iterator[str]:
    machine = _machine(target)
    kind, _, number = target.libc.partition(" ")
    newest = int(number.split(".")[1])
    for minor in range(newest, -1, -1):
        if kind == "musl":
            yield f"musllinux_1_{minor}_{machine}"
        elif minor >= 5:
            yield f"manylinux_2_{minor}_{machine}"
            if minor in LEGACY:
                yield f"{LEGACY[minor]}_{machine}"
    yield f"linux_{machine}"


def uv_platform(target: Target) -> str:
    """The target as `uv --python-platform` calls it."""
    machine = _machine(target)
    kind, _, number = target.libc.partition(" ")
    if kind == "musl":
        return f"{machine}-unknown-linux-musl"
    known = (17, *range(28, 29), *range(31, 41))
    minor = max((each for each in known if each <= int(number.split(".")[1])), default=17)
    return f"{machine}-manylinux_2_{minor}"
