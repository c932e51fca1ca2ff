"""One case: the run, its fault, what a user does afterwards, and what was found."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from repro.experiment import Value
from repro.record import Record, RunFolder
from tests.faults.acts import ACTS, Target
from tests.faults.cases import FAULTS, FULL, Case
from tests.faults.stage import Stage

BEGIN_SECONDS = 90.0
END_SECONDS = 120.0
SYNC_SECONDS = 90.0


class Result(Value, frozen=True, kw_only=True):
    """What became of a case."""

    case: Case
    struck: bool
    run: str  # "": none took place
    end: str  # none, or how it ended
    seconds: float | None  # from the fault to a final record
    after_end: float | None  # from the container's end, or the fault if it came later, to a final record
    violations: tuple[str, ...]


class Trial:
    """A case as it goes on; the checks look at what it leaves here."""

    def __init__(self, stage: Stage, case: Case) -> None:
        self.stage, self.case = stage, case
        self.place = stage.enter(f"{case.index:04d}-{case.fault}", small=FAULTS[case.fault].ends == FULL)
        self.before = self._names()
        logs = stage.project.scratch / "logs"
        self.log_begins = {path.name: path.stat().st_size for path in logs.glob("*.log")} if logs.is_dir() else {}
        self.struck = False
        self.struck_at = 0.0
        self.final_at: float | None = None  # None: it was final before the fault, or never
        self.killed = False  # the command
        self.command_code: int | None = None  # of `repro run`; None: it was killed
        self.temporary = set(stage.temporary_files())
        self.complaints: list[str] = []  # of the way there: what took too long, what refused

    # what is there ------------------------------------------------------------------------------------------------

    def _names(self) -> set[str]:
        return {path.name for path in self.stage.runs.iterdir()} if self.stage.runs.is_dir() else set()

    @property
    def folders(self) -> list[RunFolder]:
        """What has come into the folder of runs since the case began."""
        new = sorted(self._names() - self.before - {"filler", ".gitignore"})
        return [RunFolder(self.stage.runs / name) for name in new]

    @property
    def folder(self) -> RunFolder | None:
        """The run's."""
        return next(iter(self.folders), None)

    def truth(self) -> list[str]:
        """What the experiment has noted for itself."""
        folder = self.folder
        try:
            return (folder.outputs / "truth").read_text().splitlines() if folder else []
        except FileNotFoundError:
            return []

    def record(self) -> Record | None:
        """The run's record; None without a run."""
        folder = self.folder
        return folder.read() if folder and folder.record.exists() else None

    # the way there ------------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Run, strike, wait and synchronise; what is not as it should be on the way is in `complaints`."""
        target = self._start()
        self._await_moment(target)
        with contextlib.ExitStack() as fault:
            self.struck = fault.enter_context(ACTS[self.case.fault](target))
            self.struck_at = time.time()
            watch = threading.Thread(target=self._watch, daemon=True)
            watch.start()
            time.sleep(self.case.lasts)
            if FAULTS[self.case.fault].ends != FULL:
                fault.close()
            self._await_command(target)
            time.sleep(self.case.idle)
            self._wait()
            watch.join(0.2)
        if self.folder:
            self._sync()
        self._await_processes()

    def _start(self) -> Target:
        case = self.case
        uri = [f"tracking.uri={self.stage.server.uri}"] if case.store == "http" else []
        overrides = [f"params.steps={case.steps}", f"params.code={case.code}", f"params.handles={case.handles}".lower()]
        arguments = ["run", *([] if case.foreground else ["-d"]), "experiment=steps", *overrides, *uri]
        if case.fault == "hang-up":
            terminal = self.stage.on_a_terminal("run", *arguments)
            return Target(self.stage, case, terminal.process, terminal)
        return Target(self.stage, case, self.stage.start("run", *arguments), None)

    def _await_moment(self, target: Target) -> None:
        if self.case.moment != "launch":
            self._await_anchor(target)
        time.sleep(self.case.after)

    def _is_made(self) -> bool:
        return self.folder is not None

    def _await_anchor(self, target: Target) -> None:
        end = time.monotonic() + BEGIN_SECONDS
        words = {"begun": "step 0", "done": "done"}
        while not (self._is_made() if self.case.moment == "made" else words[self.case.moment] in self.truth()):
            if time.monotonic() > end or (target.process.poll() or 0) > 0:
                self.complaints.append(f"the run was never {self.case.moment}, before the fault")
                return
            time.sleep(0.01)

    def _watch(self) -> None:
        first, end = True, time.monotonic() + END_SECONDS
        while time.monotonic() < end:
            folder = self.folder
            with contextlib.suppress(Exception):  # half of it is there, or it is being removed
                if folder and not folder.lease.exists() and folder.read().ended:
                    self.final_at = None if first else time.time()
                    return
            first = False
            time.sleep(0.02)

    def _await_command(self, target: Target) -> None:
        try:
            code = target.process.wait(END_SECONDS)
        except Exception:
            self.complaints.append(f"`repro run` is not over {END_SECONDS:g} s after the fault")
            target.process.kill()
            target.process.wait()
            return
        self.killed = target.killed
        self.command_code = None if target.killed else code

    def _wait(self) -> None:
        try:
            code = self.stage.call("wait", "wait", seconds=END_SECONDS)
        except AssertionError as error:
            self.complaints.append(str(error))
            return
        none_at_all = code == 2 and "no run is recorded" in self.text("wait") and not self.folders
        if code not in (0, 1, 3) and not none_at_all:
            self.complaints.append(f"`repro wait` exits with {code}")

    def _sync(self) -> None:
        """As often as it takes: another process may be at it, the server may only just be back."""
        folder, end = self.folder, time.monotonic() + SYNC_SECONDS
        assert folder is not None
        while code := self.stage.call("sync", "sync", folder.path.name):
            if not folder.path.exists():  # no run took place, and whoever looked after it has just found that out
                return
            if time.monotonic() > end:
                self.complaints.append(f"`repro sync` exits with {code} for {SYNC_SECONDS:g} s")
                return
            time.sleep(1)

    def _await_processes(self) -> None:
        """Those that finish by themselves get some time for it."""
        end = time.monotonic() + 20
        while self.stage.processes() and time.monotonic() < end:
            time.sleep(0.1)

    def text(self, name: str) -> str:
        """What a command of the case printed."""
        parts = [Path(self.place, f"{name}.{end}") for end in ("out", "err")]
        return "".join(part.read_text(errors="replace") for part in parts if part.exists())
