"""Dataset -> bytes on disk, verified: fetched once into a cache that all projects share.

<cache>/data/sha256/<sha256>           every file once, whatever datasets it belongs to
<cache>/data/<name>-<digest16>/        a dataset under its own file names (hard links): what a run mounts
<cache>/data/<name>-<digest16>.json    size and time of its files when they were last verified
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

import msgspec

from repro.download import SILENT_SECONDS, Say, Wanted, cache_errors, obtain, progress_bars
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import DatasetConfig
from repro.record import DatasetUsed, FileUsed, write_atomic

Times = dict[str, tuple[int, int]]  # path -> size, mtime in ns


def fetch(
    name: str,
    config: DatasetConfig,
    *,
    cache: Path,
    local: str | None,
    say: Say,
    progress: bool,
    silent_seconds: float = SILENT_SECONDS,
) -> DatasetUsed:
    """The dataset as a folder with exactly its files, each with the sha256 that the configuration pins.

    What the cache holds is not fetched again: a look at sizes and times is enough, and where they differ from those
    of the last verification everything is verified anew. `local` names folders or URLs that are asked first.

    Raises:
        BadInputError: a file's path would leave the dataset's folder.
        EnvironmentUnfitError: no source has a file as it should be, or the cache cannot be written.
    """
    _check(name, config)
    if not cached(name, config, cache=cache):
        with cache_errors(cache), progress_bars(say, drawn=progress) as (line, bar):
            objects = {path: cache / "data" / "sha256" / sha256 for path, sha256 in config.files.items()}
            wanted = [Wanted(path=path, sha256=config.files[path], held=held) for path, held in objects.items()]
            missing = [each for each in wanted if not each.here()]
            for number, each in enumerate(missing, 1):
                refusals = obtain(each, places(name, each.path, config, local), line, bar, silent_seconds)
                if refusals:
                    raise _unobtainable(name, each, refusals, missing[number:])
            folder = _folder(name, config, cache)
            _assemble(folder, objects, line)
            with suppress(OSError):  # a cache that others maintain: then each run verifies everything
                _remember(folder)
    return expected(name, config, cache=cache)


def cached(name: str, config: DatasetConfig, *, cache: Path) -> bool:
    """Whether the cache holds the dataset, judged by sizes and times alone."""
    folder = _folder(name, config, cache)
    try:
        remembered = json.loads(_marker(folder).read_bytes())
        found = {path: list(facts) for path, facts in _times(folder).items()}
    except (OSError, ValueError):
        return False
    return bool(remembered == found and found.keys() == config.files.keys())


def expected(name: str, config: DatasetConfig, *, cache: Path) -> DatasetUsed:
    """The dataset as `fetch` would have it, without fetching: sizes of what is not here are 0.

    Raises:
        BadInputError: as `fetch`.
    """
    _check(name, config)
    folder = _folder(name, config, cache)
    sizes = _times(folder)
    files = tuple(
        FileUsed(path=path, size=sizes.get(path, (0, 0))[0], sha256=sha256)
        for path, sha256 in sorted(config.files.items())
    )
    return DatasetUsed(name=name, digest=digest_of(config), files=files, folder=str(folder))


def rooted(datasets: Mapping[str, DatasetConfig], root: Path) -> dict[str, DatasetConfig]:
    """With folders among their sources taken from the project's root, wherever the command was typed."""

    def places(config: DatasetConfig) -> tuple[str, ...]:
        return tuple(each if "://" in each else str(root / Path(each).expanduser()) for each in config.sources)

    return {name: msgspec.structs.replace(config, sources=places(config)) for name, config in datasets.items()}


def digest_of(config: DatasetConfig) -> str:
    """The sha256 of what `sha256sum` would print for the files; where they come from does not count."""
    lines = sorted(f"{sha256}  {path}\n" for path, sha256 in config.files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sources(local: str | None) -> tuple[str, ...]:
    """The folders and URLs in REPRO_DATA_SOURCE: separated by white space, folders also as in PATH."""
    if not local or not local.strip():
        return ()
    if Path(local).expanduser().is_dir():  # a single folder may have a space in its name
        return (local,)
    words = [[word] if "://" in word else word.split(os.pathsep) for word in local.split()]
    return tuple(each for word in words for each in word if each)


# what is asked for -----------------------------------------------------------------------------------------------


def _check(name: str, config: DatasetConfig) -> None:
    if not config.files:
        raise BadInputError(f"data.{name}: no files", hints=["list them: `files: {NAME: SHA256}`"])
    for path in (name, *config.files):
        if not path or path != PurePosixPath(path).as_posix() or path.startswith("/") or "\\" in path or "\0" in path:
            raise BadInputError(f"data.{name}: {path!r} is not a relative path in its plain form, like train/x.gz")
        if set(path.split("/")) & {"..", "."}:
            raise BadInputError(f"data.{name}: {path!r} leads out of the dataset's folder")
    for path in config.files:
        above = {parent.as_posix() for parent in PurePosixPath(path).parents} & config.files.keys()
        if above:
            raise BadInputError(f"data.{name}: {above.pop()!r} is a file and also the folder of {path!r}")


def places(name: str, path: str, config: DatasetConfig, local: str | None) -> tuple[str, ...]:
    """Where a file may be, in the order of asking."""
    near = [join(source, f"{name}/{path}") for source in sources(local)]
    near_too = [join(source, path) for source in sources(local)]
    here = [place for pair in zip(near, near_too, strict=True) for place in pair]
    return (*here, *(join(source, path) for source in config.sources))


def join(source: str, path: str) -> str:
    """Where a file of a source is: an address or a path."""
    if source.startswith("file://"):
        source = unquote(urlsplit(source).path)
    if "://" in source:
        return f"{source.rstrip('/')}/{quote(path)}"
    return str(Path(source).expanduser().absolute() / path)


# the cache -------------------------------------------------------------------------------------------------------


def _folder(name: str, config: DatasetConfig, cache: Path) -> Path:
    return cache / "data" / f"{name}-{digest_of(config)[:16]}"


def _marker(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _times(folder: Path) -> Times:
    """Size and time of everything in the folder that is not a folder."""
    found = {}
    for path in folder.rglob("*"):
        if not path.is_dir() or path.is_symlink():
            facts = path.lstat()
            found[path.relative_to(folder).as_posix()] = (facts.st_size, facts.st_mtime_ns)
    return found


def _remember(folder: Path) -> None:
    write_atomic(_marker(folder), json.dumps(_times(folder), sort_keys=True).encode())


def _assemble(folder: Path, objects: Mapping[str, Path], say: Say) -> None:
    """Make the folder hold exactly the objects under their names. It may be mounted in a run: files are replaced in it.

    Two processes may do this at once; they do the same.
    """
    for path in _times(folder).keys() - objects.keys() if folder.is_dir() else ():
        say(f"{folder / path} does not belong to the dataset: removed")
        (folder / path).unlink(missing_ok=True)
    for path, held in objects.items():
        target = folder / path
        if not (target.is_file() and not target.is_symlink() and target.samefile(held)):
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(held, target)


def _link(held: Path, target: Path) -> None:
    beside = held.with_name(f"{held.name}.{secrets.token_hex(4)}")  # not in the folder: another process may tidy it
    try:
        try:
            beside.hardlink_to(held)
        except OSError:  # a file system without hard links
            shutil.copyfile(held, beside)
            shutil.copystat(held, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)  # it is still there when it was the same file already


def _unobtainable(name: str, file: Wanted, refusals: list[str], others: list[Wanted]) -> EnvironmentUnfitError:
    more = [f"not fetched yet either: {', '.join(each.path for each in others)}"] if others else []
    return EnvironmentUnfitError(
        f"dataset {name}: {file.path} cannot be had",
        evidence=[*refusals, f"wanted: sha256 {file.sha256}", *more],
        hints=[
            f"lay it in a folder as FOLDER/{name}/{file.path} and set REPRO_DATA_SOURCE=FOLDER",
            "a mirror will do as well: REPRO_DATA_SOURCE=https://..., or `sources` of the dataset in conf/data/",
        ],
    )
