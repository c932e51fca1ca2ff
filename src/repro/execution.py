"""Plans -> finished runs, one after the other, while MLflow follows: what `repro run` and `repro reproduce` share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from repro import guard, report, runner
from repro.cleaning import housekeeping
from repro.display import Display
from repro.engines.engine import Engine
from repro.errors import EnvironmentUnfitError
from repro.project import Project, ignored_folder
from repro.record import Record, RunFolder
from repro.running import plan as planning
from repro.tracking.tracking import Follower
from repro.tracking.tracking import status as tracking_status


class Execution:
    """What the runs of one command share: one follower of MLflow, and that nothing is pruned while they start."""

    def __init__(self, project: Project, display: Display) -> None:
        self.project, self.display = project, display
        self._follower: Follower | None = None
        self._starting = ExitStack()

    def prevent_pruning(self) -> None:
        """What is found or made from now on stays until a container holds it."""
        self._starting.enter_context(guard.starting())

    def execute(
        self,
        plan: planning.Plan,
        engine: Engine,
        *,
        began: Callable[[RunFolder, Record], None] = lambda _folder, _record: None,
    ) -> tuple[Record, RunFolder]:
        """Run the plan, while MLflow follows. `began` is called when its container runs.

        Raises:
            EnvironmentUnfitError: the container could not be started, or the engine went away.
        """

        def started(folder: RunFolder, record: Record) -> None:
            began(folder, record)
            self._started(folder, record)

        ignored_folder(self.project.runs)
        folder = RunFolder(Path(plan.folder))
        housekeeping.remember(folder.path.parent)
        with self.display.step("run") as step:
            try:
                record = runner.execute(
                    plan,
                    engine,
                    started=started,
                    output=step.output,
                    say=self.display.notice,
                )
            finally:
                self.let_prune()
                self._link(plan.planned.run, folder)
            step.detail = report.outcome(record)
        return record, folder

    def detach(self, plan: planning.Plan, engine: Engine) -> tuple[Record, RunFolder]:
        """Start the plan, and let a process of its own keep the run."""
        ignored_folder(self.project.runs)
        housekeeping.remember(Path(plan.folder).parent)
        with self.display.step("run") as step:
            held, record = runner.launch(plan, engine)
            for notice in record.started.notices if record.started else ():
                self.display.notice(notice)
            self._recorded(held.folder, record)
            runner.hand_over(held, self.project)
            step.detail = (
                f"started; `repro attach {record.planned.run}` looks on, `repro stop {record.planned.run}` ends it"
            )
        return record, held.folder

    def _recorded(self, folder: RunFolder, record: Record) -> None:
        self.let_prune()
        self._link(record.planned.run, folder)
        here = folder.path.is_relative_to(self.project.root)
        if here and not folder.path.is_relative_to(self.project.runs):  # the user chose it, perhaps where git looks
            with suppress(EnvironmentUnfitError):
                ignored_folder(folder.path)

    def _started(self, folder: RunFolder, record: Record) -> None:
        self._recorded(folder, record)
        # only now: MLflow's import would compete with the start of the container for the machine's cores
        if record.planned.tracking_uri is not None:
            try:
                self.follower(record.planned.tracking_uri).follow(folder)
            except OSError as error:
                self.display.notice(f"not in MLflow for now: {error}; `repro sync {record.planned.run}` catches up")

    def _link(self, run: str, folder: RunFolder) -> None:
        """Every verb finds a run by its id below runs/, wherever its folder is; one that did not take place is gone."""
        link = self.project.runs / run
        if link != folder.path:
            with suppress(OSError):
                if not folder.record.exists():
                    link.unlink()
                elif not link.is_symlink():
                    link.symlink_to(folder.path, target_is_directory=True)

    def follower(self, uri: str) -> Follower:
        """The process that feeds MLflow: started when first asked for, one for all jobs."""
        if self._follower is None:
            self._follower = Follower.start(self.project, uri)
        return self._follower

    def retell(self, folder: RunFolder) -> None:
        """There is more to tell MLflow of a run that is over."""
        if self._follower:
            self._follower.sync(folder)

    def tracked(self, record: Record, folder: RunFolder, seconds: float | None) -> str:
        """What to tell the user of MLflow, after waiting for it for at most `seconds` (None: what is reasonable)."""
        if self._follower is None or record.planned.tracking_uri is None:
            return "off"
        try:
            replies = self._follower.wait(seconds, folder)
        except KeyboardInterrupt:  # the run is over and recorded: its summary is worth more than the wait
            replies = []
        for reply in replies:
            for remark in reply.remarks:
                self.display.notice(f"MLflow: {remark}")
            if not reply.ok:
                self.display.notice(reply.text)
                self.display.notice_hints(reply.hints)
        if not any(reply.run == record.planned.run for reply in replies):
            return "on its way, in the background; `repro ui` shows it in a few seconds"
        return tracking_status(folder)

    def let_prune(self) -> None:
        """What a run has found may be pruned: its container holds it from now on."""
        self._starting.close()

    def close(self) -> None:
        """Let go of what it holds; the follower finishes by itself."""
        self.let_prune()
        if self._follower:
            self._follower.close()
