"""`python -m repro.run experiment=NAME [overrides]`: compose, plan, run, record, print, exit."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # before anything that takes time: from there on, Ctrl-C is no traceback
    from repro import start

    start.program("repro.run", sys.argv[1:])

import argparse
import os
import secrets
import shlex
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from repro import config, image, lockfile, report, runner
from repro.code import source
from repro.display import Display, guarded
from repro.engines.answers import EngineFacts
from repro.engines.engine import Engine, connect
from repro.errors import BadInputError, ExitCode, ReproError
from repro.execution import Execution
from repro.experiment import BuildConfig, Experiment, ImageConfig
from repro.image import Image
from repro.images import ledger
from repro.images.making import Making
from repro.project import Project, cache_folder, ignored_folder, user_name
from repro.recipe import floating, inputs
from repro.recipe.spec import ImageSpec
from repro.record import DatasetUsed, End, ImageUsed, Record, RunFolder
from repro.running import machine, stopping, sweep
from repro.running import plan as planning
from repro.secrets import secretsfolder, secretsources
from repro.tracking import journal
from repro.tracking.tracking import resolve_uri
from repro.verbs import life

if TYPE_CHECKING:
    from repro.restoring.repeating import Repeating

FRAMEWORK_GPUS = "framework_gpus"  # a tag that `repro_run.seed()` sets


def parser() -> argparse.ArgumentParser:
    """The flags that are ours; every other argument is Hydra's."""
    flags = argparse.ArgumentParser(prog="repro run", add_help=False, allow_abbrev=False)
    flags.add_argument("--plan", action="store_true", help="print what would run, and run nothing")
    flags.add_argument("--locked", action="store_true", help="refuse when the image does not match repro.lock")
    flags.add_argument(
        "-d", "--detach", action="store_true", help="print the run's id when it has started, and leave it"
    )
    flags.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="run it N times, and say how much the results have in common"
    )
    flags.add_argument("--json", action="store_true", help="print the record instead of the summary")
    flags.add_argument("-v", "--verbose", action="store_true", help="stream the build's and the container's output")
    return flags


def main(arguments: Sequence[str]) -> int:
    """Run one experiment, or several with Hydra's `-m`; the exit code."""
    flags, for_hydra = parser().parse_known_args(arguments)
    display = Display(verbose=flags.verbose)
    if for_hydra and for_hydra[0] in ("-sc", "--shell-completion") and "query=bash" not in for_hydra:
        return guarded(display, lambda: _completion(for_hydra[1:]))
    return guarded(display, lambda: _main(flags, for_hydra, tuple(arguments), display))


def _main(flags: argparse.Namespace, for_hydra: list[str], argv: tuple[str, ...], display: Display) -> int:
    if flags.repeat < 1 or (flags.repeat > 1 and flags.detach):
        raise BadInputError(
            f"--repeat {flags.repeat}" + (": at least once" if flags.repeat < 1 else " and -d together"),
            hints=["what ran is compared in the end, which somebody has to wait for: nohup repro run --repeat N … &"],
        )
    session = Session(Project.find(Path.cwd()), display, argv=argv, locked=flags.locked, only_look=flags.plan)
    codes: list[int] = []

    def job(compose: Callable[[], config.Composed]) -> None:
        try:
            codes.append(_repeated(session, compose(), flags, display))
        except ReproError as error:  # not through Hydra, which would print it in its own way
            display.error(error)
            codes.append(error.exit_code)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is a Ctrl-C
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the end of a terminal is not the end of a run
    if {"-m", "--multirun"} & set(for_hydra):  # Hydra writes there before the snapshot is taken
        if flags.detach:
            raise BadInputError(
                "-d and -m together: the jobs of a multirun run one after the other, which somebody has to see to",
                hints=["nohup repro run -m … &", "or start each with -d"],
            )
        ignored_folder(session.project.runs)
    sweep.at_start(session.project, display.notice)
    try:
        config.run(session.project, for_hydra, job)
    finally:
        session.close()
    return max(codes, default=ExitCode.OK)


def _completion(wanted: list[str]) -> int:
    """Hydra's own would complete `python` everywhere, and `repro run` nowhere."""
    if wanted == ["install=bash"]:
        print((Path(__file__).parent / "completion.bash").read_text(encoding="utf-8"), end="")
    elif wanted == ["uninstall=bash"]:
        print("complete -r repro")
    else:
        raise BadInputError(
            f"no completion for {' '.join(wanted) or 'nothing'}",
            hints=['there is one for bash: eval "$(repro run -sc install=bash)"'],
        )
    return ExitCode.OK


def _repeated(session: Session, composed: config.Composed, flags: argparse.Namespace, display: Display) -> int:
    """One job; with --repeat so many runs of it, each compared with the first."""
    if flags.plan or flags.detach:
        return _planned_only(session, session.plan(composed), flags)
    first, folder = session.execute(session.plan(composed))
    code = _told(session, first, folder, flags, wait=_wait(composed))
    if flags.repeat == 1 or code is not ExitCode.OK:
        return code
    again = session.repeats(first, folder, flags.repeat - 1)
    composed = msgspec.structs.replace(composed, folder=None)  # each has its own
    for number in range(2, flags.repeat + 1):
        record, other = again.one_more(session.plan(composed, repeats=first.planned.run))
        display.line(f"{number} of {flags.repeat}: {report.outcome(record)}")
        code = max(code, _told(session, record, other, flags, wait=0.0))
    with suppress(OSError):
        print(again.text(), flush=True)
    return max(code, ExitCode.OK if again.same else ExitCode.NO)


def _planned_only(session: Session, plan: planning.Plan, flags: argparse.Namespace) -> int:
    if flags.plan:
        print(report.as_json(plan))
        return ExitCode.OK
    record, _folder = session.execution.detach(plan, session.engine)
    print(report.as_json(record) if flags.json else record.planned.run, flush=True)
    return ExitCode.OK


def _wait(composed: config.Composed) -> float | None:
    """Seconds to wait for MLflow: the jobs of a sweep do not, one after the other, and it catches up by itself."""
    wait = composed.experiment.tracking.wait
    return 0.0 if wait is None and composed.sweep else wait


def _told(
    session: Session, record: Record, folder: RunFolder, flags: argparse.Namespace, wait: float | None
) -> ExitCode:
    """Say how a run has ended; its exit code."""
    mlflow = session.execution.tracked(record, folder, wait)
    metrics = journal.latest(folder)
    if record.started and record.started.gpus != "none" and journal.tags(folder).get(FRAMEWORK_GPUS) == "0":
        session.display.notice(
            "the container had GPUs, but the experiment's framework saw none: does the image hold CUDA?"
        )
    with suppress(OSError):  # the terminal may have gone
        print(report.as_json(record) if flags.json else report.summary(record, folder, metrics, mlflow), flush=True)
    code = life.exit_code(record)
    if code is not ExitCode.OK:
        session.display.line(f"repro: {report.failure(record, folder)}")
    if record.ended and record.ended.end is End.KILLED and stopping.interrupted(folder):
        raise KeyboardInterrupt  # it is meant for the whole multirun
    return code


def shell(overrides: Sequence[str], command: str, display: Display) -> int:
    """An interactive shell in the container that `repro run` with the same overrides would start.

    Its outputs land in a folder of their own below runs/; it is no run, so nothing is recorded.

    Raises:
        BadInputError, EnvironmentUnfitError: as for a run.
    """
    signal.signal(signal.SIGHUP, signal.default_int_handler)  # without its terminal it has no use
    project = Project.find(Path.cwd())
    session = Session(project, display, argv=("shell", *overrides))
    composed = config.Composed(
        experiment=config.compose(project, overrides), overrides=tuple(overrides), folder=None, sweep=None
    )
    try:
        return _conversation(session, composed, command, display)
    finally:
        session.close()


def _conversation(session: Session, composed: config.Composed, command: str, display: Display) -> int:
    plan = session.plan(composed, name_suffix="-shell")
    # bash where the image has it: the plan's command is what the experiment would run
    start = tuple(shlex.split(command)) or ("sh", "-c", "command -v bash >/dev/null && exec bash || exec sh")
    display.line(
        f"in {plan.container.image[:19]} as {plan.container.user}; the experiment: {shlex.join(plan.planned.command)}"
    )
    code = runner.converse(plan, session.engine, start, display.notice, session.execution.let_prune)
    print(f"outputs  {RunFolder(Path(plan.folder)).outputs}")
    return code


class Session:
    """What the jobs of one command share: one snapshot, one engine, one image for each spec, one follower."""

    def __init__(
        self,
        project: Project,
        display: Display,
        *,
        argv: tuple[str, ...],
        locked: bool = False,
        only_look: bool = False,  # build and fetch nothing
    ) -> None:
        self.project, self.display, self.argv = project, display, argv
        self.locked, self.only_look = locked, only_look
        self.images: dict[bytes, tuple[ImageSpec, Image, ledger.Contents | None]] = {}
        self.execution = Execution(project, display)

    @cached_property
    def engine(self) -> Engine:
        return connect()

    @cached_property
    def facts(self) -> EngineFacts:
        return self.engine.facts()

    @cached_property
    def code(self) -> tuple[source.Snapshot, Path, str]:
        """The snapshot, its export, and its uncommitted changes as text."""
        with self.display.step("code") as step:
            snapshot = source.capture(self.project.root, say=step.say, warn=self.display.notice)
            folder = source.export(snapshot, self.project.root, ignored_folder(self.project.scratch) / "code")
            step.detail = f"{snapshot.commit[:12]}" + (" with uncommitted changes" if snapshot.dirty else "")
        return snapshot, folder, source.diff_text(snapshot, self.project.root)

    def image(self, wanted: ImageConfig, build: BuildConfig) -> tuple[ImageSpec, Image, ledger.Contents | None]:
        """What the image of a configuration is made from, the image, built when it is missing, and what is in it.

        Its files are read once: what is edited during a multirun changes no later job of it.
        """
        key = msgspec.json.encode((wanted, build))
        if key not in self.images:
            spec, stale = lockfile.read_spec(self.project, wanted, build)
            if stale and not self.locked:
                self.display.notice(lockfile.remark(stale))
            self.images[key] = spec, *self._made(spec, build, stale)
        return self.images[key]

    def _made(
        self, spec: ImageSpec, build: BuildConfig, stale: tuple[str, ...]
    ) -> tuple[Image, ledger.Contents | None]:
        if self.locked:
            lockfile.require(lockfile.read(self.project.lock), spec, stale=stale)
        if self.only_look:
            made = image.look(spec, self.engine)
            if not made.id:
                self.display.notice(f"{made.tag} is missing: the run would {'pull' if spec.pushed else 'build'} it")
            return made, None
        with self.display.step("image") as step:
            made = Making(spec, build, self.project, self.display).ensure(self.engine, step.say)
            contents = ledger.contents(self.engine, made, step.say)
            step.detail = f"{made.tag} {made.origin}"
        if contents.drift and contents.drift.new:
            self.display.notice(f"drift: {contents.drift.text}")
        if self.locked:
            lockfile.require(lockfile.read(self.project.lock), spec, made)
        return made, contents

    def data(self, experiment: Experiment) -> tuple[DatasetUsed, ...]:
        """The datasets of an experiment, fetched and verified."""
        if not experiment.data:
            return ()
        from repro import data

        cache = cache_folder()
        wanted = data.rooted(experiment.data, self.project.root)
        if self.only_look:
            for name, dataset in wanted.items():
                if not data.cached(name, dataset, cache=cache):
                    self.display.notice(f"data {name} is not in the cache: the run would fetch it")
            return tuple(data.expected(name, dataset, cache=cache) for name, dataset in wanted.items())
        local = os.environ.get("REPRO_DATA_SOURCE")
        with self.display.step("data", fold=False) as step:
            live = self.display.live
            fetched = tuple(
                data.fetch(name, dataset, cache=cache, local=local, say=step.say, progress=live)
                for name, dataset in wanted.items()
            )
            step.detail = ", ".join(f"{each.name} ({report.many(len(each.files), 'file')})" for each in fetched)
        return fetched

    def plan(self, composed: config.Composed, *, name_suffix: str = "", repeats: str | None = None) -> planning.Plan:
        """Everything decided; what is missing (image, data) has been made, and stays until `execute` has begun."""
        self.execution.prevent_pruning()
        experiment = composed.experiment
        for name, secret in experiment.secrets.items():  # before anything is built for it
            secretsources.check(f"secrets.{name}", secret, self.project.root)
        snapshot, code_folder, diff = self.code
        source.touch(code_folder)  # a sweep may be longer than exports are kept
        spec, made, contents = self.image(experiment.image, experiment.build)
        drift = contents.drift.text if contents and contents.drift else None
        texts = {path: inputs.without_users(text) for path, text in spec.recipe().items()}
        texts[inputs.FILE] = inputs.document(inputs.of_spec(spec))
        texts |= contents.texts() if contents else {}
        if self.project.lock.is_file():
            texts[self.project.lock.name] = self.project.lock.read_text(encoding="utf-8", errors="replace")
        facts = self.engine.image(made.id) if made.id else None
        open_pieces = floating.pieces(spec, made.base_resolved or None)
        if open_pieces and made.id:
            self.display.notice(f"{floating.text(open_pieces)}; `repro lock` pins what can be")
        notices = [floating.text(open_pieces)] if open_pieces else []
        notices += [f"drift: {drift}"] if drift else []
        ingredients = planning.Ingredients(
            code=snapshot.code(),
            code_prefix=snapshot.prefix,
            code_folder=str(code_folder),
            diff=diff,
            image=ImageUsed(
                variant=experiment.image.variant,
                tag=made.tag,
                id=made.id,
                spec=made.spec,
                base=made.base,
                base_resolved=made.base_resolved,
                platform=made.platform,
                digest=made.digest,
                floating=open_pieces,
                manifest=made.manifest,
                config=made.config,
                layers=made.layers,
                content=made.content,
                settings=facts.settings if facts else "",
                drift=drift,
            ),
            image_env=facts.env if facts else (),
            inputs=texts,
            notices=tuple(notices),
            data=self.data(experiment),
            engine=self.facts,
            machine=machine.of(self.facts, self.engine.host_url, gpus=experiment.gpus not in ("none", 0, ())),
        )
        plan = planning.decide(experiment, ingredients, self.circumstances(composed, name_suffix, repeats))
        for notice in plan.planned.notices[len(ingredients.notices) :]:  # the others have been said
            self.display.notice(notice)
        return plan

    def circumstances(self, composed: config.Composed, name_suffix: str, repeats: str | None) -> planning.Circumstances:
        """Time, place and person."""
        created = datetime.now(timezone.utc)
        run = planning.run_id(composed.experiment.name + name_suffix, created, secrets.token_bytes(3))
        tracking = composed.experiment.tracking
        return planning.Circumstances(
            run=run,
            created=created,
            project=str(self.project.root),
            folder=composed.folder or str(self.project.runs / run),
            argv=self.argv,
            overrides=composed.overrides,
            uid=os.getuid(),
            gid=os.getgid(),
            user=user_name(),
            tracking_uri=resolve_uri(tracking.uri, self.project) if tracking.enabled else None,
            secrets_folder=str(secretsfolder.place(run)) if composed.experiment.secrets else "",
            repeats=repeats,
        )

    def execute(self, plan: planning.Plan) -> tuple[Record, RunFolder]:
        """Run the plan, while MLflow follows."""
        return self.execution.execute(plan, self.engine)

    def repeats(self, first: Record, folder: RunFolder, more: int) -> Repeating:
        """Runs of the same plan, each compared with the first."""
        from repro.compare.sides import Side
        from repro.restoring.repeating import Repeating

        return Repeating(Side(record=first, folder=folder), self.execution, self.engine, more)

    def close(self) -> None:
        """Let go of what the session holds."""
        self.execution.close()
