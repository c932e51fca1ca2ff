"""Plan -> a finished run: the container, its output, its end, and the record of it all on disk.

It decides nothing and needs the plan alone, so that it can happen on another machine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec

from repro.engines.answers import Found
from repro.engines.engine import ContainerSpec, Engine
from repro.engines.refusal import GpuRefusedError
from repro.errors import BadInputError, EnvironmentUnfitError, ReproError
from repro.project import Project
from repro.record import Record, RunFolder, Started
from repro.running import lease, ownership, terminal
from repro.running.keeping import Keeper, boot, discard
from repro.running.lease import Lease
from repro.running.plan import Plan, gpus_text, start_command
from repro.running.stopping import CTRL_C, ask_to_stop, stop_request
from repro.secrets import secretsfolder

CREATE_SECONDS = 3.0  # that an engine takes to make a container for somebody who has stopped listening


def prepare(plan: Plan) -> Lease:
    """Make the run folder, with everything that the container will see in it; the run is ours to keep.

    Raises:
        EnvironmentUnfitError: the disk does not take it.
        BadInputError: something lies there already.
    """
    folder = RunFolder(Path(plan.folder))
    if folder.path.exists() and not _is_empty(folder.path):  # where a run does not start, all of it is removed again
        raise BadInputError(
            f"the folder for this run is not empty: {folder.path}",
            hints=["choose another hydra.run.dir; left alone, it is a new folder below runs/"],
        )
    held: Lease | None = None
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        while held is None:  # first of all: what has no lease is found by nobody; who looks has it for a moment
            held = lease.take(folder)
        held.note("starting")  # on this machine
        for path in (folder.outputs, folder.journal, folder.logs):
            path.mkdir(exist_ok=True)
        _fill(folder, plan)
    except BaseException as error:
        discard(folder)
        if held:
            held.release()
        if not isinstance(error, OSError):
            raise
        raise EnvironmentUnfitError(
            f"the run folder {folder.path} cannot be written",
            evidence=[str(error)],
            hints=["free some space or make it writable; REPRO_RUNS_DIR or hydra.run.dir puts runs elsewhere"],
        ) from error
    return held


def _fill(folder: RunFolder, plan: Plan) -> None:
    import yaml

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


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def launch(plan: Plan, engine: Engine) -> tuple[Lease, Record]:
    """Start the plan's container. Its run is on disk, and ours to keep.

    Raises:
        EnvironmentUnfitError: it could not be started; no run took place and nothing is left.
    """
    held = prepare(plan)
    try:
        remarks = _provide_secrets(plan)
        container, gpus, notices = _launch(plan.container, engine, cpu_fallback=plan.cpu_fallback)
        notices = (*remarks, *notices)
        at = datetime.now(timezone.utc)
        started = _started(engine, container=container, at=at, gpus=gpus, notices=notices)
        record = Record(planned=plan.planned, started=started)
        held.folder.write(record)
    except BaseException as error:
        _undo(plan, engine, held, error)
        raise
    return held, record


def _find(engine: Engine, name: str, *, until: datetime) -> Found | None:
    """A container that somebody asked for and did not wait for: the engine may still be making it."""
    while (found := engine.find(name)) is None and datetime.now(timezone.utc) < until:
        time.sleep(0.1)
    return found


def _started(engine: Engine, *, container: str, at: datetime, gpus: str, notices: tuple[str, ...]) -> Started:
    return Started(
        at=at,
        container=container,
        gpus=gpus,
        notices=notices,
        engine=engine.id,
        endpoint=engine.host_url,
        boot=boot(),
    )


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
        LeftError: the engine went away in the middle; the run is still open.
    """
    held, record = launch(plan, engine)

    def begin() -> None:
        for notice in record.started.notices if record.started else ():
            say(notice)
        started(held.folder, record)

    keeper = Keeper(held, record, engine, say)
    try:
        return keeper.keep(begin=begin, output=output)
    except BaseException as error:  # an engine that is away, or a mistake of ours, is no reason to end the run
        if held.folder.lease.exists():
            if isinstance(error, KeyboardInterrupt) and not keeper.over:
                ask_to_stop(held.folder, CTRL_C)
            hand_over(held, Project(Path(plan.planned.project)))
        raise


def hand_over(held: Lease, project: Project) -> None:
    """Let a process of its own keep the run from now on."""
    held.release()
    lease.spawn(held.folder, project)


def recover(held: Lease, engine: Engine) -> Record | None:
    """The record of a run whose command was killed around the start of its container; None: no run took place.

    Nothing is left of a run that did not take place.
    """
    folder = held.folder
    if not folder.record.exists():
        if not folder.outputs.is_dir() or _is_empty(folder.outputs):
            discard(folder)
        return None
    record = folder.read()
    if record.started:
        return record
    name = f"repro-{record.planned.run}"
    found = _find(engine, name, until=record.planned.created + timedelta(seconds=CREATE_SECONDS))
    if found is None or found.started is None or stop_request(folder):
        if found:
            engine.remove(found.id)
        secretsfolder.remove(record.planned.run)
        discard(folder)
        return None
    record = _adopted(record, found, engine)
    folder.write(record)
    return record


def _adopted(record: Record, found: Found, engine: Engine) -> Record:
    assert found.started is not None  # noqa: S101 - `recover` has looked
    gpus = gpus_text(found.gpus).replace("id ", "")
    started = _started(engine, container=found.id, at=found.started, gpus=gpus, notices=())
    return msgspec.structs.replace(record, started=started)


def _undo(plan: Plan, engine: Engine, held: Lease, error: BaseException) -> None:
    """No run took place: the container goes, by its name, since its id may not have arrived yet."""
    ask_to_stop(held.folder, "it could not be started")  # should we be interrupted here, too
    try:
        if not isinstance(error, ReproError):  # the engine has not answered yet
            _find(engine, plan.container.name, until=datetime.now(timezone.utc) + timedelta(seconds=CREATE_SECONDS))
        engine.remove(plan.container.name)
    except EnvironmentUnfitError:
        if held.folder.lease.exists():  # it may be there all the same: whoever sees the engine again removes it
            hand_over(held, Project(Path(plan.planned.project)))
            return
    secretsfolder.remove(plan.planned.run)
    discard(held.folder)
    held.release()


def _provide_secrets(plan: Plan) -> tuple[str, ...]:
    """The run's secrets, where its container will find them; remarks for the user."""
    if not plan.secrets:
        return ()
    return secretsfolder.provide(plan.secrets, Path(plan.secrets_folder), Path(plan.planned.project))


def converse(
    plan: Plan, engine: Engine, command: tuple[str, ...], say: Callable[[str], None], started: Callable[[], None]
) -> int:
    """The plan's container with another command and the user's terminal; the exit code. The outputs stay.

    `started` is called when the container runs.

    Raises:
        EnvironmentUnfitError: the container could not be started; nothing is left.
    """
    held = prepare(plan)
    for file in (held.folder.record, held.folder.reserve):  # what is done by hand is no run
        file.unlink(missing_ok=True)
    held.end()
    command = start_command(command, plan.secrets)  # no time limit: somebody sits there
    spec = msgspec.structs.replace(plan.container, command=command, interactive=True)
    with lease.held(held.folder.shell), contextlib.ExitStack() as sockets:
        lines = []  # to the container; the last one counts

        def created(container: str) -> None:
            lines.append(sockets.enter_context(contextlib.closing(engine.attach(container))))

        try:
            for remark in _provide_secrets(plan):
                say(remark)
            container, _gpus, notices = _launch(spec, engine, cpu_fallback=plan.cpu_fallback, created=created)
        except BaseException as error:
            _undo(plan, engine, held, error)
            raise
        started()
        for notice in notices:
            say(notice)
        try:
            terminal.converse(engine, container, lines[-1])
            exited = engine.wait(container)
        finally:
            engine.remove(container)
            secretsfolder.remove(plan.planned.run)
            if left := ownership.settle(Record(planned=plan.planned), held.folder, engine, say):
                say(left)
    return exited.code if exited else 0


def _launch(
    spec: ContainerSpec, engine: Engine, *, cpu_fallback: bool, created: Callable[[str], None] = lambda _container: None
) -> tuple[str, str, tuple[str, ...]]:
    """Create and start a container, and call `created` in between: its id, the GPUs that it has, what to tell the user.

    With `cpu_fallback`, an engine without GPUs gets one without them in its place. `_undo` is for what is not started.
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
    return container, gpus_text(spec.gpus).replace("id ", ""), ()
