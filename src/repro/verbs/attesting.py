"""The verb `repro attest`: sign verifications that are on disk; and what other verbs need of signatures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from repro import identity, printable, report
from repro.display import Display
from repro.errors import BadInputError, ExitCode, RefusedError
from repro.project import Project
from repro.verbs.imaging import Add

if TYPE_CHECKING:
    from repro.attest.signing import Signer
    from repro.record import Record, RunFolder
    from repro.verdict import Verification

KEY = "an ed25519 key of OpenSSH: a private key's file, or a public one's, and ssh-agent signs"


def register(add: Add) -> None:
    """The verb with its arguments."""
    command = add(attest, "attest", "sign the verifications of a run that were made here, offline", json=True)
    command.add_argument("run", nargs="?", default="latest", help="the run, or one that reproduces it: that one alone")
    command.add_argument("--sign", required=True, metavar="KEY", help=KEY)


def attest(args: argparse.Namespace, display: Display) -> int:
    """A signed line for every verification that was made here, beside it."""
    from repro.tracking.lookup import find

    who = signer(args.sign)
    project = Project.find(Path.cwd())
    record, folder = find(project, args.run)
    only = None
    if record.planned.reproduces:
        only = record.planned.run
        record, folder = find(project, record.planned.reproduces)
    found = {
        path.stem: _read(path, record) for path in _made_here(_verifications(record, folder, only), project, display)
    }
    signatures = [
        {
            "verification": name,
            "file": str(signed(each, who, folder, name, display)),
            "keyid": who.public.fingerprint,
        }
        for name, each in found.items()
    ]
    print(report.as_json(signatures) if args.json else "\n".join(each["file"] for each in signatures))
    return ExitCode.OK


def _made_here(paths: list[Path], project: Project, display: Display) -> list[Path]:
    """Those whose rerun is in this project: of others, which came with a run, nobody here has seen anything.

    Raises:
        RefusedError: none is.
    """
    ours = [path for path in paths if _is_from_here(path, project)]
    for path in paths:
        if path not in ours:
            display.line(f"not signed  {printable.line(path.stem)}, which was not run in this project")
    if not ours:
        raise RefusedError(
            "none of the verifications is of a rerun that was made in this project",
            evidence=[printable.line(path.stem) for path in paths],
            hints=["`repro reproduce RUN --sign KEY` makes one", "whoever made those can sign them"],
        )
    return ours


def _is_from_here(path: Path, project: Project) -> bool:
    """Whether the rerun is a run of this project, and says the same of itself. Nothing of others' is read."""
    from repro.record import RunFolder
    from repro.verdict import Verification

    rerun = RunFolder(project.runs / path.stem)
    if rerun.elsewhere.exists() or rerun.archive.exists() or not rerun.verification.is_file():  # pulled or imported
        return False
    try:
        content = rerun.verification.read_bytes()
        own = msgspec.json.decode(content, type=Verification)
        return (
            content == path.read_bytes()
            and own.rerun == path.stem
            and own.rerun_record == identity.record_digest(rerun.read())
        )
    except (OSError, ValueError, RecursionError, BadInputError):
        return False


def signer(key: str) -> Signer:
    """What signs.

    Raises:
        BadInputError: the key cannot sign.
        EnvironmentUnfitError: no ssh-agent answers.
    """
    from repro.attest import signing

    return signing.key(Path(key).expanduser())


def signed(verification: Verification, signer: Signer, original: RunFolder, name: str, display: Display) -> Path:
    """The file with the signed verification, which is in the folder of the original run under this name.

    Raises:
        RefusedError: there is nothing in it that could be attested.
        EnvironmentUnfitError: it cannot be written, or the agent does not sign.
    """
    from repro.attest import signing

    place = signing.place(original, name)
    new = signing.append(place, signing.sign(verification, signer))
    display.line(f"{'signed' if new else 'was signed'}  {name} by {signer.public.fingerprint}")
    return place


def judge(record: Record, folder: RunFolder, policy: Path, *, json: bool) -> int:
    """Whether the signatures beside a run satisfy a policy; the exit code says so, too."""
    from repro.attest import policy as policies
    from repro.attest import signing

    wanted = policies.read(policy)
    found = policies.judge(wanted, identity.record_digest(record), identity.result_of(record), signing.lines(folder))
    print(report.as_json(found) if json else found.text)
    return ExitCode.OK if found.met else ExitCode.REFUSED


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
    digest = identity.record_digest(record)
    if (plain(found.record), plain(found.result)) != (digest, identity.result_of(record)):
        raise RefusedError(
            f"the verification {path.stem} is not of the record that run {record.planned.run} has now",
            evidence=[f"verified  sha256 {found.record}", f"now       sha256 {digest}"],
            hints=["one of them was changed since; nothing was signed"],
        )
    return found
