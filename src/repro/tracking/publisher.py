"""Orders on stdin -> runs in MLflow -> replies on stdout: `python -m repro.tracking.publisher [URI]`.

A process of its own, so that a run waits neither for the import of MLflow nor for a slow store, and so that what is
left to send after a run's end is sent although the command that ran it has gone.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from repro.errors import ReproError
from repro.record import RunFolder
from repro.tracking import restclient, sdkclient, store, view
from repro.tracking.client import TrackingClient, UnreachableError
from repro.tracking.delivery import AgainError, Gone
from repro.tracking.faults import explain
from repro.tracking.publication import NO_RUN, Publication, save
from repro.tracking.tracking import UNANSWERED, Order, Progress, Ready, Reply, State, state
from repro.tracking.upload import Amount

POLL = 0.2  # seconds
BACKOFF = (0.5, 5.0)  # seconds: after the first failure, at most
TELL_SECONDS = 0.5
SHIPPERS = 2  # runs whose files are sent at once
GRACE = 10.0  # seconds for which a store may still be unfit after the end of a run, or fail at one thing
log = logging.getLogger("repro.tracking.publisher")


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


class Outage:
    """A store that gave no answer: other runs need not wait for it too."""

    def __init__(self, error: UnreachableError, until: float) -> None:
        self.error, self.until = error, until


class Task:
    """An order, as far as it has come."""

    def __init__(
        self, order: Order, outages: dict[str, Outage] | None = None, tell: Callable[[Progress], None] | None = None
    ) -> None:
        self.order = order
        self.folder = RunFolder(Path(order.folder))
        self.run, self.uri = self.folder.path.name, order.uri or ""
        self.lock = FileLock(self.folder.path / ".tracking.lock", timeout=0)
        self.outages: dict[str, Outage] = {} if outages is None else outages
        self.tell = tell
        self.told = 0.0
        self.publication: Publication | None = None
        self.shipping: Future[None] | None = None
        self.verified = order.action != "verify"
        self.failures = 0
        self.reached: object = None  # by the publication, at the last failure
        self.next_try = 0.0
        self.give_up: float | None = None

    def step(self, now: float, *, last: bool, alone: bool = True) -> Reply | None:
        """Go on. A reply when nothing is left to do, or nothing can be done; `last`: nobody waits for the run's end.

        `alone`: no other run has to wait while this one does.
        """
        if now < self.next_try:
            return None
        last = last or self.order.action != "follow"
        try:
            done = self._advance(now, last=last, alone=alone)
        except Gone as gone:
            return self._reply(ok=True, reason=str(gone))
        except Timeout:
            busy = "another process is bringing it there right now"
            # of a run that goes on, that is the command which runs it: all is well
            if last and not self._over():
                return self._reply(ok=True, reason=busy)
            return self._failed(last, busy, (), grace=2 * GRACE)  # it gives up before, or is done
        except Exception as error:  # noqa: BLE001 - MLflow raises of everything, and no other run must end for it
            log.info("%s: %s: %s", self.run, type(error).__name__, error)
            reason, hints = explain(error, self.uri)
            self._note_failure(reason)
            reply = self._failed(last, reason, hints, grace=GRACE if isinstance(error, AgainError) else 0.0)
            if isinstance(error, UnreachableError):
                self.outages.setdefault(self.uri, Outage(error, self.next_try))
            return reply
        self.failures = 0
        return self._reply(ok=True) if done else None

    def _advance(self, now: float, *, last: bool, alone: bool) -> bool:
        """True when all is there that there is to be."""
        publication = self.publication = self.publication or self._begin(now)
        if self.shipping is None:
            self._mind_outage(now)
            over = publication.advance(last=last)
            if not self.verified:
                publication.verify()
                self.verified = True
            if not over:
                return last
            self.shipping = _threads().submit(publication.ship, self._progress)
        wait([self.shipping], POLL if alone else 0)
        if not self.shipping.done():
            return False
        ended, self.shipping = self.shipping, None
        ended.result()
        return True

    def _begin(self, now: float) -> Publication:
        if not self.folder.record.exists():
            raise Gone(NO_RUN)
        if not self.lock.is_locked:
            self.lock.acquire()
            self.folder.tidy(self.folder.tracking)
        planned = self.folder.read().planned
        self.run, self.uri = planned.run, self.order.uri or planned.tracking_uri or ""
        if not self.uri:  # MLflow would choose a store by itself
            raise Gone("tracking was off for this run")
        self._mind_outage(now)
        if self.uri.startswith("http") and state(self.folder) is None:  # a run may be over before the first time-out
            self._note_failure(f"the tracking server {self.uri} {UNANSWERED}")
        store.prepare(self.uri)
        return Publication(self.folder, self.uri, connect(self.uri))

    def _mind_outage(self, now: float) -> None:
        outage = self.outages.get(self.uri)
        if outage and now < outage.until:
            raise outage.error
        self.outages.pop(self.uri, None)

    def _progress(self, done: Amount, total: Amount) -> None:
        """Tell who waits for it of files on their way; in the thread that sends them."""
        now = time.monotonic()
        if self.tell and self.order.action != "follow" and now - self.told > TELL_SECONDS:
            self.told = now
            of = {"of_files": total.files, "of_bytes": total.bytes}
            self.tell(Progress(run=self.run, files=done.files, bytes=done.bytes, **of))

    def _note_failure(self, reason: str) -> None:
        """Let who asks for the run's place in MLflow know why it is not there."""
        known = self.publication.state if self.publication else state(self.folder)
        known = known or State(uri=self.uri)
        if known.uri != self.uri or known.failure == reason or not self.folder.record.exists():
            return
        known = msgspec.structs.replace(known, failure=reason)
        if self.publication:
            self.publication.state = known
        with contextlib.suppress(OSError):
            save(self.folder, known)

    def _failed(self, last: bool, reason: str, hints: tuple[str, ...], grace: float = 0.0) -> Reply | None:
        """Try again later, but not for ever once the run is over."""
        now = time.monotonic()  # the failure may have taken its time
        reached = self.publication.reached if self.publication else None
        if reached != self.reached:  # it goes on, with failures in between
            self.reached, self.failures, self.give_up = reached, 0, None
        self.failures += 1
        self.next_try = now + min(BACKOFF[0] * 2 ** (self.failures - 1), BACKOFF[1])
        if self.give_up is None and (last or self._over()):
            self.give_up = now + (GRACE if self.order.action == "follow" else grace)
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
            remarks=(*known.remarks, *view.remarks(known.oddities)) if known else (),
            repaired=self.publication.repaired if self.publication else (),
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
    """Runs the tasks in turns, in one thread: MLflow's stores want no more. Files are sent in others."""

    def __init__(self, orders: int, replies: int) -> None:
        self.orders, self.replies = orders, replies
        self.tasks: list[Task] = []
        self.outages: dict[str, Outage] = {}
        self.mouth = threading.Lock()
        self.open = True
        self.buffer = b""

    def run(self) -> None:
        """Obey until the orders end and every task is done with."""
        while self.open or self.tasks:
            self._listen(POLL)
            for task in list(self.tasks):
                alone = len(self.tasks) == 1
                if reply := task.step(time.monotonic(), last=not self.open, alone=alone):
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
        self.tasks += [Task(msgspec.json.decode(line, type=Order), self.outages, self._tell) for line in lines]

    def _tell(self, said: Reply | Progress) -> None:
        if isinstance(said, Reply):
            log.info("%s: %s", said.run, said.text)
        with self.mouth, contextlib.suppress(OSError):  # who asked may have gone
            os.write(self.replies, msgspec.json.encode(said) + b"\n")


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(SHIPPERS)


def connect(uri: str, environ: Mapping[str, str] = os.environ) -> TrackingClient:
    """The client for a store: our own for a server, MLflow's for all others."""
    if restclient.speaks(uri, environ):
        return restclient.RestClient(uri, environ)
    return sdkclient.SdkClient(store.with_password(uri, environ))


if __name__ == "__main__":
    main()
