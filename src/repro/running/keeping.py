"""A started run -> its finished record, whoever keeps it: the command that started it, or one that took it over.

Everything needed is in the run folder and with the engine, so that it does not matter who dies in between.
"""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec

from repro import identity, manifest, tolerant
from repro.engines.answers import Exit
from repro.engines.engine import Engine
from repro.engines.refusal import STARTER, CommandNotFoundError, ContainerGoneError, command_not_found
from repro.errors import EngineUnreachableError, EnvironmentUnfitError
from repro.experiment import Resources, Value
from repro.manifest import Listing
from repro.record import End, Ended, Peaks, Record, RunFolder
from repro.running import harvest, lease, ownership, quota
from repro.running.ending import UNKNOWN_CODE, Circumstance, verdict
from repro.running.harvest import Harvest
from repro.running.lease import Lease
from repro.running.pump import Echo, Pump
from repro.running.quota import Quota
from repro.running.resources import Sampler
from repro.running.stopping import CTRL_C, LATE_SECONDS, ask_to_stop, overdue, stop_request
from repro.secrets import secretsfolder

ENGINE_SECONDS = 60.0  # that a command waits for an engine which has gone away
ENGINE_MOMENT = timedelta(seconds=15)  # in which an engine that ends, or begins, ends its containers
SLICE_SECONDS = 30.0  # of one question to the engine: a connection may die without a word
# Docker's init, Podman's, and ours
INIT_REFUSAL = re.compile(rf"\[FATAL tini|ERROR \(catatonit:\d+\): failed to exec |{STARTER}: ")
BOOT = Path("/proc/sys/kernel/random/boot_id")


Absence = tuple[datetime, datetime | None]  # when it went, and came back


class LeftError(EngineUnreachableError):
    """The engine went away: the run may go on there, and its record stays open until the engine is back."""


class _Ending(Value, frozen=True, kw_only=True):
    """What became of the container."""

    end: End
    exit_code: int | None
    reason: str
    at: datetime
    gone: bool = False  # the container


class Keeper:
    """Watches one container to its end. `say` is told what a user should know meanwhile."""

    def __init__(
        self,
        held: Lease,
        record: Record,
        engine: Engine,
        say: Callable[[str], None],
        *,
        patience: float = ENGINE_SECONDS,
        alone: bool = False,  # no command waits that could tell the user of a command that is not there
    ) -> None:
        assert record.started is not None  # noqa: S101 - for the type checker: runs that never started have no keeper
        self.held, self.folder, self.record, self.engine, self.say = held, held.folder, record, engine, say
        self.started, self.container = record.started, record.started.container
        self.resources = resources(record)
        self.patience, self.alone = patience, alone
        self._to_stop = False  # we were asked to, and could not
        self.away: Absence | None = None  # of the engine, the last one
        self.unheard = False  # the engine was away when the container ended
        self.over = False  # the container

    def keep(
        self, *, begin: Callable[[], None] = lambda: None, output: Callable[[bytes], None] | None = None
    ) -> Record:
        """The finished record, which is on disk as well; nothing is left of the container then.

        `begin` is called when the output flows, `output` with what the run prints, in another thread.
        Ctrl-C (KeyboardInterrupt) stops the container and ends as a record that says `killed`. For the third time, or
        when the container is over, it is raised, and another process may have to go on (`over`, the lease).

        Raises:
            LeftError: the engine went away and did not come back in time. The run is still open.
            CommandNotFoundError: no run took place, and nothing is left of it.
        """
        pump = self._pump()
        echo = Echo(self.folder.output_log, output) if output else None
        sampler = Sampler(self.engine, self.container, self.folder, self.record)
        room = Quota(self.folder, self.container, manifest.wanted(self.record.planned).limit, self._too_large)
        watchers = [each for each in (pump, echo, sampler, room) if each]

        def all_begin() -> None:
            for each in watchers:
                each.start()
            begin()

        try:
            ending = self._watch(all_begin)
            self.over = True
            record = self._conclude(self._within(ending, room.finish(), pump), pump, sampler.finish())
        except CommandNotFoundError:
            self.held.end()
            raise
        finally:
            for each in watchers:
                each.over.set()
        if echo:
            echo.finish()
        return record

    def _pump(self) -> Pump:
        """What copies the output; nothing of it, where secrets that it may show cannot be masked any more."""
        secrets = secretsfolder.values(self.record.planned.run)
        pump = Pump(self.engine, self.container, self.folder, secrets)
        if len(secrets) < len(self.record.planned.config.get("secrets") or {}):
            pump.hold_back("its secrets are gone from this machine's memory and cannot be masked")
        return pump

    def _too_large(self, grace: float) -> None:
        """The outputs have outgrown their limit."""
        self.engine.stop(self.container, min(grace, self.resources.stop_grace))

    def _within(self, ending: _Ending, too_much: str, pump: Pump) -> _Ending:
        """The ending, or that the run took too much room, which stopped it."""
        if not too_much or ending.end in (End.TIMEOUT, End.LOST) or stop_request(self.folder):
            return ending
        pump.give_up()  # of a flood, the engine holds far more than may be written here
        return msgspec.structs.replace(ending, end=End.FAILED, reason=too_much)

    # until it ends --------------------------------------------------------------------------------------------------

    def _watch(self, begin: Callable[[], None]) -> _Ending:
        """Wait for the end, or bring it about: at the time limit, at Ctrl-C, at the request of another command."""
        try:
            try:
                begin()
                exited = self._over()
                self.unheard = exited is not None and self.away is not None
                if exited is None:
                    self.held.note(lease.WATCHING)
                    exited = self._wait()
            except KeyboardInterrupt:
                exited = self._interrupted()
        except ContainerGoneError:
            why = "its container is gone: somebody, or its engine, removed it"
            if self._restarted():
                why = "the machine was restarted while it ran, and its container is gone"
            return _Ending(end=End.LOST, exit_code=None, reason=why, at=datetime.now(timezone.utc), gone=True)
        end, reason = verdict(exited, self._circumstance(exited))
        at = exited.finished or datetime.now(timezone.utc)
        known = end is not End.LOST or exited.code != UNKNOWN_CODE
        return _Ending(end=end, exit_code=exited.code if known else None, reason=reason, at=at)

    def _circumstance(self, exited: Exit) -> Circumstance:
        return Circumstance(
            stop=stop_request(self.folder),
            time_limit=self.resources.time_limit,
            memory=self.resources.memory,
            restarted=self._restarted(),
            engine_lost=self._with_engine(exited),
            unheard=self.unheard,
            signals=self.engine.signals(self.container, since=self.started.at) if exited.code > 128 else (),
        )

    def _with_engine(self, exited: Exit) -> bool:
        """Whether the container ended when its engine did, or was started again."""
        if self.away is None or exited.finished is None:
            return self.away is not None
        went, came = self.away
        return went - ENGINE_MOMENT <= exited.finished and (came is None or exited.finished <= came + ENGINE_MOMENT)

    def _restarted(self) -> bool:
        return bool(self.started.boot) and self.started.boot != boot()

    def _wait(self, *, asked: bool = False) -> Exit:
        """Wait through everything that an engine can do; `asked`: the container has been asked to end already."""
        while True:
            try:
                if not asked and self._due():
                    self.engine.stop(self.container, self.resources.stop_grace)
                    asked, self._to_stop = True, False
                left = SLICE_SECONDS if asked else self._left()
                if exited := self.engine.wait(self.container, timeout=max(0.1, min(left, SLICE_SECONDS))):
                    return exited
            except ContainerGoneError:
                raise
            except EnvironmentUnfitError as error:  # away, or in such a state that it answers with errors
                self.away = datetime.now(timezone.utc), None
                self._reconnect(error)
                self.away = self.away[0], datetime.now(timezone.utc)

    def _left(self) -> float:
        """Seconds until a container that has not kept its time limit by itself is stopped from here."""
        limits = self.resources
        if limits.time_limit is None:
            return SLICE_SECONDS
        end = self.started.at + timedelta(seconds=limits.time_limit + limits.stop_grace + LATE_SECONDS)
        return (end - datetime.now(timezone.utc)).total_seconds()

    def _due(self) -> bool:
        request = stop_request(self.folder)
        if self._to_stop or (request and overdue(request)):  # by a command that did not live to do it
            return True
        if self._left() > 0:
            return False
        self.say(f"the container has not kept its time limit of {self.resources.time_limit:g} s by itself: stopping it")
        return True

    def _reconnect(self, error: EnvironmentUnfitError) -> None:
        """Wait until the engine is back.

        Raises:
            LeftError: it does not come back in time.
        """
        self.say(f"the engine does not answer; waiting up to {self.patience:g} s for it to come back")
        give_up = time.monotonic() + self.patience
        pause = 0.2
        while True:
            try:
                self.unheard = self.engine.exit(self.container) is not None
            except ContainerGoneError:
                raise
            except EnvironmentUnfitError:
                if time.monotonic() > give_up:
                    raise LeftError(
                        "the engine went away and did not come back",
                        evidence=error.evidence,
                        hints=[
                            f"run {self.record.planned.run} may go on there, and is recorded as running",
                            "when the engine is back, any command of `repro` takes it up again: `repro wait`, say",
                        ],
                    ) from error
                time.sleep(pause)
                pause = min(pause * 1.5, 5.0)
            else:
                return

    def _interrupted(self) -> Exit:
        """Ctrl-C: ask the container to stop; once more: kill it."""
        if exited := self._over():
            return exited
        grace = self.resources.stop_grace
        ask_to_stop(self.folder, CTRL_C, grace)
        self.say(f"stopping the container (up to {grace:g} s; Ctrl-C again kills it)")
        try:
            return self._wait(asked=self._stopped(grace))
        except KeyboardInterrupt:
            self.engine.kill(self.container)
            return self._wait(asked=True)

    def _stopped(self, grace: float) -> bool:
        """Stop the container; False when that has to wait until the engine is back."""
        try:
            self.engine.stop(self.container, grace)
        except ContainerGoneError:
            raise
        except EnvironmentUnfitError:
            self._to_stop = True
        return not self._to_stop

    def _over(self) -> Exit | None:
        try:
            return self.engine.exit(self.container)
        except ContainerGoneError:
            raise
        except EnvironmentUnfitError:
            return None

    # the end --------------------------------------------------------------------------------------------------------

    def _conclude(self, ending: _Ending, pump: Pump, peaks: Peaks | None) -> Record:
        """The finished record, on disk. Nothing is left to do then.

        Raises:
            CommandNotFoundError: no run took place, and nothing is left of it.
        """
        remarks = [ending.reason]
        listing, end, crop, whole = Listing(), ending.end, Harvest(), False
        interruption: KeyboardInterrupt | None = None
        try:
            end = self._drain(ending, pump, remarks)
            wanted = manifest.wanted(self.record.planned)
            listing = manifest.of(self.folder.outputs, wanted.ignore, self.say, by_products=wanted.by_products)
            crop = harvest.of(self.folder, self.record.planned.run, wanted.by_product_metrics)
            remarks += [listing.remark, crop.remark]
            whole = not (listing.remark or crop.remark or pump.disk_error)
        except KeyboardInterrupt as error:
            remarks.append("interrupted while its outputs were listed: they are all there, but not in this record")
            interruption = error
        came_out = Ended(
            at=ending.at,
            end=end,
            exit_code=ending.exit_code,
            reason="",
            outputs=listing.files,
            metrics=crop.metrics,
            trace=crop.trace,
            ignored=listing.ignored,
            peaks=peaks,
        )
        if whole:  # of a part nobody could say what it is the same as
            came_out = msgspec.structs.replace(came_out, result=identity.result(came_out))
        finished = self._write(came_out, remarks)
        if pump.held_back:  # the engine has the only copy of some output
            secretsfolder.remove(self.record.planned.run)
        else:
            self._release()
        self.held.end()
        if interruption:
            raise interruption
        return finished

    def _drain(self, ending: _Ending, pump: Pump, remarks: list[str]) -> End:
        """Let everything that the container printed and wrote be here, and the caller's; how the run ended by that."""
        if ending.gone:
            pump.give_up()
        if not pump.finish():
            why = f" ({pump.why})" if pump.why else ""
            remarks.append(f"the end of its output is still with the engine{why}: `docker logs` has it")
        if self.unheard:
            remarks.append("its engine was away when it ended, and may have dropped the last of what it printed")
        if refusal := _init_refusal(ending, self.folder):
            if not self.alone:
                self._release()
                discard(self.folder)
                raise command_not_found(refusal)
            remarks.append(f"{command_not_found(refusal).what} ({refusal})")
        if pump.disk_error or ending.end is End.FAILED:
            remarks.append(quota.lack_of_room(self.folder, ours=pump.disk_error))
        if pump.disk_error:
            self.folder.reserve.unlink(missing_ok=True)  # the record and the last lines are what it is for
            with contextlib.suppress(OSError), self.folder.output_log.open("ab") as log:
                log.write(pump.missed)
        remarks.append(ownership.settle(self.record, self.folder, self.engine, self.say))
        # what it said is part of what it was to do
        return End.FAILED if pump.disk_error and ending.end is End.FINISHED else ending.end

    def _write(self, ended: Ended, remarks: list[str]) -> Record:
        told = msgspec.structs.replace(ended, reason="; ".join(filter(None, remarks)))
        finished = msgspec.structs.replace(self.record, ended=told)
        try:
            self.folder.write(finished)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not (ended.outputs or ended.metrics or ended.trace):
                raise
            remarks.append(
                f"the disk has no room for the list of its {len(ended.outputs):,} outputs: they are all there"
            )
            bare = msgspec.structs.replace(ended, outputs=(), metrics=(), trace=(), result="")
            return self._write(bare, remarks)
        return finished

    def _release(self) -> None:
        release(self.engine, self.record, self.say)


def release(engine: Engine, record: Record, say: Callable[[str], None]) -> None:
    """Remove the container of a run that is over, and what it alone needed."""
    secretsfolder.remove(record.planned.run)
    container = record.started.container if record.started else f"repro-{record.planned.run}"
    try:
        engine.remove(container)
    except EnvironmentUnfitError as error:
        why = " ".join([error.what, *error.evidence])
        say(f"the container may still be there ({why}); `repro reap` removes it")


def discard(folder: RunFolder) -> None:
    """Remove what was made for a run that did not take place."""
    import shutil

    for path in (folder.outputs, folder.journal, folder.logs, folder.inputs):
        shutil.rmtree(path, ignore_errors=True)
    folder.tidy(folder.record, folder.stop, folder.tracking)
    for file in folder.files:
        file.unlink(missing_ok=True)
    if folder.path.is_dir() and not any(folder.path.iterdir()):
        folder.path.rmdir()


def resources(record: Record) -> Resources:
    """The limits that a run was given."""
    return tolerant.read(record.planned.config.get("resources", {}), Resources)[0]


def boot() -> str:
    """What changes when the machine is restarted; "" where that is not told."""
    with contextlib.suppress(OSError):
        return BOOT.read_text(encoding="ascii").strip()
    return ""


def _init_refusal(ended: _Ending, folder: RunFolder) -> str:
    """What the container's init says when it cannot start the command; "" when the command did start."""
    if ended.exit_code not in (1, 126, 127) or not folder.output_log.is_file():
        return ""
    with folder.output_log.open(encoding="utf-8", errors="replace") as log:
        text = log.read(1000)
    return text.strip() if INIT_REFUSAL.match(text) else ""
