"""What commands that were killed have left -> who takes it over, what goes. Only what is this user's."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from repro.cleaning import housekeeping, leftovers
from repro.engines.answers import ContainerFacts
from repro.engines.engine import Engine
from repro.errors import ReproError
from repro.experiment import Value
from repro.project import Project, user_name
from repro.record import RunFolder, folders
from repro.running import lease, sweep
from repro.running.plan import RUN_LABEL
from repro.secrets import secretsfolder


class Leftover(Value, frozen=True, kw_only=True):
    """Something that nobody looks after."""

    kind: str  # run, container, secrets
    name: str
    why: str
    place: str  # of a run, its folder; of a container, its id; of secrets, the run


def look(project: Project, engine: Engine) -> list[Leftover]:
    """What is left of this project's runs, and of this user's containers on the engine."""
    containers = engine.all_containers()
    found = [
        Leftover(kind="run", name=folder.path.name, why="it is not over, and nobody keeps it", place=str(folder.path))
        for folder in _unkept(project, containers)
    ]
    return found + _orphans(containers) + _secrets(containers)


def _unkept(project: Project, containers: Sequence[ContainerFacts]) -> list[RunFolder]:
    """Also those of earlier versions, which had no lease, and those whose folder is where only the container knows."""
    known = {folder.path.resolve(): folder for folder in folders(project.runs)}
    for each in containers:
        if each.labels.get("repro.project") == str(project.root) and "repro.folder" in each.labels:
            folder = RunFolder(Path(each.labels["repro.folder"]))
            known.setdefault(folder.path.resolve(), folder)
    known |= {folder.path.resolve(): folder for folder in lease.open_runs(project.runs)}
    return [folder for folder in known.values() if lease.unkept(folder) or _forgotten(folder)]


def _forgotten(folder: RunFolder) -> bool:
    if folder.lease.exists():
        return False
    try:
        return folder.read().ended is None
    except ReproError:  # of another version: not ours to judge
        return False


def _orphans(containers: Sequence[ContainerFacts]) -> list[Leftover]:
    user = user_name()
    gone = {each.name: each for each in leftovers.containers(containers, user=user, now=time.time())}
    for each in containers:
        if not leftovers.is_ours(each, user) or each.name in gone:
            continue
        if sweep.is_orphan(each):
            gone[each.name] = leftovers.removal(each, "its run has no folder any more, so nothing of it can be kept")
        elif lease.unheld(RunFolder(Path(each.labels["repro.folder"])).shell):
            gone[each.name] = leftovers.removal(each, "the terminal of its `repro shell` has gone")
    return [Leftover(kind="container", name=each.name, why=each.loses, place=each.id) for each in gone.values()]


def _secrets(containers: Sequence[ContainerFacts]) -> list[Leftover]:
    alive = {each.labels[RUN_LABEL] for each in containers if RUN_LABEL in each.labels}
    for runs in housekeeping.remembered():  # of runs with another engine, too
        alive |= {folder.path.name for folder in lease.open_runs(runs)}
    why = "secrets of a run that has no container any more"
    return [Leftover(kind="secrets", name=run, why=why, place=run) for run in secretsfolder.stale(alive)]


def do(found: Sequence[Leftover], project: Project, engine: Engine, say: Callable[[str], None]) -> None:
    """Take over the runs, wait until their records are true, remove the rest."""
    runs = [RunFolder(Path(each.place)) for each in found if each.kind == "run"]
    for folder in runs:
        folder.lease.touch()
    say(f"taking over {len(runs)}")
    taken = sweep.take_over(project, runs)
    sweep.settle(taken)
    for path in {folder.path for folder in runs} - {each.folder.path for each in taken if not each.failed}:
        say(f"not taken over: {path.name}, which another machine or engine has; `repro wait {path.name}` says more")
    for each in found:
        if each.kind == "container":
            say(f"removing {each.name}")
            engine.remove(each.place)
        elif each.kind == "secrets":
            secretsfolder.remove(each.place)
