"""Datasets from real servers that misbehave for real, from folders, and by several processes at once."""

from __future__ import annotations

import gzip
import hashlib
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from repro import data
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import DatasetConfig
from repro.record import DatasetUsed

Fetch = Callable[..., DatasetUsed]
Page = Callable[[BaseHTTPRequestHandler], None]

BYTES = bytes(range(256)) * 1000
LABELS = b"0 1 2\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def toy(*sources: str, **files: bytes) -> DatasetConfig:
    named = files or {"images": BYTES, "labels": LABELS}
    return DatasetConfig(files={name: sha256(content) for name, content in named.items()}, sources=sources)


class Server:
    """An HTTP server on loopback: `pages` maps a path to bytes, or to a function that answers in its own way."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | Page] = {}
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                page = outer.pages.get(self.path)
                if page is None:
                    self.send_error(404)
                elif callable(page):
                    page(self)
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(page)))
                    self.end_headers()
                    self.wfile.write(page)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "a cache"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def fetch(cache: Path, said: list[str]) -> Fetch:
    def call(config: DatasetConfig, local: str | None = None, name: str = "toy", **more: Any) -> DatasetUsed:
        arguments = {"cache": cache, "local": local, "say": said.append, "progress": False, **more}
        return data.fetch(name, config, **arguments)

    return call


def write(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (files or {"images": BYTES, "labels": LABELS}).items():
        (folder / name).write_bytes(content)
    return folder


def contents(folder: str | Path) -> dict[str, bytes]:
    root = Path(folder)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


# what comes out --------------------------------------------------------------------------------------------------


def test_a_dataset_is_a_folder_with_exactly_its_files(fetch: Fetch, server: Server, cache: Path) -> None:
    server.pages = {"/d/images": BYTES, "/d/labels": LABELS}
    used = fetch(toy(f"{server.url}/d/"))
    assert contents(used.folder) == {"images": BYTES, "labels": LABELS}
    assert Path(used.folder) == cache / "data" / f"toy-{used.digest[:16]}"
    assert [(file.path, file.size, file.sha256) for file in used.files] == [
        ("images", len(BYTES), sha256(BYTES)),
        ("labels", len(LABELS), sha256(LABELS)),
    ]
    assert {path.stat().st_mode & 0o222 for path in Path(used.folder).iterdir()} == {0}


def test_the_digest_is_that_of_a_sha256sum_listing(tmp_path: Path) -> None:
    folder = write(tmp_path / "d")
    listing = subprocess.run(["sha256sum", "images", "labels"], cwd=folder, capture_output=True, check=True).stdout
    lines = b"".join(sorted(listing.splitlines(keepends=True)))
    assert data.digest_of(toy()) == sha256(lines)


def test_the_digest_does_not_depend_on_the_sources() -> None:
    assert data.digest_of(toy()) == data.digest_of(toy("https://mirror.example/"))


def test_each_file_is_told_with_its_size_and_source(fetch: Fetch, tmp_path: Path, said: list[str]) -> None:
    folder = write(tmp_path / "near")
    fetch(toy(), str(folder))
    assert said[0].startswith("images: 0.3 MB in ")
    assert said[0].endswith(str(folder / "images"))
    assert said[-1].startswith("labels: 6 bytes in ")


def test_files_may_lie_in_folders(fetch: Fetch, tmp_path: Path) -> None:
    write(tmp_path / "near" / "train" / "a b", x=b"1")
    config = DatasetConfig(files={"train/a b/x": sha256(b"1")}, sources=(str(tmp_path / "near"),))
    assert contents(fetch(config).folder) == {"train/a b/x": b"1"}


def test_a_packed_file_stays_packed_and_its_name_is_quoted(fetch: Fetch, server: Server) -> None:
    packed = gzip.compress(b"digits", mtime=0)
    server.pages = {"/a%20b/x%23.gz": packed}
    config = DatasetConfig(files={"a b/x#.gz": sha256(packed)}, sources=(server.url,))
    assert contents(fetch(config).folder) == {"a b/x#.gz": packed}


# where it comes from ---------------------------------------------------------------------------------------------


def test_local_sources_are_asked_first_and_by_the_name_of_the_dataset_first(
    fetch: Fetch, tmp_path: Path, server: Server, said: list[str]
) -> None:
    near = write(tmp_path / "near", images=b"another set's", labels=LABELS)
    write(near / "toy", images=BYTES)
    fetch(toy(server.url), str(near))
    assert server.asked == []
    assert [line.rpartition(" from ")[2] for line in said if " from " in line] == [
        str(near / "toy" / "images"),
        str(near / "labels"),
    ]


def test_a_local_source_may_be_a_mirror(fetch: Fetch, server: Server) -> None:
    server.pages = {"/toy/images": BYTES, "/labels": LABELS}
    fetch(toy(), server.url)
    assert server.asked == ["/toy/images", "/toy/labels", "/labels"]


def test_the_next_source_is_asked_when_one_fails(fetch: Fetch, server: Server, said: list[str]) -> None:
    server.pages = {"/bad/images": b"rubbish", "/good/images": BYTES, "/good/labels": LABELS}
    used = fetch(toy(f"{server.url}/bad", f"{server.url}/good"))
    assert contents(used.folder) == {"images": BYTES, "labels": LABELS}
    assert said[0] == (
        f"{server.url}/bad/images: wrong bytes: 7 of them with sha256 {sha256(b'rubbish')[:16]}..., "
        f"not {sha256(BYTES)[:16]}..."
    )


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        (None, ()),
        (" ", ()),
        ("/a", ("/a",)),
        ("/a:/b", ("/a", "/b")),
        ("/a https://h:8080/x\n/b:/c", ("/a", "https://h:8080/x", "/b", "/c")),
    ],
    ids=["unset", "blank", "folder", "as in PATH", "mixed"],
)
def test_local_sources_are_separated_by_space_and_folders_also_as_in_path(
    local: str | None, expected: tuple[str, ...]
) -> None:
    assert data.sources(local) == expected


def test_a_single_folder_may_have_a_space_in_its_name(fetch: Fetch, tmp_path: Path) -> None:
    folder = write(tmp_path / "my data")
    assert data.sources(str(folder)) == (str(folder),)
    fetch(toy(), str(folder))


def test_a_folder_among_the_sources_is_the_projects(tmp_path: Path) -> None:
    config = toy("raw", "/srv/raw", "https://example.org/x")
    rooted = data.rooted({"toy": config}, tmp_path)["toy"]
    assert rooted.sources == (f"{tmp_path}/raw", "/srv/raw", "https://example.org/x")
    assert data.digest_of(rooted) == data.digest_of(config)


def test_a_source_may_be_a_file_url(fetch: Fetch, tmp_path: Path) -> None:
    folder = write(tmp_path / "my data")
    assert contents(fetch(toy(folder.as_uri())).folder) == {"images": BYTES, "labels": LABELS}


# the cache -------------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_fetched_again(fetch: Fetch, server: Server, cache: Path, said: list[str]) -> None:
    server.pages = {"/images": BYTES, "/labels": LABELS}
    config = toy(server.url)
    first = fetch(config)
    server.asked.clear()
    said.clear()
    assert data.cached("toy", config, cache=cache)
    assert fetch(config) == first
    assert (server.asked, said) == ([], [])


def test_the_second_look_at_a_dataset_reads_none_of_it(fetch: Fetch, tmp_path: Path) -> None:
    config = toy(str(write(tmp_path / "near")))
    first = fetch(config)
    file = Path(first.folder, "images")
    before = file.stat()
    file.chmod(0o644)
    file.write_bytes(bytes(len(BYTES)))  # a change that only its content shows
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fetch(config) == first
    os.utime(file)  # one that a look shows is followed by a verification of everything
    assert Path(fetch(config).folder, "images").read_bytes() == BYTES


def test_two_datasets_share_the_files_that_they_have_in_common(fetch: Fetch, server: Server) -> None:
    server.pages = {"/images": BYTES, "/labels": LABELS}
    whole = fetch(toy(server.url))
    part = fetch(toy(server.url, labels=LABELS))
    assert server.asked == ["/images", "/labels"]
    assert contents(part.folder) == {"labels": LABELS}
    assert Path(part.folder, "labels").samefile(Path(whole.folder, "labels"))


def test_a_damaged_file_is_noticed_and_fetched_again(fetch: Fetch, tmp_path: Path, said: list[str]) -> None:
    config = toy(str(write(tmp_path / "near")))
    damaged = Path(fetch(config).folder) / "images"
    damaged.chmod(0o644)
    damaged.write_bytes(b"x" * len(BYTES))
    said.clear()
    assert contents(fetch(config).folder) == {"images": BYTES, "labels": LABELS}
    assert said[0] == "images: damaged in the cache, fetching it again"


@pytest.mark.parametrize("harm", ["touched", "deleted", "replaced", "store deleted"])
def test_a_changed_folder_is_verified_anew(harm: str, fetch: Fetch, tmp_path: Path, cache: Path) -> None:
    config = toy(str(write(tmp_path / "near")))
    folder = Path(fetch(config).folder)
    if harm == "touched":
        os.utime(folder / "images", (1, 1))
    elif harm == "store deleted":
        for path in (cache / "data" / "sha256").iterdir():
            path.unlink()
        os.utime(folder / "images", (1, 1))
    else:
        (folder / "images").unlink()
    if harm == "replaced":
        (folder / "images").write_bytes(b"x")
    assert not data.cached("toy", config, cache=cache)
    assert contents(fetch(config).folder) == {"images": BYTES, "labels": LABELS}
    assert data.cached("toy", config, cache=cache)


def test_a_file_that_the_dataset_does_not_have_is_removed_from_its_folder(
    fetch: Fetch, tmp_path: Path, said: list[str]
) -> None:
    config = toy(str(write(tmp_path / "near")))
    folder = Path(fetch(config).folder)
    (folder / "more").write_bytes(b"x")
    fetch(config)
    assert contents(folder).keys() == {"images", "labels"}
    assert said[-1] == f"{folder / 'more'} does not belong to the dataset: removed"


# what can go wrong -----------------------------------------------------------------------------------------------


def wrong(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(b"rubbish")


def cut(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(BYTES)))
    request.end_headers()
    request.wfile.write(BYTES[: len(BYTES) // 2])
    request.wfile.flush()
    request.connection.shutdown(socket.SHUT_RDWR)


def cut_unannounced(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(BYTES[: len(BYTES) // 2])


def silent(request: BaseHTTPRequestHandler) -> None:
    time.sleep(1.0)


def silent_half_way(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(BYTES)))
    request.end_headers()
    request.wfile.write(BYTES[:70_000])
    request.wfile.flush()
    time.sleep(1.0)


def nonsense(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"hello\r\n\r\n")


def odd_length(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "many")
    request.end_headers()
    request.wfile.write(b"rubbish")


HALF = len(BYTES) // 2
MISBEHAVIOUR = {
    "wrong bytes": (wrong, "wrong bytes: 7 of them with sha256"),
    "cut off": (cut, f"cut off after {HALF} bytes, {HALF} more expected"),
    "cut off, length untold": (cut_unannounced, f"wrong bytes: {HALF} of them"),
    "not found": (None, "404 Not Found"),
    "broken": (lambda request: request.send_error(500), "500 Internal Server Error"),
    "never answers": (silent, "silent for 0.4 s"),
    "stops answering": (silent_half_way, "silent for 0.4 s"),
    "not HTTP": (nonsense, "hello"),
    "odd length": (odd_length, "not understood: "),
}


@pytest.mark.parametrize(("page", "reason"), MISBEHAVIOUR.values(), ids=MISBEHAVIOUR.keys())
def test_a_server_that_misbehaves_is_named_with_the_reason(
    page: Page | None, reason: str, fetch: Fetch, server: Server, cache: Path
) -> None:
    if page:
        server.pages = {"/images": page}
    with pytest.raises(EnvironmentUnfitError) as caught:
        fetch(toy(server.url), silent_seconds=0.4)
    assert caught.value.what == "dataset toy: images cannot be had"
    assert caught.value.evidence[0].startswith(f"{server.url}/images: {reason}")
    assert leftovers(cache) == []


def test_a_slow_server_is_waited_for(fetch: Fetch, server: Server) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for start in range(0, len(BYTES), len(BYTES) // 8):
            request.wfile.write(BYTES[start : start + len(BYTES) // 8])
            request.wfile.flush()
            time.sleep(0.2)

    server.pages = {"/images": slow}
    fetch(toy(server.url, images=BYTES), silent_seconds=1.0)


def test_every_source_is_listed_with_its_own_reason_and_what_to_try(
    fetch: Fetch, server: Server, tmp_path: Path
) -> None:
    server.pages = {"/a/images": b"rubbish"}
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    near = tmp_path / "near"
    (near / "images").mkdir(parents=True)
    mirrors = (f"{server.url}/a", f"{server.url}/b", f"http://me:secret@127.0.0.1:{port}", "http://nowhere.invalid")
    with pytest.raises(EnvironmentUnfitError) as caught:
        fetch(toy(*mirrors, "s3://bucket"), str(near))
    evidence = caught.value.evidence
    assert evidence[:2] == (f"{near}/toy/images: no such file", f"{near}/images: Is a directory")
    assert evidence[2].startswith(f"{server.url}/a/images: wrong bytes")
    assert evidence[3:5] == (
        f"{server.url}/b/images: 404 Not Found",
        f"http://127.0.0.1:{port}/images: Connection refused",
    )
    assert evidence[5].startswith("http://nowhere.invalid/images: ")
    assert evidence[6].startswith("s3://bucket/images: No connection adapters")
    assert evidence[7:] == (f"wanted: sha256 {sha256(BYTES)}", "not fetched yet either: labels")
    assert "FOLDER/toy/images and set REPRO_DATA_SOURCE=FOLDER" in caught.value.hints[0]
    assert not any("object at" in line or "secret" in line for line in evidence)


def test_without_any_source_the_error_says_so(fetch: Fetch) -> None:
    with pytest.raises(EnvironmentUnfitError, match="no source is configured"):
        fetch(toy())


@pytest.mark.parametrize("place", ["a file", "a file system that cannot be written"])
def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(place: str, fetch: Fetch, tmp_path: Path) -> None:
    cache = write(tmp_path, file=b"") / "file" if place == "a file" else Path("/proc/repro")
    with pytest.raises(EnvironmentUnfitError, match=r"the data cache .* cannot be used") as caught:
        fetch(toy(str(write(tmp_path / "near"))), cache=cache)
    assert any("REPRO_CACHE" in hint for hint in caught.value.hints)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from repro import data, errors, experiment
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
config = experiment.DatasetConfig(files={"images": sys.argv[2]}, sources=tuple(sys.argv[3:]))
try:
    data.fetch("toy", config, cache=Path(sys.argv[1]), local=None, say=print, progress=False)
except errors.EnvironmentUnfitError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["folder", "server"])
def test_a_disk_that_takes_no_more_ends_it_and_leaves_nothing(
    kind: str, server: Server, tmp_path: Path, cache: Path
) -> None:
    """A real limit of the operating system stands in for the full disk: write() fails half-way in the same place."""
    server.pages = {"/images": BYTES}
    source = server.url if kind == "server" else str(write(tmp_path / "near"))
    command = [sys.executable, "-c", FULL_DISK, str(cache), sha256(BYTES), source, "http://never.invalid"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.stdout.startswith(f"the data cache {cache} cannot be used: File too large"), answer
    assert "never.invalid" not in answer.stdout
    assert leftovers(cache) == []


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "a//x", "./x", "a\\x", "", "a/", "."])
def test_a_path_out_of_the_folder_is_refused_before_anything_starts(path: str, fetch: Fetch, cache: Path) -> None:
    with pytest.raises(BadInputError, match=r"data\.toy"):
        fetch(DatasetConfig(files={path: sha256(b"")}, sources=("https://never.invalid",)))
    assert not cache.exists()


@pytest.mark.parametrize("files", [{}, {"a": sha256(b""), "a/b": sha256(b"")}], ids=["none", "file and folder"])
def test_files_that_cannot_be_are_refused(files: dict[str, str], fetch: Fetch) -> None:
    with pytest.raises(BadInputError, match=r"data\.toy"):
        fetch(DatasetConfig(files=files))


# several at once -------------------------------------------------------------------------------------------------

FETCH = """
import sys
from pathlib import Path
from repro import data, experiment
config = experiment.DatasetConfig(files={"images": sys.argv[2]}, sources=(sys.argv[3],))
print(data.fetch("toy", config, cache=Path(sys.argv[1]), local=None, say=print, progress=len(sys.argv) > 4).folder)
"""


def test_processes_that_want_the_same_dataset_fetch_it_once(server: Server, cache: Path) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        time.sleep(1.5)
        request.send_response(200)
        request.end_headers()
        request.wfile.write(BYTES)

    server.pages = {"/images": slow}
    command = [sys.executable, "-c", FETCH, str(cache), sha256(BYTES), server.url]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate()[0] for process in several]
    assert [process.returncode for process in several] == [0, 0, 0]
    assert server.asked == ["/images"]
    assert any("another process fetches it, waiting" in answer for answer in answers)
    assert {contents(answer.splitlines()[-1])["images"] for answer in answers} == {BYTES}


def test_threads_that_make_the_same_folder_do_not_disturb_each_other(cache: Path, tmp_path: Path) -> None:
    files = {f"f{number}": f"{number}".encode() for number in range(60)}
    config = toy(str(write(tmp_path / "near", **files)), **files)

    def one(_number: int) -> DatasetUsed:
        return data.fetch("toy", config, cache=cache, local=None, say=lambda _line: None, progress=False)

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(one, range(6)))
    assert [each == results[0] for each in results] == [True] * 6
    assert contents(results[0].folder) == files


def test_a_killed_fetch_leaves_nothing_under_the_final_name_and_the_next_one_works(
    server: Server, cache: Path, fetch: Fetch
) -> None:
    started = threading.Event()

    def half(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(BYTES)))
        request.end_headers()
        request.wfile.write(BYTES[:200_000])
        request.wfile.flush()
        started.set()
        time.sleep(1.0)

    server.pages = {"/images": half}
    process = subprocess.Popen([sys.executable, "-c", FETCH, str(cache), sha256(BYTES), server.url])
    assert started.wait(20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert leftovers(cache) in ([f"{sha256(BYTES)}.part"], [])
    server.pages = {"/images": BYTES}
    assert contents(fetch(toy(server.url, images=BYTES)).folder) == {"images": BYTES}
    assert not any(name.endswith(".part") for name in leftovers(cache))


def test_on_a_terminal_there_is_a_bar(server: Server, cache: Path) -> None:
    def slow(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(BYTES)))
        request.end_headers()
        for start in range(0, len(BYTES), len(BYTES) // 4):
            request.wfile.write(BYTES[start : start + len(BYTES) // 4])
            request.wfile.flush()
            time.sleep(0.2)

    server.pages = {"/images": slow}
    shown = on_a_terminal([sys.executable, "-c", FETCH, str(cache), sha256(BYTES), server.url, "bar"])
    assert "━" in shown
    assert "images: 0.3 MB in " in shown


def on_a_terminal(command: list[str]) -> str:
    """What the command shows on a real (pseudo) terminal as its stderr."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LANG": "C.UTF-8"}
    process = subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()
