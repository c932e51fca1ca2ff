"""Where the runs of one worker take place: a real engine, a tracking server, a project, all of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repro.project import Project
from tests.conftest import GIT_IDENTITY, commit, use_base
from tests.second_engine import SecondEngine, second_engine

MARK = "REPRO_FAULTS_CASE"  # in the environment of every process of a case
ENTRY = "from repro.__main__ import entry; entry()"
SMALL = "8m"  # the disk that gets full
SERVER_SECONDS = 120.0

EXPERIMENT = """\
# @package _global_
name: steps
command: [python3, steps.py]
gpus: none
params: {steps: 100, code: 0, handles: false}
resources: {stop_grace: 3.0}
"""


class Server:
    """A tracking server, of one process tree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, for the first time or again; returns when it answers."""
        program = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
        program += ["--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        program += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )
        end = time.monotonic() + SERVER_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError((self.folder / "server.log").read_text(errors="replace")[-3000:])
            time.sleep(0.1)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def end(self, number: signal.Signals) -> None:
        """End it and what it has started, with a signal."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Terminal:
    """A window with a command in it; what is shown there is kept in a file."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int, log: Path) -> None:
        self.process, self._descriptor = process, descriptor
        self._closed = threading.Event()
        self._reader = threading.Thread(target=self._copy, args=(log,), daemon=True)
        self._reader.start()

    def _copy(self, log: Path) -> None:
        with contextlib.suppress(OSError), log.open("ab", buffering=0) as file:
            while not self._closed.is_set():
                if select.select([self._descriptor], [], [], 0.05)[0]:
                    file.write(os.read(self._descriptor, 1 << 16))

    def close(self) -> None:
        """Close the window."""
        self._closed.set()
        self._reader.join()  # a descriptor that is being read from stays open
        os.close(self._descriptor)


class Stage:
    """What one worker has for itself, and how a user gives commands there."""

    def __init__(self, folder: Path, engine: SecondEngine, server: Server, project: Project) -> None:
        self.folder, self.engine, self.server, self.project = folder, engine, server, project
        self.small = folder / "small"
        self.temporary = folder / "tmp"
        self.case = ""
        self.runs = project.runs
        self.known: set[str] = set()  # MLflow's ids of the runs of earlier cases
        self.away: tuple[float, float] | None = None  # when the engine did not answer last
        self.clients: dict[str, Any] = {}  # of MLflow, by store

    def enter(self, name: str, *, small: bool) -> Path:
        """Begin a case: commands and processes are its own from now on; the folder for what they print."""
        self.case, self.away = str(self.folder / "cases" / name), None
        self.runs = self.small if small else self.project.root / "runs"
        Path(self.case).mkdir(parents=True)
        return Path(self.case)

    def environment(self) -> dict[str, str]:
        """That of a command of the case."""
        kept = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        more = {MARK: self.case, "DOCKER_HOST": self.engine.url, "TMPDIR": str(self.temporary)}
        if self.runs == self.small:
            more["REPRO_RUNS_DIR"] = str(self.small)
        return {**kept, **GIT_IDENTITY, "MLFLOW_DISABLE_TELEMETRY": "true", **more}

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """`repro` with these arguments, in a session of its own; what it prints is in NAME.out and NAME.err."""
        out, err = Path(self.case, f"{name}.out"), Path(self.case, f"{name}.err")
        with out.open("ab") as stdout, err.open("ab") as stderr:
            return subprocess.Popen(
                [sys.executable, "-c", ENTRY, *arguments],
                cwd=self.project.root,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def on_a_terminal(self, name: str, *arguments: str) -> Terminal:
        """`repro` with a terminal that is its own."""
        ours, theirs = pty.openpty()
        program = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n" + ENTRY
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=self.project.root,
            env=self.environment(),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        return Terminal(process, ours, Path(self.case, f"{name}.out"))

    def call(self, name: str, *arguments: str, seconds: float = 120.0) -> int:
        """`repro` with these arguments to its end; its exit code."""
        process = self.start(name, *arguments)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"`repro {' '.join(arguments)}` is not done after {seconds:g} s") from None

    def processes(self, module: str = "", case: str = "") -> list[int]:
        """This case's processes, told by their environment; with `module`, those that run it with `python -m`."""
        mark = f"{MARK}={case or self.case}".encode()
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (place / "environ").read_bytes().split(b"\0"):
                    command = (place / "cmdline").read_bytes().split(b"\0")
                    if command[0] and (not module or module.encode() in command):  # a zombie has none
                        found.append(int(place.name))
        return found

    def kill(self, *modules: str, seconds: float = 15.0) -> bool:
        """kill -9 of the case's processes that run these modules, as soon as each has one; False: none came."""
        end = time.monotonic() + seconds
        while not all(found := [self.processes(module) for module in modules]):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        for process in (pid for pids in found for pid in pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return True

    def temporary_files(self) -> list[Path]:
        """What lies where programs put what they need for a moment."""
        return [*self.temporary.iterdir(), *(self.project.scratch / "code").glob(".writing-*")]

    def containers(self) -> list[Any]:
        """This project's containers, whatever state they are in."""
        label = {"label": f"repro.project={self.project.root}"}
        return list(self.engine.client().containers.list(all=True, filters=label))


@contextmanager
def stage(base: str) -> Iterator[Stage]:
    """A stage that is ready; nothing of it stays. `base` is an image of the environment's engine."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    server = Server(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        engine = stack.enter_context(second_engine(gpus=None, options={"live-restore": True}))
        made = Stage(folder, engine, server, _project(folder / "project", base))
        made.small.mkdir()
        made.temporary.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(made.small)], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", str(made.small)], check=False)
        stack.callback(server.end, signal.SIGTERM)
        engine.copy_image(base)
        server.start()
        yield made


def _project(root: Path, base: str) -> Project:
    (root / "conf" / "experiment").mkdir(parents=True)
    (root / "docker").mkdir()
    (root / "docker" / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n")
    (root / "docker" / "requirements.txt").write_text("")
    (root / "conf" / "experiment" / "steps.yaml").write_text(EXPERIMENT)
    shutil.copy(Path(__file__).with_name("steps.py"), root / "steps.py")
    project = Project(root)
    use_base(project, base)
    commit(root)
    return project
