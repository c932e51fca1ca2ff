"""Run -> a git remote and an image registry: first what would be published, then just that."""

from __future__ import annotations

from repro import identity
from repro.code.repository import Repository, git, has
from repro.errors import RefusedError
from repro.experiment import Value
from repro.record import Record, RunFolder
from repro.sharing import parcel, snapshots
from repro.sharing.parcel import Packed
from repro.sharing.remote import SNAPSHOTS, MovedError, Remote, Say, ref_of
from repro.sharing.snapshots import Shown, Snapshot

ATTEMPTS = 3  # where others push the same run at the same time


class Push(Value, frozen=True, kw_only=True):
    """What a push publishes."""

    run: str
    record: str  # sha256
    remote: str
    snapshot: Snapshot
    there: bool  # whether the remote has the snapshot
    shown: Shown
    packed: Packed


def plan(
    record: Record, folder: RunFolder, repository: Repository, there: dict[str, str], remote: Remote, *, outputs: bool
) -> Push:
    """What a push of this run publishes, to a remote that has the refs `there`.

    Raises:
        RefusedError: the run is not over, or its files are more than git should keep.
        EnvironmentUnfitError: its code is lost.
    """
    run, code = record.planned.run, record.planned.code
    if record.ended is None:
        raise RefusedError(f"run {run} is not over", hints=[f"`repro wait {run}`, `repro stop {run}`"])
    snapshot = snapshots.look(repository, code.commit, record.planned.code_prefix)
    return Push(
        run=run,
        record=identity.record_digest(record),
        remote=str(remote),
        snapshot=snapshot,
        there=SNAPSHOTS + code.commit in there,
        shown=snapshots.shown_by(repository, code, snapshot, set(there.values())),
        packed=parcel.choose(folder, record, outputs=outputs),
    )


def send_code(push: Push, remote: Remote, repository: Repository, there: dict[str, str], say: Say) -> None:
    """The code. It goes before the record: who finds the record finds all that it names.

    Raises:
        EnvironmentUnfitError: the remote cannot be reached, or does not take it; git-lfs is missing.
    """
    snapshots.push(push.snapshot, remote, there, repository, say)


def send_record(
    record: Record, folder: RunFolder, remote: Remote, repository: Repository, say: Say, *, outputs: bool
) -> bool:
    """The record and what belongs to it, on top of what others have pushed of it; False: the remote had all of it.

    Raises:
        RefusedError: the remote has another record of this id.
        EnvironmentUnfitError: the remote cannot be reached, or does not take it.
    """
    ref = ref_of(record.planned.run)
    for attempt in range(1, ATTEMPTS + 1):
        parent = remote.refs(say).get(ref)
        if parent and not has(repository, parent):
            remote.fetch([ref], say)
        packed = parcel.choose(folder, record, outputs=outputs)
        commit = parcel.pack(repository, folder, record, packed, parent)
        try:
            if commit != parent:
                remote.push([f"{commit}:{ref}"], say)
        except MovedError:
            if attempt == ATTEMPTS:
                raise
        else:
            git(repository.top, "update-ref", ref, commit)
            return commit != parent
    raise AssertionError("the last attempt raises")
