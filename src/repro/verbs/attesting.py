"""The verb `repro attest`: sign verifications that are on disk already."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from repro import identity, report
from repro.display import Display
from repro.errors import BadInputError, ExitCode, RefusedError
from repro.project import Project
from repro.verbs.imaging import Add

if TYPE_CHECKING:
    from repro.record import Record, RunFolder
    from repro.verdict import Verification


def register(add: Add) -> None:
    """The verb with its arguments."""
    command = add(
        attest, "attest", "sign the verifications of a run with an ed25519 key of OpenSSH, offline", json=True
    )
    command.add_argument("run", nargs="?", default="latest", help="the run, or one that reproduces it: that one alone")
    command.add_argument(
        "--sign", required=True, metavar="KEY", help="file of a private key; of a public one: ssh-agent signs"
    )


def attest(args: argparse.Namespace, display: Display) -> int:
    """A signed line for every verification, beside it."""
    from repro.attest import signing
    from repro.tracking.lookup import find

    signer = signing.key(Path(args.sign).expanduser())
    project = Project.find(Path.cwd())
    record, folder = find(project, args.run)
    only = None
    if record.planned.reproduces:
        only = record.planned.run
        record, folder = find(project, record.planned.reproduces)
    signed = []
    for path in _verifications(record, folder, only):
        line = signing.sign(_read(path, record), signer)
        place = signing.place(folder, path.stem)
        new = signing.append(place, line)
        signed.append({"verification": path.stem, "file": str(place), "keyid": signer.public.fingerprint, "new": new})
        display.line(f"{path.stem}  {'signed' if new else 'was signed'} by {signer.public.fingerprint}")
    print(report.as_json(signed) if args.json else "\n".join(str(each["file"]) for each in signed))
    return ExitCode.OK


def _verifications(record: Record, folder: RunFolder, only: str | None) -> list[Path]:
    found = sorted(folder.verifications.glob(f"{only or '*'}.json"))
    if not found:
        run = record.planned.run
        raise BadInputError(
            f"there is no verification of run {run}", hints=[f"`repro reproduce {run} --sign KEY` makes a signed one"]
        )
    return found


def _read(path: Path, record: Record) -> Verification:
    """A verification of just this record.

    Raises:
        BadInputError: it cannot be read.
        RefusedError: it is of another record, or result, than the run has now.
    """
    from repro.attest.statement import plain
    from repro.verdict import Verification

    try:
        found = msgspec.json.decode(path.read_bytes(), type=Verification)
    except (OSError, msgspec.MsgspecError) as error:
        raise BadInputError(f"{path} is no verification", evidence=[str(error)]) from error
    digest, result = identity.record_digest(record), record.ended.result if record.ended else ""
    if (plain(found.record), plain(found.result)) != (digest, plain(result)):
        raise RefusedError(
            f"the verification {path.stem} is not of the record that run {record.planned.run} has now",
            evidence=[f"verified  sha256 {found.record}", f"now       sha256 {digest}"],
            hints=["one of them was changed since; nothing was signed"],
        )
    return found
