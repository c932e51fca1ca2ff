"""Who keeps a run: the one process that watches its container and writes its record. The lease ends with the process.

A run folder has a lease file from before its container exists until its record is final, so that whoever looks finds
the runs that are not over in a moment, and takes over those that nobody keeps.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from repro.errors import EnvironmentUnfitError
from repro.experiment import Value
from repro.project import Project, ignored_folder
from repro.record import RunFolder

if TYPE_CHECKING:
    import subprocess

WATCHING = "watching"


class Holder(Value, frozen=True, kw_only=True):
    """Who has a lease, as noted in its file; for people, and to see how far a takeover has come."""

    pid: int
    host: str  # as `machine` has it
    state: str  # starting, taking over, watching


class Lease:
    """The right to keep one run, until it is given up or the process ends in whatever way."""

    def __init__(self, folder: RunFolder, descriptor: int) -> None:
        self.folder, self._descriptor = folder, descriptor

    def note(self, state: str) -> None:
        """Let others know how far we are."""
        content = msgspec.json.encode(Holder(pid=os.getpid(), host=machine(), state=state))
        with contextlib.suppress(OSError):  # a full disk: the lock itself needs no room
            os.pwrite(self._descriptor, content.ljust(256), 0)

    def release(self) -> None:
        """Give it up: the run goes on, and another process may keep it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def end(self) -> None:
        """The record is final, or there is no run any more: nobody needs to keep it."""
        with contextlib.suppress(OSError):
            self.folder.tidy(self.folder.record, self.folder.stop)
        with contextlib.suppress(OSError):
            self.folder.lease.unlink()
        self.release()


def take(folder: RunFolder) -> Lease | None:
    """The lease of a run; None when another process has it, or nobody needs one.

    Raises:
        OSError: the folder cannot be written.
    """
    descriptor = os.open(folder.lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if _locked(descriptor, fcntl.LOCK_EX, without_locks=True) and _is(descriptor, folder.lease):
        return Lease(folder, descriptor)
    os.close(descriptor)
    return None


def _locked(descriptor: int, kind: int, *, without_locks: bool) -> bool:
    """Lock a file, unless another process has; on a file system that has no locks the answer is `without_locks`."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return without_locks
    return True


def _is(descriptor: int, path: Path) -> bool:
    """Whether a path still names an open file: the lease may have ended between its opening and its locking."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold a file like a lease, and remove it at the end."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
        os.close(descriptor)


def unkept(folder: RunFolder) -> bool:
    """Whether a run is not over and nobody keeps it, as far as can be told."""
    return unheld(folder.lease)


def unheld(file: Path) -> bool:
    """Whether a file is there and its holder has gone, as far as can be told."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # it is over; or another user's, who keeps it
        return False
    try:
        return _locked(descriptor, fcntl.LOCK_SH, without_locks=False)
    finally:
        os.close(descriptor)


def holder(folder: RunFolder) -> Holder | None:
    """Who keeps a run, as far as that is known."""
    try:
        return msgspec.json.decode(folder.lease.read_bytes(), type=Holder)
    except (OSError, msgspec.MsgspecError):
        return None


def machine() -> str:
    """What names this machine, also when its host name changes."""
    with contextlib.suppress(OSError):
        if known := Path("/etc/machine-id").read_text(encoding="ascii").strip():
            return known
    return socket.gethostname()


def open_runs(runs: Path) -> list[RunFolder]:
    """The runs below `runs` that are not over, each once: a few thousand finished ones take milliseconds."""
    found: list[str] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(runs) as entries:
        found = [entry.path for entry in entries if os.access(f"{entry.path}/.lease", os.F_OK)]
    linked = {os.path.realpath(path) for path in found if Path(path).is_symlink()}  # by its id, to a chosen name
    return [RunFolder(Path(path)) for path in sorted(found) if Path(path).is_symlink() or path not in linked]


def spawn(folder: RunFolder, project: Project) -> subprocess.Popen[bytes]:
    """Let a process of its own keep the run (`repro.keeper`), whatever becomes of this one."""
    import subprocess

    with contextlib.ExitStack() as stack:
        log: Any = subprocess.DEVNULL
        place = "/"
        with contextlib.suppress(OSError, EnvironmentUnfitError):
            logs = ignored_folder(project.scratch) / "logs"
            logs.mkdir(exist_ok=True)
            log, place = stack.enter_context((logs / "keeper.log").open("ab")), str(logs)
        process = subprocess.Popen(
            [sys.executable, "-m", "repro.keeper", str(folder.path.absolute()), str(project.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(),
            cwd=place,  # never where a file of the user's could pass for a module
            start_new_session=True,  # the end of a terminal or of a batch step is not the end of a run
        )
    threading.Thread(target=process.wait, daemon=True).start()  # no zombie in a long-lived program
    return process


def _environment() -> dict[str, str]:
    kept = dict(os.environ)
    if path := kept.get("PYTHONPATH"):
        kept["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in path.split(os.pathsep) if entry)
    return kept
