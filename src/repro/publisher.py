"""Orders on stdin -> runs in MLflow -> replies on stdout: `python -m repro.publisher [URI]`.

A process of its own, so that a run waits neither for the import of MLflow nor for a slow store, and so that what is
left to send after a run's end is sent although the command that ran it has gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from repro import restclient, sdkclient, store
from repro.client import TrackingClient
from repro.errors import ReproError
from repro.publication import NO_RUN, Gone, Publication, explain
from repro.record import RunFolder
from repro.tracking import Order, Ready, Reply

POLL = 0.2  # seconds
BACKOFF = (0.5, 5.0)  # seconds: after the first failure, at most
GRACE = 10.0  # seconds for which a store may still be unfit after the end of a run
log = logging.getLogger("repro.publisher")


def main() -> None:
    """Obey until stdin ends and every run is done with."""
    logging.basicConfig(format=f"%(asctime)s {os.getpid()} %(name)s %(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)
    warnings.simplefilter("ignore")
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints belongs in the log
    warm(sys.argv[1] if len(sys.argv) > 1 else "")
    with contextlib.suppress(OSError):  # who started us may have gone
        os.write(replies, msgspec.json.encode(Ready()) + b"\n")
    Publisher(sys.stdin.fileno(), replies).run()


def warm(uri: str) -> None:
    """Import what a store of this kind needs: these seconds are the reason for this process."""
    if restclient.speaks(uri, os.environ):
        import requests  # noqa: F401

        return
    import mlflow.tracking.client

    if uri.startswith(store.DATABASES):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


class Task:
    """An order, as far as it has come."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.folder = RunFolder(Path(order.folder))
        self.run, self.uri = self.folder.path.name, order.uri or ""
        self.lock = FileLock(self.folder.path / ".tracking.lock", timeout=0)
        self.publication: Publication | None = None
        self.failures = 0
        self.next_try = 0.0
        self.give_up: float | None = None

    def step(self, now: float, *, last: bool) -> Reply | None:
        """Go on. A reply when nothing is left to do, or nothing can be done; `last`: nobody waits for the run's end."""
        if now < self.next_try:
            return None
        last = last or self.order.action == "sync"
        try:
            done = self._advance(last=last)
        except Gone as gone:
            return self._reply(ok=True, reason=str(gone))
        except Timeout:
            busy = "another process is bringing it there right now"
            # of a run that goes on, that is the command which runs it: all is well
            return self._reply(ok=True, reason=busy) if last and not self._over() else self._failed(now, last, busy, ())
        except Exception as error:  # noqa: BLE001 - MLflow raises of everything, and no other run must end for it
            log.info("%s: %s: %s", self.run, type(error).__name__, error)
            return self._failed(now, last, *explain(error, self.uri))
        self.failures = 0
        return self._reply(ok=True) if done or last else None

    def _advance(self, *, last: bool) -> bool:
        if self.publication is None:
            if not self.folder.record.exists():
                raise Gone(NO_RUN)
            if not self.lock.is_locked:
                self.lock.acquire()
            planned = self.folder.read().planned
            self.run, self.uri = planned.run, self.order.uri or planned.tracking_uri or ""
            if not self.uri:  # MLflow would choose a store by itself
                raise Gone("tracking was off for this run")
            store.prepare(self.uri)
            self.publication = Publication(self.folder, self.uri, connect(self.uri))
        return self.publication.advance(last=last)

    def _failed(self, now: float, last: bool, reason: str, hints: tuple[str, ...]) -> Reply | None:
        """Try again later, but not for ever once the run is over."""
        self.failures += 1
        self.next_try = now + min(BACKOFF[0] * 2 ** (self.failures - 1), BACKOFF[1])
        if self.give_up is None and (last or self._over()):
            self.give_up = now + (0.0 if self.order.action == "sync" else GRACE)
        if self.give_up is None or now < self.give_up:
            return None
        return self._reply(ok=False, reason=reason, hints=hints)

    def _over(self) -> bool:
        try:
            return self.folder.read().ended is not None
        except ReproError:
            return True

    def _reply(self, *, ok: bool, reason: str = "", hints: tuple[str, ...] = ()) -> Reply:
        known = self.publication.state if self.publication else None
        return Reply(
            folder=self.order.folder,
            run=self.run,
            ok=ok,
            mlflow_run=known.run if known else "",
            experiment_id=known.experiment_id if known else "",
            uri=self.uri,
            reason=reason,
            hints=hints,
            remarks=known.remarks if known else (),
        )

    def close(self) -> None:
        """Keep what was reached, and let others at the run."""
        with contextlib.suppress(OSError):
            if self.publication and self.folder.tracking.exists():
                self.publication.save()
        self.lock.release()
        if not self.folder.record.exists():
            self._leave_nothing()

    def _leave_nothing(self) -> None:
        """The run was discarded, perhaps this very moment: the folder goes when its last file has gone."""
        for _attempt in range(5):
            with contextlib.suppress(OSError):
                (self.folder.path / ".tracking.lock").unlink(missing_ok=True)
                self.folder.path.rmdir()
                return
            time.sleep(0.05)


class Publisher:
    """Runs the tasks in turns, in one thread: MLflow's stores want no more."""

    def __init__(self, orders: int, replies: int) -> None:
        self.orders, self.replies = orders, replies
        self.tasks: list[Task] = []
        self.open = True
        self.buffer = b""

    def run(self) -> None:
        """Obey until the orders end and every task is done with."""
        while self.open or self.tasks:
            self._listen(POLL)
            for task in list(self.tasks):
                if reply := task.step(time.monotonic(), last=not self.open):
                    self.tasks.remove(task)
                    task.close()
                    self._tell(reply)

    def _listen(self, seconds: float) -> None:
        if not self.open:
            time.sleep(seconds)
            return
        if not select.select([self.orders], [], [], seconds if self.tasks else None)[0]:
            return
        chunk = os.read(self.orders, 1 << 16)
        self.open = bool(chunk)
        *lines, self.buffer = (self.buffer + chunk).split(b"\n")
        self.tasks += [Task(msgspec.json.decode(line, type=Order)) for line in lines]

    def _tell(self, reply: Reply) -> None:
        log.info("%s: %s", reply.run, reply.text)
        with contextlib.suppress(OSError):  # who asked may have gone
            os.write(self.replies, msgspec.json.encode(reply) + b"\n")


def connect(uri: str, environ: Mapping[str, str] = os.environ) -> TrackingClient:
    """The client for a store: our own for a server, MLflow's for all others."""
    if restclient.speaks(uri, environ):
        return restclient.RestClient(uri, environ)
    return sdkclient.SdkClient(store.with_password(uri, environ))


if __name__ == "__main__":
    main()
