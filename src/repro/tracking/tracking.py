"""Run folders -> MLflow, through a process of its own: importing MLflow takes seconds, and a run waits for none of it.

The process is `repro.tracking.publisher`; here is how to start it, to tell it of runs and to hear what became of them.
Nothing here imports mlflow.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from repro.errors import BadInputError, EnvironmentUnfitError, ReproError
from repro.experiment import Value
from repro.project import Project, ignored_folder
from repro.record import RunFolder
from repro.tracking import store
from repro.tracking.journal import Position
from repro.tracking.story import Child
from repro.verdict import Level

CATCH_UP_SECONDS = 2.0
SYNC_SECONDS = 3600.0  # a large upload takes its time
LOG_LIMIT = 1 << 20  # bytes
UNANSWERED = "has not answered yet"


class State(Value, frozen=True, kw_only=True):
    """tracking.json: how much of a run MLflow has. It is ours to lose: without it, everything is sent again."""

    uri: str
    experiment_id: str = ""
    run: str = ""  # MLflow's id; "" until it has one
    positions: dict[str, Position] = msgspec.field(default_factory=dict)  # by the name of the journal file
    described: str = ""  # the state of the record whose tags, parameters and datasets are there
    verdict: str = ""  # that is there, of a run that reproduces another
    compared: bool = False  # with other runs of the same image spec
    ended: bool = False
    artifacts: bool = False
    below: dict[str, Child] = msgspec.field(default_factory=dict)  # nested runs and models, by the container's ids
    unread: int = 0  # journal lines that say nothing we know
    shipping: bool = False  # artifacts are on their way, so some may be there
    remarks: tuple[str, ...] = ()
    names: dict[str, dict[str, str]] = msgspec.field(
        default_factory=dict
    )  # kind -> ours -> MLflow's, where they differ
    oddities: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)  # what MLflow did not take as it was
    failure: str = ""  # why it is not further, at the last attempt


class Order(Value, frozen=True, kw_only=True):
    """A line to the publisher."""

    action: Literal["follow", "sync", "verify"]
    folder: str
    uri: str | None = None  # None: the record's


class Ready(Value, frozen=True, kw_only=True, tag="ready"):
    """The first line from the publisher: it has imported MLflow, which takes seconds."""


class Progress(Value, frozen=True, kw_only=True, tag="progress"):
    """A line from the publisher while it sends a run's files."""

    run: str
    files: int
    of_files: int
    bytes: int
    of_bytes: int


class Reply(Value, frozen=True, kw_only=True, tag="reply"):
    """A line from the publisher: what became of a run."""

    folder: str
    run: str
    ok: bool
    mlflow_run: str = ""
    experiment_id: str = ""
    uri: str = ""
    reason: str = ""  # why not, or why nothing was to be done
    hints: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()  # what was missing, and is there now

    @property
    def text(self) -> str:
        """One line for a person."""
        if not self.ok:
            missing = "not all of it is in MLflow" if self.mlflow_run else "not in MLflow"
            return f"{missing}: {self.reason}; `repro sync {self.run}` catches up"
        where = self.reason or place(self.uri, self.experiment_id, self.mlflow_run)
        return f"{where}; was missing: {', '.join(self.repaired)}" if self.repaired else where


def resolve_uri(configured: str | None, project: Project, environ: Mapping[str, str] = os.environ) -> str:
    """Where MLflow is: as configured, else MLFLOW_TRACKING_URI, else mlflow.db in the project.

    Raises:
        BadInputError: MLflow cannot keep runs there, or the configuration, which is recorded, holds a password.
    """
    if configured and store.has_password(configured):
        raise BadInputError(
            "tracking.uri holds a password, which would be written into every record",
            hints=["set MLFLOW_TRACKING_URI to it: what is recorded then is the address without the password"],
        )
    return store.resolve_uri(configured or environ.get("MLFLOW_TRACKING_URI"), project.root)


def state(folder: RunFolder) -> State | None:
    """How much of a run MLflow has; None when nobody told it, or when nobody can read what was noted."""
    try:
        return msgspec.json.decode(folder.tracking.read_bytes(), type=State)
    except (OSError, msgspec.MsgspecError):
        return None


def mlflow_run(folder: RunFolder) -> str:
    """MLflow's id of a run; "" while it has none."""
    known = state(folder)
    return known.run if known else ""


class _Verdict(msgspec.Struct, frozen=True):
    level: Level


class _Verification(msgspec.Struct, frozen=True):
    """What is of interest here in verification.json, whichever version of ours wrote it."""

    verdict: _Verdict | None = None


def outcome(folder: RunFolder) -> str:
    """What the comparison of a run with the one that it reproduces or repeats came to, as E5; "" without any."""
    try:
        found = msgspec.json.decode(folder.verification.read_bytes(), type=_Verification).verdict
    except (OSError, msgspec.MsgspecError):
        return ""
    return str(found.level) if found else ""


def complete(folder: RunFolder) -> bool:
    """Whether MLflow has all of a run that is over."""
    known = state(folder)
    return known is not None and known.ended and known.artifacts and known.verdict == outcome(folder)


def status(folder: RunFolder) -> str:
    """What a person should know of a run's place in MLflow, in one line."""
    known, record = state(folder), folder.read()
    if known is None or not known.run:
        if record.planned.tracking_uri is None:
            return "off"
        why = f" ({known.failure})" if known and known.failure else ""
        return f"not there yet{why}; `repro sync {record.planned.run}` catches up"
    where = place(known.uri, known.experiment_id, known.run)
    if known.failure:
        return f"{where}; not all of it is there: {known.failure}; `repro sync {record.planned.run}` catches up"
    if record.ended and not complete(folder):
        return f"{where}; still on its way: `repro sync {record.planned.run}` makes sure"
    return where


def place(uri: str, experiment_id: str, run: str) -> str:
    """Where to look at a run."""
    if uri.startswith("http"):
        return page(uri, experiment_id, run)
    return f"run {run}; `repro ui` shows it"


def page(base: str, experiment_id: str, run: str = "") -> str:
    """The address of a run's page, or of its experiment's list with useful columns, in the training view."""
    runs = f"{base}/#/experiments/{experiment_id}/runs"  # without workflowType MLflow opens its view of language models
    if run:
        return f"{runs}/{run}?workflowType=machine_learning"
    return f"{runs}?viewStateShareKey=repro&workflowType=machine_learning"


class Follower:
    """The parent's end of a publisher: it takes orders at any time, and never raises for what MLflow does."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path | None, *, quick: bool = False) -> None:
        self.process, self.log, self.quick = process, log, quick
        self._buffer = b""
        self._waiting: set[str] = set()  # paths of folders
        self._ready = False

    @classmethod
    def start(cls, project: Project, uri: str = "") -> Follower:
        """Start a publisher; with the `uri` of the runs to come it gets ready for that kind of store."""
        log: Path | None = None
        with contextlib.suppress(EnvironmentUnfitError, OSError):
            log = ignored_folder(project.scratch) / "logs" / "mlflow.log"
            log.parent.mkdir(exist_ok=True)
            if log.exists() and log.stat().st_size > LOG_LIMIT:
                log.unlink()
        with contextlib.ExitStack() as stack:
            stderr = stack.enter_context(log.open("ab")) if log else subprocess.DEVNULL
            process = subprocess.Popen(
                [sys.executable, "-m", "repro.tracking.publisher", uri],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(os.environ),
                cwd=log.parent if log else "/",  # never where a file of the user's could pass for a module
                start_new_session=True,  # Ctrl-C is meant for the run; the publisher records how it ended
            )
        return cls(process, log, quick=uri.startswith("http"))  # a server needs no import of mlflow

    def follow(self, folder: RunFolder, uri: str | None = None) -> None:
        """Show this run in MLflow, from now until its record says that it ended."""
        self._order(Order(action="follow", folder=_path(folder), uri=uri))

    def sync(self, folder: RunFolder, uri: str | None = None, *, verify: bool = False) -> None:
        """Bring MLflow up to date with this run as it is now; `verify`: look at everything that is there already."""
        self._order(Order(action="verify" if verify else "sync", folder=_path(folder), uri=uri))

    def _order(self, order: Order) -> None:
        self._waiting.add(order.folder)
        pipe = self.process.stdin
        if pipe and not pipe.closed:
            with contextlib.suppress(BrokenPipeError):  # it died: `wait` says so
                pipe.write(msgspec.json.encode(order) + b"\n")
                pipe.flush()

    def wait(
        self, seconds: float | None, folder: RunFolder | None = None, say: Callable[[Progress], None] | None = None
    ) -> list[Reply]:
        """What became of the runs, waiting at most `seconds` for those (or the one) that nothing is known of yet.

        Without `seconds`, two are enough for who has followed a run, and none are for who still imports MLflow. Of
        a run that MLflow does not take for now, the reply says why. The publisher goes on with it, and with the
        others, also after this process has ended. `say` hears of files on their way, for each of which the waiting
        begins anew.
        """
        if seconds is None:
            heard = self._wait(0.0, folder, say)
            heard += self._wait(CATCH_UP_SECONDS if self._ready or self.quick else 0.0, folder, say)
        else:
            heard = self._wait(seconds, folder, say)
        return heard + self._stuck(folder, waited=seconds != 0.0)

    def _stuck(self, folder: RunFolder | None, *, waited: bool) -> list[Reply]:
        """What its last failure says of each run (or the one) that nothing was heard of."""
        replies = []
        for path in [_path(folder)] if folder else sorted(self._waiting):
            known = state(RunFolder(Path(path))) if path in self._waiting else None
            if known and known.failure and (waited or not known.failure.endswith(UNANSWERED)):
                self._waiting.discard(path)
                replies.append(_reply(RunFolder(Path(path)), known.failure))
        return replies

    def _wait(self, seconds: float, folder: RunFolder | None, say: Callable[[Progress], None] | None) -> list[Reply]:
        until = time.monotonic() + seconds
        replies: list[Reply] = []
        while self._waiting if folder is None else _path(folder) in self._waiting:
            line = self._line(until)
            if line is None:
                break
            if not line:
                replies += [self._died(RunFolder(Path(path))) for path in self._waiting]
                self._waiting.clear()
                break
            heard = msgspec.json.decode(line, type=Ready | Progress | Reply)
            if isinstance(heard, Ready):
                self._ready = True
                continue
            if isinstance(heard, Progress):
                until = time.monotonic() + seconds
                if say:
                    say(heard)
                continue
            if heard.folder in self._waiting:  # else its last failure has been told
                self._waiting.discard(heard.folder)
                replies.append(heard)
        return replies

    def _line(self, until: float) -> bytes | None:
        """The next line; None when the time is up, b"" when there is none to come."""
        pipe = self.process.stdout
        while b"\n" not in self._buffer:
            if pipe is None or pipe.closed:
                return b""
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                return b""
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self, folder: RunFolder) -> Reply:
        last = ""
        if self.log:
            with contextlib.suppress(OSError):
                last = self.log.read_bytes().decode(errors="replace").rstrip().rpartition("\n")[2]
        hints = (f"its log: {self.log}",) if self.log else ()
        return _reply(folder, reason=f"MLflow's process ended early ({last})", hints=hints)

    def stop(self) -> None:
        """End the publisher now: what it has not sent yet is for the next time."""
        self.process.terminate()
        self.close()

    def close(self) -> None:
        """No more orders: the publisher finishes what it has, by itself, and ends."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self.process.poll() is None:
            threading.Thread(target=self.process.wait, daemon=True).start()  # no zombie in a long-lived program


def _store_now(folder: RunFolder, project: Project) -> str | None:
    """The store of a run; the project's own one moves with the project.

    A run that came from elsewhere names a server of whoever made it. Ours gets it, and no other one our credentials.
    """
    planned = folder.read().planned
    if planned.tracking_uri is not None and folder.elsewhere.exists():
        return resolve_uri(None, project)
    own = planned.tracking_uri == store.resolve_uri(None, Path(planned.project))
    return store.resolve_uri(None, project.root) if own else planned.tracking_uri


def _path(folder: RunFolder) -> str:
    return str(folder.path.absolute())


def _reply(folder: RunFolder, reason: str, hints: tuple[str, ...] = (), *, ok: bool = False) -> Reply:
    return Reply(folder=_path(folder), run=folder.path.name, ok=ok, reason=reason, hints=hints)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the publisher sees: short waits for a server, and nothing that would redirect MLflow."""
    defaults = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # it tries again by itself, and other runs need not wait
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    dropped = {"MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_ENABLE_ASYNC_LOGGING"}
    kept = {name: value for name, value in environ.items() if name not in dropped}
    if path := environ.get("PYTHONPATH"):
        kept["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in path.split(os.pathsep) if entry)
    return {**defaults, **kept}


def sync(
    folders: Iterable[RunFolder],
    project: Project,
    *,
    uri: str | None = None,
    seconds: float = SYNC_SECONDS,
    verify: bool = False,
    say: Callable[[Progress], None] | None = None,
) -> Iterator[Reply]:
    """Bring MLflow up to date with these runs, one after the other; a run that is there already stays as it is.

    `uri` names another store than the one that the runs were recorded with. With `verify`, all that should be there
    is compared with what is, and what is missing is sent. `seconds` without a word from MLflow are enough. Whoever
    stops in the middle loses nothing.
    """
    follower: Follower | None = None
    try:
        for folder in folders:
            try:
                wanted = uri or _store_now(folder, project)
            except ReproError as error:
                yield _reply(folder, error.what, error.hints)
                continue
            if wanted is None:
                yield _reply(folder, "tracking was off for this run", ok=True)
                continue
            follower = follower or Follower.start(project, wanted)
            follower.sync(folder, wanted, verify=verify)
            heard = {reply.folder: reply for reply in follower.wait(seconds, folder, say)}
            yield heard.get(_path(folder)) or _reply(folder, f"nothing heard for {seconds:g} s")
    except BaseException:  # who asked has gone, or does not want to wait any longer
        if follower:
            follower.stop()
        raise
    finally:
        if follower:
            follower.close()
