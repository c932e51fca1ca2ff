"""Tracking URI -> an address to open in a browser, with a lean MLflow server behind it where there is none yet."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import msgspec

from repro.errors import EnvironmentUnfitError
from repro.experiment import Value
from repro.project import Project, ignored_folder
from repro.record import RunFolder, write_atomic
from repro.tracking import store, tracking

START_SECONDS = 90.0
STOP_SECONDS = 5.0


class Server(Value, frozen=True, kw_only=True):
    """ui.json: a server that we started."""

    pid: int
    port: int
    uri: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Site:
    """MLflow's pages. `process` is the server, when this process started it."""

    def __init__(self, address: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self.address, self.process = address, process

    def hold(self, project: Project) -> None:
        """Stay until Ctrl-C, or until the server ends; returns at once when it is somebody else's."""
        if self.process is None:
            return
        for each in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal, a batch system: the server goes, too
            signal.signal(each, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            self.process.wait()
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C does not leave it half ended
            _end(self.process)
        noted = _noted(project.scratch)
        if noted and noted.pid == self.process.pid:
            (project.scratch / "ui.json").unlink(missing_ok=True)

    def page(self, folder: RunFolder | None = None, *, run: bool = True) -> str:
        """The page of a run, or with `run=False` of its experiment's runs, in the training view."""
        known = tracking.state(folder) if folder else None
        if known is None or not known.run:
            return f"{self.address}/#/experiments"
        return tracking.page(self.address, known.experiment_id, known.run if run else "")


def start(uri: str, project: Project, say: Callable[[str], None], *, port: int = 0) -> Site:
    """The site of a store: the server itself for an http(s) URI, else a running server of ours, else a new one.

    Raises:
        EnvironmentUnfitError: the store is unfit, the port is taken, or the server does not come up.
    """
    if uri.startswith("http"):
        return Site(uri)
    from filelock import FileLock

    store.prepare(uri)
    scratch = ignored_folder(project.scratch)
    with FileLock(scratch / "ui.lock"):
        running = _running(scratch)
        if running and running.uri == uri and port in (0, running.port):
            say(f"a server of process {running.pid} runs already")
            return Site(running.address)
        server, process = _launch(uri, project, _port(port))
        _await(server, process, _log(scratch), say)
        write_atomic(scratch / "ui.json", msgspec.json.encode(server))
    return Site(server.address, process)


def _noted(scratch: Path) -> Server | None:
    try:
        return msgspec.json.decode((scratch / "ui.json").read_bytes(), type=Server)
    except (OSError, msgspec.MsgspecError):
        return None


def _running(scratch: Path) -> Server | None:
    """The noted server, when it is alive and answers as one of MLflow's."""
    server = _noted(scratch)
    if server is None:
        return None
    try:
        os.kill(server.pid, 0)
    except OSError:
        return None
    return server if _healthy(server) else None


def _healthy(server: Server) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(f"{server.address}/health", timeout=5) as answer:
            return bool(answer.read(16).strip() == b"OK")
    except (OSError, HTTPException):
        return False


def _launch(uri: str, project: Project, port: int) -> tuple[Server, subprocess.Popen[bytes]]:
    """One worker and none of MLflow's job runners: 2 processes in place of 15."""
    program = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    file = store.sqlite_file(uri)
    artifacts = store.artifacts(file) if file else project.root / "mlartifacts"
    program += ["--artifacts-destination", str(artifacts)]
    log = _log(project.scratch)
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            program,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=log.parent,  # it makes folders where it stands
            env={
                **os.environ,
                "MLFLOW_BACKEND_STORE_URI": store.with_password(uri, os.environ),  # arguments are for all to see
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "GIT_PYTHON_REFRESH": "quiet",
            },
            start_new_session=True,  # Ctrl-C is ours: the whole group is stopped then
        )
    return Server(pid=process.pid, port=port, uri=uri), process


def _await(server: Server, process: subprocess.Popen[bytes], log: Path, say: Callable[[str], None]) -> None:
    begun = time.monotonic()
    try:
        while not _healthy(server) and process.poll() is None and time.monotonic() - begun < START_SECONDS:
            time.sleep(0.1)
    except KeyboardInterrupt:
        _end(process)
        raise
    if not _healthy(server):
        _end(process)
        raise EnvironmentUnfitError(
            f"MLflow's server did not come up on port {server.port}",
            evidence=log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:],
            hints=[f"its log: {log}"],
        )
    say(f"MLflow's server is up after {time.monotonic() - begun:.1f} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server and its worker, then SIGKILL to what is left of them."""
    for each, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, each)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def _port(wanted: int) -> int:
    """The wanted port, or with 0 any that is free."""
    try:
        with socket.create_server(("127.0.0.1", wanted)) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        raise EnvironmentUnfitError(
            f"port {wanted} is taken", evidence=[str(error)], hints=["leave --port out: any free one is chosen"]
        ) from error


def _log(scratch: Path) -> Path:
    return scratch / "logs" / "mlflow-server.log"
