"""Runs that nobody keeps -> somebody who does; containers that belong to no run any more. Looked for at every start."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from repro import report
from repro.engines import glance
from repro.engines.answers import ContainerFacts
from repro.errors import EnvironmentUnfitError
from repro.project import Project, user_name
from repro.record import RunFolder
from repro.running import lease

if TYPE_CHECKING:
    import subprocess

SETTLE_SECONDS = 10.0
ORPHAN_SECONDS = 0.05
GIVE_UP = "`repro rm --force RUN` gives it up"


class Taken:
    """A run that nobody kept, and the process that keeps it now."""

    def __init__(self, folder: RunFolder, process: subprocess.Popen[bytes]) -> None:
        self.folder, self._process = folder, process

    @property
    def failed(self) -> bool:
        """Whether the process has ended without bringing the run to its end."""
        return self._process.poll() is not None and self.folder.lease.exists()

    @property
    def settled(self) -> bool:
        """Whether its record is true again: it is over, or watched."""
        known = lease.holder(self.folder)
        watched = known is not None and known.pid == self._process.pid and known.state == lease.WATCHING
        return watched or not self.folder.lease.exists() or self._process.poll() is not None


def take_over(project: Project, folders: Iterable[RunFolder] | None = None) -> list[Taken]:
    """Start a keeper for each run of this machine that is not over and that nobody keeps."""
    everything = lease.open_runs(project.runs) if folders is None else folders
    return [
        Taken(folder, lease.spawn(folder, project)) for folder in everything if lease.unkept(folder) and _here(folder)
    ]


def _here(folder: RunFolder) -> bool:
    """Whether a run is this machine's: another one's is taken over there."""
    known = lease.holder(folder)
    return known is None or known.host == lease.machine()


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
    """A question that can be asked often: is the run over? A run that nobody keeps is taken over on the way.

    It raises EnvironmentUnfitError when nobody can keep the run here.
    """
    looked = 0.0
    taken: list[Taken] = []

    def ask() -> bool:
        nonlocal looked
        if not folder.lease.exists():
            return True
        if time.monotonic() - looked > 1.0:
            looked = time.monotonic()
            if any(each.failed for each in taken) and lease.unkept(folder):
                raise _unkeepable(folder, project)
            if lease.unkept(folder) and not _here(folder):
                raise _elsewhere(folder)
            taken.extend(take_over(project, [folder]))
        return False

    return ask


def _unkeepable(folder: RunFolder, project: Project) -> EnvironmentUnfitError:
    log = project.scratch / "logs" / "keeper.log"
    last = [line for line in report.last_lines(log) if folder.path.name in line][-1:]
    return EnvironmentUnfitError(
        f"run {folder.path.name} is not over, and cannot be kept from here",
        evidence=last,
        hints=[f"its keeper's log: {log}", "where its engine is another machine's: ask there", GIVE_UP],
    )


def _elsewhere(folder: RunFolder) -> EnvironmentUnfitError:
    return EnvironmentUnfitError(
        f"run {folder.path.name} was started on another machine, and nobody keeps it there now",
        evidence=[f"{folder.lease} names it, and is held by no process"],
        hints=["ask for it there: `repro wait`", GIVE_UP],
    )


def orphans(project: Project) -> list[str]:
    """The names of this project's containers whose runs have no folder any more; asked of a local engine in 50 ms."""
    found = glance.containers(f"repro.project={project.root}", ORPHAN_SECONDS)
    return [each.name for each in found if each.labels.get("repro.user", "") == user_name() and is_orphan(each)]


def is_orphan(container: ContainerFacts) -> bool:
    """Whether somebody removed the folder of its run. A disk that is not mounted is no reason to end a run."""
    folder = Path(container.labels.get("repro.folder", "/"))
    root = Path(container.labels.get("repro.project", "/"))
    try:
        inside = folder.is_relative_to(root) and root.is_dir()
        return not folder.exists() and (inside or os.access(folder.parent, os.R_OK))
    except OSError:  # another user's, and closed to us
        return False


def at_start(project: Project, notice: Callable[[str], None]) -> list[Taken]:
    """What every command that deals with runs begins with: runs that nobody keeps get a keeper, orphans are told."""
    taken = take_over(project)
    for each in taken:
        notice(f"run {each.folder.path.name} was left by its command, and is kept again from now on")
    for name in orphans(project):
        notice(f"container {name} belongs to a run that has no folder any more: `repro reap` removes it")
    return taken
