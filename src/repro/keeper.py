"""`python -m repro.keeper FOLDER PROJECT`: keep a run that nobody keeps, to its end and into MLflow.

A process of its own, in a session of its own: it outlives the command that starts it, its terminal and its batch step.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from repro import runner
from repro.engines.engine import Engine, connect
from repro.errors import EngineUnreachableError, ReproError
from repro.project import Project
from repro.record import Record, RunFolder
from repro.running import lease
from repro.running.keeping import Absence, Keeper, release
from repro.running.lease import Lease
from repro.tracking.tracking import SYNC_SECONDS, Follower

PATIENCE = 7 * 86400.0  # seconds for which an engine may be away; any command starts another one of us afterwards
LEASE_SECONDS = 2.0  # who asks whether a lease is held holds it for a moment, too
log = logging.getLogger("repro.keeper")


def main() -> None:
    """Keep the run that is named on the command line, if nobody else does."""
    logging.basicConfig(format=f"%(asctime)s {os.getpid()} %(message)s", level=logging.INFO)
    for ignored in (signal.SIGHUP, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    folder, project = RunFolder(Path(sys.argv[1])), Project(Path(sys.argv[2]))
    held = _lease(folder)
    if held is None:
        return
    try:
        keep(held, project)
    except (ReproError, OSError) as error:
        log.info("%s: %s", folder.path.name, error)
    finally:
        held.release()


def _lease(folder: RunFolder) -> Lease | None:
    give_up = time.monotonic() + LEASE_SECONDS
    while folder.lease.exists():
        if held := lease.take(folder):
            return held
        if time.monotonic() > give_up:
            break
        time.sleep(0.05)
    return None


def keep(held: Lease, project: Project) -> None:
    """From wherever a run is to its end, while MLflow follows.

    Raises:
        ReproError: the run cannot be read, or its engine went away for longer than anybody waits.
    """
    folder = held.folder
    held.note("taking over")
    record = folder.read() if folder.record.exists() else None
    engine, away = _engine(record)
    if record and not _same(record, engine):
        log.info("%s: its container is with the engine of %s", folder.path.name, record.planned.host.name)
        return
    record = runner.recover(held, engine)
    if record is None:
        log.info("%s: no run took place", folder.path.name)
        return
    follower = _follower(record, folder, project)
    try:
        if record.ended:  # all that is left to do is to tidy up
            release(engine, record, log.info)
            held.end()
        else:
            log.info("%s: kept from now on", folder.path.name)
            _to_its_end(held, record, engine, away)
        for reply in follower.wait(SYNC_SECONDS, folder) if follower else ():
            log.info("%s: %s", folder.path.name, reply.text)
    finally:
        if follower:
            follower.close()


def _to_its_end(held: Lease, record: Record, engine: Engine, away: Absence | None) -> None:
    name = record.planned.run
    keeper = Keeper(held, record, engine, lambda line: log.info("%s: %s", name, line), patience=PATIENCE, alone=True)
    keeper.away = away
    log.info("%s: %s", name, keeper.keep().state)


def _engine(record: Record | None) -> tuple[Engine, Absence | None]:
    """The engine that has the run, when it answers, and for how long it had to be waited for."""
    host = record.started.endpoint if record and record.started else ""
    give_up = time.monotonic() + PATIENCE
    pause = 0.2
    since: datetime | None = None
    while True:
        try:
            engine = connect(host or None)
        except EngineUnreachableError:
            if time.monotonic() > give_up:
                raise
            since = since or datetime.now(timezone.utc)
            time.sleep(pause)
            pause = min(pause * 1.5, 5.0)
        else:
            return engine, (since, datetime.now(timezone.utc)) if since else None


def _same(record: Record, engine: Engine) -> bool:
    """Whether this is the engine that the run was started on: of another machine's silence nothing follows.

    One that has lost its state is another by its id; what it does not know then is gone.
    """
    known = record.started.engine if record.started else ""
    return (known != "" and known == engine.id) or record.planned.host.name == engine.facts().name


def _follower(record: Record, folder: RunFolder, project: Project) -> Follower | None:
    if record.planned.tracking_uri is None:
        return None
    try:
        follower = Follower.start(project, record.planned.tracking_uri)
    except OSError as error:
        log.info("%s: not in MLflow for now: %s", folder.path.name, error)
        return None
    follower.follow(folder)
    return follower


if __name__ == "__main__":
    main()
