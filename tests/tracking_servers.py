"""Real tracking servers, and a door in front of one that lets faults happen: no answer, a late one, a lost one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from repro.tracking import store


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def server(port: int, folder: Path, *, files: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """A tracking server that answers to the name `localhost` alone.

    With `files` it keeps runs in a folder, as MLflow did until 3.x: such a store takes a point as often as it is sent.
    """
    uri = f"file://{folder}/runs" if files else f"sqlite:///{folder}/server.db"
    store.prepare(uri)
    program = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    program += ["--backend-store-uri", uri, "--allowed-hosts", f"localhost:{port}"]
    program += ["--artifacts-destination", str(folder / "artifacts")]
    lean = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    retired = {"MLFLOW_ALLOW_FILE_STORE": "true"} if files else {}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            program,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, **lean, **retired},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def answering(port: int) -> bool:
    """Whether a server is up."""
    connection = HTTPConnection("localhost", port, timeout=5)
    with contextlib.suppress(OSError), contextlib.closing(connection):
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    return False


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server as there are today, with a database."""
    port = free_port()
    with server(port, tmp_path_factory.mktemp("server")):
        until(lambda: answering(port), 60)
        yield port


@pytest.fixture(scope="session")
def folder_of_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that keeps runs in files."""
    port = free_port()
    with server(port, tmp_path_factory.mktemp("server"), files=True):
        until(lambda: answering(port), 60)
        yield port


class Door:
    """An address in front of a server. `fault(method, path, body)` says what becomes of a request.

    None: it is passed on; a number: that is the answer; "hang": none comes; "lose": it is passed on, and the answer
    is lost.
    """

    def __init__(self, behind: int = 0) -> None:
        self.behind = behind
        self.fault: Callable[[str, str, bytes], int | str | None] = lambda _method, _path, _body: None
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.answer = b"{}"
        self.closing = Event()
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                door.seen.append((self.command, self.path, dict(self.headers)))
                fault = door.fault(self.command, self.path, body)
                if fault == "hang":
                    door.closing.wait()
                    self.close_connection = True
                    return
                status, kind, content = fault, "application/json", door.answer
                if not isinstance(fault, int):
                    status, kind, content = door.pass_on(self, body)
                if fault == "lose":
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                if 300 <= status < 400:
                    self.send_header("Location", "https://elsewhere.example/")
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815 - the library's names

            def log_message(self, *_: Any) -> None:
                pass

        self.listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.listener.daemon_threads = True
        self.uri = f"http://localhost:{self.listener.server_address[1]}"
        Thread(target=self.listener.serve_forever, daemon=True).start()

    def pass_on(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, str, bytes]:
        connection = HTTPConnection("localhost", self.behind, timeout=60)
        with contextlib.closing(connection):
            kept = {"Content-Type", "Authorization"}
            headers = {name: value for name, value in request.headers.items() if name in kept}
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read()

    def close(self) -> None:
        self.closing.set()
        self.listener.shutdown()
        self.listener.server_close()
