"""Dataset -> bytes on disk, verified: fetched once into a cache that all projects share.

<cache>/data/sha256/<sha256>           every file once, whatever datasets it belongs to
<cache>/data/<name>-<digest16>/        a dataset under its own file names (hard links): what a run mounts
<cache>/data/<name>-<digest16>.json    size and time of its files when they were last verified
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import msgspec

from repro import manifest
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import DatasetConfig, Value
from repro.record import DatasetUsed, FileUsed, write_atomic

if TYPE_CHECKING:
    from rich.progress import Progress

Say = Callable[[str], None]
Times = dict[str, tuple[int, int]]  # path -> size, mtime in ns

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0  # a source that sends nothing for so long is given up
SPEAK_SECONDS = 5.0  # between two lines about one download
CHUNK = 1 << 16
ABSENT = "no such file"
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


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
        with _cache_errors(cache), _progress(say, drawn=progress) as (line, bar):
            objects = {path: cache / "data" / "sha256" / sha256 for path, sha256 in config.files.items()}
            wanted = [_Wanted(path=path, sha256=config.files[path], held=held) for path, held in objects.items()]
            missing = [each for each in wanted if not each.here()]
            for number, each in enumerate(missing, 1):
                refusals = _obtain(each, places(name, each.path, config, local), line, bar, silent_seconds)
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
    near = [_join(source, f"{name}/{path}") for source in sources(local)]
    near_too = [_join(source, path) for source in sources(local)]
    here = [place for pair in zip(near, near_too, strict=True) for place in pair]
    return (*here, *(_join(source, path) for source in config.sources))


def _join(source: str, path: str) -> str:
    if source.startswith("file://"):
        source = unquote(urlsplit(source).path)
    if "://" in source:
        return f"{source.rstrip('/')}/{quote(path)}"
    return str(Path(source).expanduser().absolute() / path)


# the cache -------------------------------------------------------------------------------------------------------


class _Wanted(Value, frozen=True, kw_only=True):
    """A file of a dataset, and where the cache holds its bytes."""

    path: str
    sha256: str
    held: Path

    def here(self) -> bool:
        """Whether the cache holds it, every byte of it right."""
        return self.held.is_file() and _sha256(self.held) == self.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return manifest.sha256(file)


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


@contextmanager
def _cache_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentUnfitError(
            f"the data cache {cache} cannot be used: {error.strerror or error}",
            evidence=[str(error)],
            hints=["free some space, or make it writable", "keep the cache elsewhere: REPRO_CACHE=FOLDER"],
        ) from error


# fetching --------------------------------------------------------------------------------------------------------


def _obtain(
    wanted: _Wanted, places: tuple[str, ...], say: Say, bar: Callable[[str], _Bar], silent_seconds: float
) -> list[str]:
    """Put a file into the cache, from the first place that has it; why each refused it, when none has."""
    held, path = wanted.held, wanted.path
    held.parent.mkdir(parents=True, exist_ok=True)
    with _alone(held.with_name(f"{held.name}.lock"), lambda: say(f"{path}: another process fetches it, waiting")):
        if wanted.here():
            return []
        if held.exists():
            say(f"{path}: damaged in the cache, fetching it again")
        part = held.with_name(f"{held.name}.part")
        refusals = []
        try:
            for place in places:
                part.unlink(missing_ok=True)
                part.touch()
                began = time.monotonic()
                refusal = _try(place, part, wanted.sha256, bar(path), silent_seconds)
                if refusal is None:
                    _publish(part, held)
                    seconds = time.monotonic() - began
                    say(f"{path}: {_size(held.stat().st_size)} in {seconds:.1f} s from {_shown(place)}")
                    return []
                refusals.append(f"{_shown(place)}: {refusal}")
                if refusal != ABSENT:  # the usual answer of a local source
                    say(refusals[-1])
        finally:
            part.unlink(missing_ok=True)
    return refusals or ["no source is configured"]


@contextmanager
def _alone(lock: Path, waiting: Callable[[], None]) -> Iterator[None]:
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        waiting()
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _publish(part: Path, held: Path) -> None:
    with part.open("rb") as file:
        os.fsync(file.fileno())  # the name must not outlive the bytes when the machine loses its power
    part.chmod(0o444)
    part.replace(held)


def _try(place: str, part: Path, sha256: str, bar: _Bar, silent_seconds: float) -> str | None:
    """Bring the bytes of `place` to `part`; the reason when it does not have the right ones.

    Raises:
        OSError: it is our disk that fails; another source would not help.
    """
    from requests import RequestException

    try:
        if "://" in place:
            _download(place, part, bar, silent_seconds)
        else:
            shutil.copyfile(place, part)
    except FileNotFoundError:
        return ABSENT
    except RequestException as error:
        return _reason(error, silent_seconds)
    except ValueError as error:  # a header that is no number
        return f"not understood: {error}"
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        return error.strerror or str(error)
    finally:
        bar.close()
    found = _sha256(part)
    if found == sha256:
        return None
    return f"wrong bytes: {part.stat().st_size} of them with sha256 {found[:16]}..., not {sha256[:16]}..."


def _download(url: str, part: Path, bar: _Bar, silent_seconds: float) -> None:
    from pooch import HTTPDownloader

    download = HTTPDownloader(
        progressbar=bar,
        chunk_size=CHUNK,
        timeout=(CONNECT_SECONDS, silent_seconds),
        headers={"Accept-Encoding": "identity"},  # a .gz is the file; requests would unpack an encoding
    )
    download(url, str(part), None)


def _reason(error: Exception, silent_seconds: float) -> str:
    """Why a download failed, in few words: requests' own texts carry addresses of objects."""
    import requests
    import urllib3

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:g} s"
    chain = [error, *_causes(error)]
    if any(isinstance(each, (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError)) for each in chain):
        return f"silent for {silent_seconds:g} s"
    inner = chain[-1]
    if cut := re.search(r"IncompleteRead\((\d+) bytes read(?:, (\d+) more expected)?", str(inner)):
        return f"cut off after {cut[1]} bytes" + (f", {cut[2]} more expected" if cut[2] else "")
    return str(getattr(inner, "strerror", None) or inner) or type(inner).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    while inner := error.__cause__ or error.__context__:
        yield inner
        error = inner


def _unobtainable(name: str, file: _Wanted, refusals: list[str], others: list[_Wanted]) -> EnvironmentUnfitError:
    more = [f"not fetched yet either: {', '.join(each.path for each in others)}"] if others else []
    return EnvironmentUnfitError(
        f"dataset {name}: {file.path} cannot be had",
        evidence=[*refusals, f"wanted: sha256 {file.sha256}", *more],
        hints=[
            f"lay it in a folder as FOLDER/{name}/{file.path} and set REPRO_DATA_SOURCE=FOLDER",
            "a mirror will do as well: REPRO_DATA_SOURCE=https://..., or `sources` of the dataset in conf/data/",
        ],
    )


def _shown(place: str) -> str:
    """A place as text, without the password that its URL may carry."""
    return re.sub(r"(?<=://)[^/@]*@", "", place)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count} bytes"


# progress --------------------------------------------------------------------------------------------------------


class _Bar:
    """pooch's progress protocol: `total` is set, then `update(bytes)`; `reset` and `close` at the end."""

    def __init__(self, path: str, say: Say, drawn: Progress | None) -> None:
        self.path, self.say, self.drawn = path, say, drawn
        self.task: Any = drawn.add_task(path, total=None) if drawn else None
        self.done = self.total = 0
        self.spoken = time.monotonic()

    def update(self, count: int) -> None:
        self.done += count
        if self.drawn:
            self.drawn.update(self.task, completed=self.done, total=self.total or None)
        elif time.monotonic() - self.spoken > SPEAK_SECONDS:
            self.spoken = time.monotonic()
            self.say(f"{self.path}: {_size(self.done)}" + (f" of {_size(self.total)}" if self.total else ""))

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        if self.drawn:
            self.drawn.update(self.task, visible=False)


@contextmanager
def _progress(say: Say, *, drawn: bool) -> Iterator[tuple[Say, Callable[[str], _Bar]]]:
    """Bars on a terminal, with lines printed above them; elsewhere lines through `say`."""
    if not (drawn and sys.stderr.isatty()):
        yield say, lambda path: _Bar(path, say, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def above(line: str) -> None:
            bars.console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)

        yield above, lambda path: _Bar(path, above, bars)
