"""Plan -> a finished run: the container, its output, its end, and the record of it all on disk.

It decides nothing and needs the plan alone, so that it can happen on another machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from repro import terminal
from repro.engine import ContainerSpec, Engine, Exit, GpuRefusedError, command_not_found
from repro.errors import BadInputError, EngineUnreachableError, EnvironmentUnfitError
from repro.plan import Plan, gpus_text
from repro.record import End, Ended, FileUsed, Record, RunFolder, Started

RECONNECT_SECONDS = 15.0
MISSED_BYTES = 16 << 10
STOPPED_BY_USER = "stopped by the user"


def prepare(plan: Plan) -> RunFolder:
    """Make the run folder, with everything that the container will see in it.

    Raises:
        EnvironmentUnfitError: the disk does not take it.
        BadInputError: a run lies there already.
    """
    import yaml

    folder = RunFolder(Path(plan.folder))
    if folder.record.exists():
        raise BadInputError(f"{folder.path} holds a run already", hints=["choose another hydra.run.dir"])
    try:
        for path in (folder.outputs, folder.journal, folder.logs):
            path.mkdir(parents=True, exist_ok=True)
        folder.config_json.write_bytes(msgspec.json.encode(plan.planned.config))
        folder.config_yaml.write_text(yaml.safe_dump(plan.planned.config, sort_keys=False, allow_unicode=True))
        if plan.diff:
            folder.diff.write_text(plan.diff)
        for name, text in plan.inputs.items():
            (folder.inputs / name).parent.mkdir(parents=True, exist_ok=True)
            (folder.inputs / name).write_text(text)
        folder.write(Record(planned=plan.planned))
    except OSError as error:
        discard(folder)
        raise EnvironmentUnfitError(
            f"the run folder {folder.path} cannot be written",
            evidence=[str(error)],
            hints=["free some space or make it writable; REPRO_RUNS_DIR or hydra.run.dir puts runs elsewhere"],
        ) from error
    return folder


def discard(folder: RunFolder) -> None:
    """Remove what `prepare` made: no run took place."""
    for path in (folder.outputs, folder.journal, folder.logs, folder.inputs):
        shutil.rmtree(path, ignore_errors=True)
    for file in (folder.record, folder.reserve, folder.config_json, folder.config_yaml, folder.diff):
        file.unlink(missing_ok=True)
    if folder.path.is_dir() and not any(folder.path.iterdir()):
        folder.path.rmdir()


def execute(
    plan: Plan,
    engine: Engine,
    *,
    started: Callable[[RunFolder, Record], None] = lambda _folder, _record: None,
    output: Callable[[bytes], None] = lambda _chunk: None,
    say: Callable[[str], None] = lambda _line: None,
) -> Record:
    """Run the plan's container to its end and return the finished record, which is on disk as well.

    `started` is called when the container runs, `output` with what it prints, in another thread.
    Ctrl-C (KeyboardInterrupt) stops the container and ends as a record that says `killed`.

    Raises:
        EnvironmentUnfitError: the container could not be started; no run took place and nothing is left.
    """
    folder = prepare(plan)
    try:
        container, gpus, notices = _launch(plan.container, engine, cpu_fallback=plan.cpu_fallback)
    except BaseException:
        discard(folder)
        raise
    at = datetime.now(timezone.utc)
    record = Record(planned=plan.planned, started=Started(at=at, container=container, gpus=gpus, notices=notices))
    folder.write(record)
    for notice in notices:
        say(notice)
    started(folder, record)
    ended = _supervise(plan, engine, container, folder, output, say)
    if refusal := _init_refusal(ended, folder):
        discard(folder)
        raise command_not_found(refusal)
    record = msgspec.structs.replace(record, ended=ended)
    folder.write(record)
    return record


def converse(plan: Plan, engine: Engine, command: tuple[str, ...], say: Callable[[str], None]) -> int:
    """The plan's container with another command and the user's terminal; the exit code. The outputs stay.

    Raises:
        EnvironmentUnfitError: the container could not be started; nothing is left.
    """
    folder = prepare(plan)
    folder.record.unlink()  # what is done by hand is no run
    spec = msgspec.structs.replace(plan.container, command=command, interactive=True)
    try:
        container, _gpus, notices = _launch(spec, engine, cpu_fallback=plan.cpu_fallback)
    except BaseException:
        discard(folder)
        raise
    for notice in notices:
        say(notice)
    try:
        terminal.converse(engine, container)
        exited = engine.wait(container)
    finally:
        engine.remove(container)
    return exited.code if exited else 0


def _launch(spec: ContainerSpec, engine: Engine, *, cpu_fallback: bool) -> tuple[str, str, tuple[str, ...]]:
    """Create and start a container: its id, the GPUs that it has, what to tell the user.

    With `cpu_fallback`, an engine without GPUs gets one without them in its place. What cannot be started is removed.
    """
    container = engine.create(spec)
    try:
        engine.start(container)
    except GpuRefusedError as refusal:
        engine.remove(container)
        if not cpu_fallback:
            raise
        why = "; ".join(refusal.evidence).splitlines()[-1]
        notice = f"NO GPU: this engine offers none, so this is on the CPU ({why})"
        container, gpus, _ = _launch(msgspec.structs.replace(spec, gpus=()), engine, cpu_fallback=False)
        return container, gpus, (notice,)
    except BaseException:
        engine.remove(container)
        raise
    return container, gpus_text(spec.gpus).replace("id ", ""), ()


def _supervise(
    plan: Plan,
    engine: Engine,
    container: str,
    folder: RunFolder,
    output: Callable[[bytes], None],
    say: Callable[[str], None],
) -> Ended:
    pump = _Pump(engine, container, folder.output_log, output)
    pump.start()
    stopped: End | None = None
    exited: Exit | None = None
    try:
        exited = _wait(engine, container, plan.time_limit, say)
        if exited is None:
            stopped = End.TIMEOUT
            say(f"time limit of {plan.time_limit:g} s reached: stopping the container")
            engine.stop(container, plan.stop_grace)
    except KeyboardInterrupt:
        stopped = End.KILLED
        _interrupt(engine, container, plan.stop_grace, say)
    except EngineUnreachableError as error:
        pump.give_up()
        return _ended(End.LOST, None, f"the engine went away and did not come back: {error.what}", folder)
    exited = exited or engine.wait(container)
    pump.finish()
    engine.remove(container)
    assert exited is not None  # noqa: S101 - `wait` without a time limit ends with an exit
    end, reason = verdict(exited, stopped, plan)
    if pump.disk_error:
        reason += f"; the disk of the run folder does not take more: {pump.disk_error}"
        folder.reserve.unlink(missing_ok=True)  # the record and the last lines are what it is for
        with contextlib.suppress(OSError), folder.output_log.open("ab") as log:
            log.write(pump.missed)
    return _ended(end, exited.code, reason, folder)


def _init_refusal(ended: Ended, folder: RunFolder) -> str:
    """What the container's init says when it cannot start the command; "" when the command did start."""
    if ended.exit_code not in (126, 127) or not folder.output_log.is_file():
        return ""
    text = folder.output_log.read_text(errors="replace")[:1000]
    return text.strip() if text.startswith("[FATAL tini") else ""


def _ended(end: End, exit_code: int | None, reason: str, folder: RunFolder) -> Ended:
    return Ended(
        at=datetime.now(timezone.utc), end=end, exit_code=exit_code, reason=reason, outputs=manifest(folder.outputs)
    )


def _wait(engine: Engine, container: str, time_limit: float | None, say: Callable[[str], None]) -> Exit | None:
    """Wait for the end, through a restart of the engine that keeps its containers; None: the time is up."""
    deadline = None if time_limit is None else time.monotonic() + time_limit
    while True:
        try:
            left = None if deadline is None else max(0.1, deadline - time.monotonic())
            return engine.wait(container, timeout=left)
        except EngineUnreachableError:
            say(f"the engine does not answer; waiting up to {RECONNECT_SECONDS:g} s for it to come back")
            _reconnect(engine, container)


def _reconnect(engine: Engine, container: str) -> None:
    give_up = time.monotonic() + RECONNECT_SECONDS
    while True:
        try:
            engine.exit(container)
        except EngineUnreachableError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)
        else:
            return


def _interrupt(engine: Engine, container: str, grace: float, say: Callable[[str], None]) -> None:
    say(f"stopping the container (up to {grace:g} s; Ctrl-C again kills it)")
    try:
        engine.stop(container, grace)
    except KeyboardInterrupt:
        engine.kill(container)


def verdict(exited: Exit, stopped: End | None, plan: Plan) -> tuple[End, str]:
    """How the run ended and why, in words; `stopped` is what we did to it."""
    if stopped is End.KILLED:
        return End.KILLED, STOPPED_BY_USER
    if stopped is End.TIMEOUT:
        return End.TIMEOUT, f"stopped at its time limit of {plan.time_limit:g} s (resources.time_limit)"
    if exited.code == 0:
        return End.FINISHED, "exit code 0"
    if exited.oom:
        limit = f" at {plan.container.memory / 2**30:g} GiB" if plan.container.memory else ""
        return End.OOM, f"out of memory{limit}: raise resources.memory, or use less"
    if exited.code in (137, 143):
        signal = "SIGKILL" if exited.code == 137 else "SIGTERM"
        return End.KILLED, f"ended from outside by {signal}"
    return End.FAILED, f"exit code {exited.code}" + (f": {exited.error}" if exited.error else "")


def manifest(outputs: Path) -> tuple[FileUsed, ...]:
    """Path, size and sha256 of every regular file below `outputs`, sorted by path."""
    files = []
    for path in sorted(outputs.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
            relative = path.relative_to(outputs).as_posix()
            files.append(FileUsed(path=relative, size=path.stat().st_size, sha256=digest.hexdigest()))
    return tuple(files)


def _digest(file: Any) -> Any:
    hasher = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := file.read(1 << 20):
        hasher.update(block)
    return hasher


class _Pump(threading.Thread):
    """Copies the container's output to its log and to the caller, also through a restart of the engine."""

    def __init__(self, engine: Engine, container: str, log: Path, output: Callable[[bytes], None]) -> None:
        super().__init__(daemon=True, name="container output")
        self.engine, self.container, self.log, self.output = engine, container, log, output
        self.delivered = 0
        self.disk_error = ""
        self.missed = b""  # the last of what the log has no room for
        self.over = threading.Event()

    def run(self) -> None:
        with self.log.open("wb", buffering=0) as log:
            while not self._copy(log) and not self.over.wait(0.5):
                pass

    def _copy(self, log: Any) -> bool:
        """One stream from the container's first byte on, without those delivered before; True at its true end."""
        skip = self.delivered
        try:
            for chunk in self.engine.output(self.container):
                fresh = chunk[skip:]
                skip = max(0, skip - len(chunk))
                self.delivered += len(fresh)
                if fresh:
                    self._write(log, fresh)
                    self.output(fresh)
            # an engine that is killed ends its streams like one that is done
            return self.engine.exit(self.container) is not None
        except EnvironmentUnfitError:
            return False

    def _write(self, log: Any, chunk: bytes) -> None:
        try:
            log.write(chunk)
        except OSError as error:  # a full disk must not stop the run
            self.disk_error = str(error)
            self.missed = (self.missed + chunk)[-MISSED_BYTES:]

    def finish(self) -> None:
        """The container is over: let what it printed last arrive."""
        self.join(timeout=10)
        self.over.set()

    def give_up(self) -> None:
        self.over.set()
