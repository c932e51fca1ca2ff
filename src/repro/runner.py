"""Plan -> a finished run: the container, its output, its end, and the record of it all on disk.

It decides nothing and needs the plan alone, so that it can happen on another machine.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from repro import manifest, ownership, quota, terminal
from repro.engine import ContainerSpec, Engine, Exit
from repro.errors import BadInputError, EngineUnreachableError, EnvironmentUnfitError
from repro.experiment import Value
from repro.manifest import Listing
from repro.plan import Plan, gpus_text
from repro.pump import Echo, Pump
from repro.quota import Quota
from repro.record import End, Ended, Peaks, Record, RunFolder, Started
from repro.refusal import ContainerGoneError, GpuRefusedError, command_not_found
from repro.resources import Sampler

RECONNECT_SECONDS = 15.0
INIT_REFUSAL = re.compile(r"\[FATAL tini|ERROR \(catatonit:\d+\): failed to exec ")  # Docker's init, and Podman's
STOPPED_BY_USER = "stopped by the user"


def prepare(plan: Plan) -> RunFolder:
    """Make the run folder, with everything that the container will see in it.

    Raises:
        EnvironmentUnfitError: the disk does not take it.
        BadInputError: something lies there already.
    """
    import yaml

    folder = RunFolder(Path(plan.folder))
    if folder.path.exists() and not _is_empty(folder.path):  # where a run does not start, all of it is removed again
        raise BadInputError(
            f"the folder for this run is not empty: {folder.path}",
            hints=["choose another hydra.run.dir; left alone, it is a new folder below runs/"],
        )
    try:
        for path in (folder.outputs, folder.journal, folder.logs):
            path.mkdir(parents=True, exist_ok=True)
        folder.config_json.write_bytes(msgspec.json.encode(plan.planned.config))
        text = yaml.safe_dump(plan.planned.config, sort_keys=False, allow_unicode=True)
        folder.config_yaml.write_text(text, encoding="utf-8")
        if plan.diff:
            folder.diff.write_text(plan.diff, encoding="utf-8")
        for name, text in plan.inputs.items():
            (folder.inputs / name).parent.mkdir(parents=True, exist_ok=True)
            (folder.inputs / name).write_text(text, encoding="utf-8")
        folder.write(Record(planned=plan.planned))
        ownership.shut(plan.planned, folder)
    except OSError as error:
        discard(folder)
        raise EnvironmentUnfitError(
            f"the run folder {folder.path} cannot be written",
            evidence=[str(error)],
            hints=["free some space or make it writable; REPRO_RUNS_DIR or hydra.run.dir puts runs elsewhere"],
        ) from error
    except BaseException:
        discard(folder)
        raise
    return folder


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def discard(folder: RunFolder) -> None:
    """Remove what `prepare` made: no run took place."""
    for path in (folder.outputs, folder.journal, folder.logs, folder.inputs):
        shutil.rmtree(path, ignore_errors=True)
    for file in (
        folder.record,
        folder.reserve,
        folder.config_json,
        folder.config_yaml,
        folder.diff,
        folder.ignore,
        folder.resources,
    ):
        file.unlink(missing_ok=True)
    if _is_empty(folder.path):
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
        at = datetime.now(timezone.utc)
        record = Record(planned=plan.planned, started=Started(at=at, container=container, gpus=gpus, notices=notices))
        folder.write(record)
    except BaseException:
        _undo(plan, engine, folder)
        raise
    pump, echo = Pump(engine, container, folder.output_log), Echo(folder.output_log, output)
    sampler = Sampler(engine, container, folder, record)
    limit = manifest.wanted(plan.planned).limit
    room = Quota(folder, container, limit, stop=lambda grace: engine.stop(container, min(grace, plan.stop_grace)))

    def begin() -> None:
        pump.start()
        echo.start()
        sampler.start()
        room.start()
        for notice in notices:
            say(notice)
        started(folder, record)

    try:
        ending = _supervise(plan, engine, container, begin, say)
        too_much = room.finish()
        if too_much and ending.end not in (End.TIMEOUT, End.LOST) and ending.reason != STOPPED_BY_USER:
            pump.give_up()  # of a flood, the engine holds far more than may be written here
            ending = _Ending(end=End.FAILED, exit_code=ending.exit_code, reason=too_much)
        record = _conclude(record, ending, folder, pump, sampler.finish(), engine=engine, say=say)
    except BaseException as error:
        _release(engine, container, say)
        ownership.settle(record, folder, engine, say)
        _record_failure(record, folder, error)
        raise
    finally:
        for thread in (echo, sampler, room):
            thread.over.set()
    if not pump.is_alive():  # else the engine holds the only copy of some output
        _release(engine, container, say)
    echo.finish()
    return record


class _Ending(Value, frozen=True, kw_only=True):
    """What became of the container."""

    end: End
    exit_code: int | None
    reason: str


def _undo(plan: Plan, engine: Engine, folder: RunFolder) -> None:
    """No run took place: the container goes, by its name, since its id may not have arrived yet."""
    with contextlib.suppress(EnvironmentUnfitError):
        engine.remove(plan.container.name)
    discard(folder)


def _release(engine: Engine, container: str, say: Callable[[str], None]) -> None:
    try:
        engine.remove(container)
    except EnvironmentUnfitError as error:
        why = " ".join([error.what, *error.evidence])
        say(f"the container may still be there ({why}); `docker rm -f {container}` removes it")


def _record_failure(record: Record, folder: RunFolder, error: BaseException) -> None:
    """Something else than the run ended it: a third Ctrl-C, a failure of ours. The record says that it is over."""
    if folder.record.exists() and folder.read().ended is None:
        why = STOPPED_BY_USER if isinstance(error, KeyboardInterrupt) else f"repro itself failed: {error!r}"
        ended = Ended(at=datetime.now(timezone.utc), end=End.KILLED, exit_code=None, reason=why, outputs=())
        folder.write(msgspec.structs.replace(record, ended=ended))


def converse(
    plan: Plan, engine: Engine, command: tuple[str, ...], say: Callable[[str], None], started: Callable[[], None]
) -> int:
    """The plan's container with another command and the user's terminal; the exit code. The outputs stay.

    `started` is called when the container runs.

    Raises:
        EnvironmentUnfitError: the container could not be started; nothing is left.
    """
    folder = prepare(plan)
    for file in (folder.record, folder.reserve):  # what is done by hand is no run
        file.unlink(missing_ok=True)
    spec = msgspec.structs.replace(plan.container, command=command, interactive=True)
    with contextlib.ExitStack() as sockets:
        lines = []  # to the container; the last one counts

        def created(container: str) -> None:
            lines.append(sockets.enter_context(contextlib.closing(engine.attach(container))))

        try:
            container, _gpus, notices = _launch(spec, engine, cpu_fallback=plan.cpu_fallback, created=created)
        except BaseException:
            _undo(plan, engine, folder)
            raise
        started()
        for notice in notices:
            say(notice)
        try:
            terminal.converse(engine, container, lines[-1])
            exited = engine.wait(container)
        finally:
            engine.remove(container)
            if left := ownership.settle(Record(planned=plan.planned), folder, engine, say):
                say(left)
    return exited.code if exited else 0


def _launch(
    spec: ContainerSpec, engine: Engine, *, cpu_fallback: bool, created: Callable[[str], None] = lambda _container: None
) -> tuple[str, str, tuple[str, ...]]:
    """Create and start a container, and call `created` in between: its id, the GPUs that it has, what to tell the user.

    With `cpu_fallback`, an engine without GPUs gets one without them in its place. What cannot be started is removed.
    """
    container = ""  # an engine may refuse GPUs before it creates one, or when it starts it
    try:
        container = engine.create(spec)
        created(container)
        engine.start(container)
    except GpuRefusedError as refusal:
        if container:
            engine.remove(container)
        if not cpu_fallback:
            raise
        why = "; ".join(refusal.evidence).splitlines()[-1]
        notice = f"NO GPU: this engine offers none, so this is on the CPU ({why})"
        container, gpus, _ = _launch(
            msgspec.structs.replace(spec, gpus=()), engine, cpu_fallback=False, created=created
        )
        return container, gpus, (notice,)
    except BaseException:
        if container:
            engine.remove(container)
        raise
    return container, gpus_text(spec.gpus).replace("id ", ""), ()


def _supervise(
    plan: Plan, engine: Engine, container: str, begin: Callable[[], None], say: Callable[[str], None]
) -> _Ending:
    """Wait for the container's end, or bring it about: at the time limit, at Ctrl-C."""
    stopped: End | None = None
    exited: Exit | None = None
    try:
        try:
            begin()
            exited = _wait(engine, container, plan.time_limit, say)
            if exited is None:
                stopped = End.TIMEOUT
                say(f"time limit of {plan.time_limit:g} s reached: stopping the container")
                engine.stop(container, plan.stop_grace)
        except KeyboardInterrupt:
            if exited is None:  # else it was over already
                stopped = stopped or End.KILLED
                _interrupt(engine, container, plan.stop_grace, say)
        exited = exited or _wait(engine, container, None, say)
    except ContainerGoneError:
        return _Ending(
            end=End.LOST, exit_code=None, reason="its container is gone: somebody, or its engine, removed it"
        )
    except EngineUnreachableError as error:
        reason = f"the engine went away and did not come back: {error.what}"
        return _Ending(end=End.LOST, exit_code=None, reason=reason)
    assert exited is not None  # noqa: S101 - `_wait` without a time limit ends with an exit
    end, reason = verdict(exited, stopped, plan)
    return _Ending(end=end, exit_code=exited.code, reason=reason)


def _conclude(
    record: Record,
    ending: _Ending,
    folder: RunFolder,
    pump: Pump,
    peaks: Peaks | None,
    *,
    engine: Engine,
    say: Callable[[str], None],
) -> Record:
    """The finished record, on disk.

    Raises:
        CommandNotFoundError: no run took place, and nothing is left of it.
    """
    at = datetime.now(timezone.utc)
    end, remarks = ending.end, [ending.reason]
    if ending.end is End.LOST:
        pump.give_up()
    if not pump.finish():
        remarks.append("the end of its output is still with the engine: `docker logs` has it")
    if refusal := _init_refusal(ending, folder):
        discard(folder)
        raise command_not_found(refusal)
    if pump.disk_error or end is End.FAILED:
        remarks.append(quota.lack_of_room(folder, ours=pump.disk_error))
    if pump.disk_error:
        end = End.FAILED if end is End.FINISHED else end  # what it said is part of what it was to do
        folder.reserve.unlink(missing_ok=True)  # the record and the last lines are what it is for
        with contextlib.suppress(OSError), folder.output_log.open("ab") as log:
            log.write(pump.missed)
    remarks.append(ownership.settle(record, folder, engine, say))

    def write(listing: Listing) -> Record:
        ended = Ended(
            at=at,
            end=end,
            exit_code=ending.exit_code,
            reason="; ".join(filter(None, remarks)),
            outputs=listing.files,
            ignored=listing.ignored,
            peaks=peaks,
        )
        finished = msgspec.structs.replace(record, ended=ended)
        folder.write(finished)
        return finished

    try:
        listing = manifest.of(folder.outputs, manifest.wanted(record.planned).ignore, say)
    except KeyboardInterrupt:
        remarks.append("interrupted while its outputs were listed: they are all there, but not in this record")
        write(Listing())
        raise
    remarks.append(listing.remark)
    try:
        return write(listing)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        remarks.append(f"the disk has no room for the list of its {len(listing.files):,} outputs: they are all there")
        return write(Listing(ignored=listing.ignored))


def _init_refusal(ended: _Ending, folder: RunFolder) -> str:
    """What the container's init says when it cannot start the command; "" when the command did start."""
    if ended.exit_code not in (1, 126, 127) or not folder.output_log.is_file():
        return ""
    with folder.output_log.open(encoding="utf-8", errors="replace") as log:
        text = log.read(1000)
    return text.strip() if INIT_REFUSAL.match(text) else ""


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
        return End.KILLED, _signal(exited, plan.container.memory)
    return End.FAILED, f"exit code {exited.code}" + (f": {exited.error}" if exited.error else "")


def _signal(exited: Exit, memory: int | None) -> str:
    if exited.code == 143:
        return "ended from outside by SIGTERM"
    if exited.oom is None and memory:
        limit = f"its limit of {memory / 2**20:,.0f} MiB (resources.memory)"
        return f"ended by SIGKILL, from outside or at {limit}: the engine does not tell which"
    return "ended from outside by SIGKILL"
