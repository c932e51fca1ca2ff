"""Runs that nobody keeps -> somebody who does; containers that belong to no run any more. Looked for at every start."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from repro import lease
from repro.project import Project
from repro.record import RunFolder

if TYPE_CHECKING:
    import subprocess

SETTLE_SECONDS = 10.0


class Taken:
    """A run that nobody kept, and the process that keeps it now."""

    def __init__(self, folder: RunFolder, process: subprocess.Popen[bytes]) -> None:
        self.folder, self._process = folder, process

    @property
    def settled(self) -> bool:
        """Whether its record is true again: it is over, or watched."""
        known = lease.holder(self.folder)
        watched = known is not None and known.pid == self._process.pid and known.state == lease.WATCHING
        return watched or not self.folder.lease.exists() or self._process.poll() is not None


def take_over(project: Project, folders: Iterable[RunFolder] | None = None) -> list[Taken]:
    """Start a keeper for each run of this machine that is not over and that nobody keeps."""
    here = socket.gethostname()
    taken = []
    for folder in lease.open_runs(project.runs) if folders is None else folders:
        if lease.unkept(folder):
            known = lease.holder(folder)
            if known is None or known.host == here:  # another machine's are taken over there
                taken.append(Taken(folder, lease.spawn(folder, project)))
    return taken


def settle(taken: Iterable[Taken], seconds: float = SETTLE_SECONDS) -> None:
    """Wait until the records of these runs are true again, as far as that is to be had in `seconds`."""
    until = time.monotonic() + seconds
    for each in taken:
        while not each.settled and time.monotonic() < until:
            time.sleep(0.02)


def wait(folder: RunFolder, project: Project, *, seconds: float | None = None, pause: float = 0.1) -> bool:
    """Wait for the end of a run, whoever keeps it; False: the time is up."""
    until = None if seconds is None else time.monotonic() + seconds
    look = over(folder, project)
    while not look():
        if until is not None and time.monotonic() > until:
            return False
        time.sleep(pause)
    return True


def over(folder: RunFolder, project: Project) -> Callable[[], bool]:
    """A question that can be asked often: is the run over? A run that nobody keeps is taken over on the way."""
    looked = 0.0

    def ask() -> bool:
        nonlocal looked
        if not folder.lease.exists():
            return True
        if time.monotonic() - looked > 1.0:
            looked = time.monotonic()
            take_over(project, [folder])
        return False

    return ask


def find_project(start: Path) -> Project | None:
    """The project of a folder, if it is in one."""
    from repro.errors import BadInputError

    try:
        return Project.find(start)
    except BadInputError:
        return None
