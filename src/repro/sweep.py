"""Runs that nobody keeps -> somebody who does; containers that belong to no run any more. Looked for at every start."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from repro import glance, lease
from repro.answers import ContainerFacts
from repro.project import Project
from repro.record import RunFolder

if TYPE_CHECKING:
    import subprocess

SETTLE_SECONDS = 10.0
ORPHAN_SECONDS = 0.05


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


def orphans(project: Project) -> list[str]:
    """The names of this project's containers whose runs have no folder any more; asked of a local engine in 50 ms."""
    found = glance.containers(f"repro.project={project.root}", ORPHAN_SECONDS)
    return [each.name for each in found if is_orphan(each)]


def is_orphan(container: ContainerFacts) -> bool:
    """Whether somebody removed the folder of its run. A disk that is not mounted is no reason to end a run."""
    folder = Path(container.labels.get("repro.folder", "/"))
    root = Path(container.labels.get("repro.project", "/"))
    inside = folder.is_relative_to(root) and root.is_dir()
    return not folder.exists() and (inside or os.access(folder.parent, os.R_OK))


def at_start(project: Project, notice: Callable[[str], None]) -> list[Taken]:
    """What every command that deals with runs begins with: runs that nobody keeps get a keeper, orphans are told."""
    taken = take_over(project)
    for each in taken:
        notice(f"run {each.folder.path.name} was left by its command, and is kept again from now on")
    for name in orphans(project):
        notice(f"container {name} belongs to a run that has no folder any more: `repro reap` removes it")
    return taken
