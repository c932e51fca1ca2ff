"""One file -> the cache, verified by its sha256: from the first place that has it, once, whoever asks for it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro import manifest
from repro.errors import EnvironmentUnfitError
from repro.experiment import Value

if TYPE_CHECKING:
    from rich.progress import Progress

Say = Callable[[str], None]

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0  # a source that sends nothing for so long is given up
SPEAK_SECONDS = 5.0  # between two lines about one download
CHUNK = 1 << 16
ABSENT = "no such file"
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class Wanted(Value, frozen=True, kw_only=True):
    """A file, and where the cache holds its bytes."""

    path: str
    sha256: str
    held: Path

    def here(self) -> bool:
        """Whether the cache holds it, every byte of it right."""
        return self.held.is_file() and _sha256(self.held) == self.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return manifest.sha256(file)


@contextmanager
def cache_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentUnfitError(
            f"the data cache {cache} cannot be used: {error.strerror or error}",
            evidence=[str(error)],
            hints=["free some space, or make it writable", "keep the cache elsewhere: REPRO_CACHE=FOLDER"],
        ) from error


def obtain(
    wanted: Wanted, places: tuple[str, ...], say: Say, bar: Callable[[str], _Bar], silent_seconds: float
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
                    say(f"{path}: {_size(held.stat().st_size)} in {seconds:.1f} s from {public(place)}")
                    return []
                refusals.append(f"{public(place)}: {refusal}")
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
        verify=_authorities(),
    )
    download(url, str(part), None)


def _authorities() -> str | bool:
    """What this machine trusts: requests has a list of its own, which a proxy that inspects TLS is not in."""
    import ssl

    named = [os.environ.get(name) for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "PIP_CERT")]
    files = [*named, ssl.get_default_verify_paths().cafile]
    return next((file for file in files if file and Path(file).exists()), True)


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


def public(place: str) -> str:
    """A place as text, without the password that its URL may carry."""
    return re.sub(r"(?<=://)[^/@]*@", "", place)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count} bytes"


# progress --------------------------------------------------------------------------------------------------------


class _Bar:
    """pooch's progress protocol: `total` is set, then `update(bytes)`; `reset` and `close` at the end."""

    def __init__(self, path: str, say: Say, drawn: Progress | None, stopped: threading.Event | None) -> None:
        self.path, self.say, self.drawn, self.stopped = path, say, drawn, stopped
        self.task: Any = drawn.add_task(path, total=None) if drawn else None
        self.done = self.total = 0
        self.spoken = time.monotonic()

    def update(self, count: int) -> None:
        if self.stopped is not None and self.stopped.is_set():
            raise InterruptedError(errno.EINTR, "not wanted any more")
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
def progress_bars(
    say: Say, *, drawn: bool, stopped: threading.Event | None = None
) -> Iterator[tuple[Say, Callable[[str], _Bar]]]:
    """Bars on a terminal, with lines printed above them; elsewhere lines through `say`.

    Downloads that they watch end soon after `stopped` is set.
    """
    if not (drawn and sys.stderr.isatty()):
        yield say, lambda path: _Bar(path, say, None, stopped)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def above(line: str) -> None:
            bars.console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)

        yield above, lambda path: _Bar(path, above, bars, stopped)
