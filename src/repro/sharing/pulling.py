"""A git remote -> run folder and snapshot, checked against the record that the remote's ref names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from repro import identity, scratch
from repro.code.repository import git, has
from repro.errors import BadInputError, EnvironmentUnfitError, RefusedError
from repro.experiment import Value
from repro.project import Project, ignored_folder
from repro.record import Record, RunFolder
from repro.sharing import snapshots
from repro.sharing.parcel import Parcel
from repro.sharing.remote import Remote, Say, ref_of, runs
from repro.tracking import tracking

MLFLOW_ID = re.compile("[0-9a-f]{32}")
NAMED = 10


class Pulled(Value, frozen=True, kw_only=True):
    """What a pull has brought."""

    run: str
    record: str  # sha256
    folder: str
    snapshot: str
    new: bool  # the run was not here
    added: tuple[str, ...]  # where it was: what came new into its folder


class Tracked(Value, frozen=True, kw_only=True):
    """What a tracking server says of a run."""

    run: str
    record: str  # sha256; "" where it does not tell


def choose(wanted: str, there: Mapping[str, str], tracked: Tracked | None) -> str:
    """The run that is meant: by its id, a unique prefix, `latest`, or as the tracking server says.

    Raises:
        BadInputError: none, or several.
    """
    known_runs = runs(there)
    if tracked:
        wanted = tracked.run
    found = [run for run in known_runs if run == wanted] or [run for run in known_runs if run.startswith(wanted)]
    if wanted == "latest":
        found = known_runs[-1:]
    if len(found) == 1:
        return found[0]
    if not found:
        known = [f"it has {len(known_runs)}: `repro pull` lists them"] if known_runs else ["it has none"]
        raise BadInputError(
            f"the remote has no run that begins with {wanted!r}",
            evidence=known,
            hints=["`repro push RUN` where the run was made"],
        )
    more = [f"… and {len(found) - NAMED} more"] if len(found) > NAMED else []
    raise BadInputError(f"{wanted!r} is the beginning of {len(found)} runs", evidence=[*found[:NAMED], *more])


def ask_tracking(wanted: str, uri: str) -> Tracked | None:
    """What MLflow knows of a run with this id of its own; None where `wanted` is no such id.

    Raises:
        EnvironmentUnfitError: the tracking server does not answer.
        BadInputError: it knows no such run, or not one of ours.
    """
    if not MLFLOW_ID.fullmatch(wanted):
        return None
    from repro.tracking import publisher
    from repro.tracking.client import TrackingError

    try:
        found = publisher.connect(uri).run(wanted)
    except TrackingError as error:
        raise EnvironmentUnfitError(
            f"MLflow does not say which run {wanted} is",
            evidence=[str(error)],
            hints=["`repro pull` with the run's own id asks the git remote alone"],
        ) from error
    run = found.tags.get("run") if found else None
    if found is None or run is None:
        raise BadInputError(f"MLflow knows no run {wanted} of repro", hints=["`repro pull` lists those of the remote"])
    return Tracked(run=run, record=found.tags.get("record", ""))


def fetch(
    run: str,
    project: Project,
    remote: Remote,
    there: dict[str, str],
    say: Say,
    *,
    tracked: Tracked | None = None,
    uri: Callable[[], str],
) -> Pulled:
    """The run as a folder below runs/, and its code in the repository. What is here already is never replaced.

    `uri` tells where this project's runs are in MLflow: what a run says of another place is not taken over.

    Raises:
        RefusedError: there is another record of this id, here or in MLflow.
        EnvironmentUnfitError: the remote cannot be reached, lacks a part, or has what nobody has pushed so.
    """
    ref, repository = ref_of(run), remote.repository
    commit = there[ref]
    if not has(repository, commit):
        remote.fetch([ref], say)
    parcel = Parcel(repository, commit, run)
    if tracked and tracked.record and tracked.record.removeprefix("sha256:") != parcel.digest:
        raise _another(run, "MLflow", tracked.record, parcel.digest)
    here = project.runs / run
    before = _read(here)
    if before and identity.record_digest(before) != parcel.digest:
        raise _another(run, "this project", identity.record_digest(before), parcel.digest)
    planned = parcel.record.planned
    snapshots.fetch(planned.code, planned.code_prefix, remote, there, repository, say)
    git(repository.top, "update-ref", ref, commit)
    try:
        added = parcel.add(RunFolder(here)) if before else _written(parcel, here, project, uri)
    except OSError as error:
        raise EnvironmentUnfitError(f"{here} cannot be written", evidence=[str(error)]) from error
    return Pulled(
        run=run,
        record=parcel.digest,
        folder=str(here),
        snapshot=planned.code.commit,
        new=before is None,
        added=tuple(added),
    )


def _read(place: Path) -> Record | None:
    if not place.exists() and not place.is_symlink():
        return None
    return RunFolder(place).read()


def _written(parcel: Parcel, here: Path, project: Project, uri: Callable[[], str]) -> list[str]:
    """The folder, in one step: whoever looks meanwhile sees no half of a run."""
    with scratch.folder(".pulling-", ignored_folder(project.runs)) as temporary:
        folder = temporary / parcel.run
        folder.mkdir()
        parcel.write(folder)
        known = tracking.state(RunFolder(folder))
        if known is None or known.uri != uri():
            RunFolder(folder).tracking.unlink(missing_ok=True)
        RunFolder(folder).elsewhere.touch()
        try:
            folder.rename(here)
        except OSError:  # another pull was faster
            before = _read(here)
            if before is None:
                raise
            if identity.record_digest(before) != parcel.digest:
                raise _another(parcel.run, "this project", identity.record_digest(before), parcel.digest) from None
            return parcel.add(RunFolder(here))
    return []


def _another(run: str, who: str, theirs: str, ours: str) -> RefusedError:
    return RefusedError(
        f"{who} has another record of run {run} than the remote",
        evidence=[f"{who}  sha256 {theirs}", f"remote  sha256 {ours}"],
        hints=["one of them was changed after the run; nothing was replaced"],
    )
