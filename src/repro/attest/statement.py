"""Verification -> an in-toto statement of it in canonical JSON, and back to what it claims.

The predicate is in-toto's own for test results, so that tools that know nothing of us can read whether it passed; what
we add to it is in its member `verification`. Names of people, machines and folders stay out of it.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from repro import identity
from repro.attest.envelope import MalformedError, strict
from repro.errors import RefusedError
from repro.experiment import Sha256, Value
from repro.record import Host
from repro.verdict import Compared, Level, Verification

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
VERSION = 1  # of the member `verification`
RECORD, RESULT = "record", "result"  # the names of the subjects
NAMED = 1000  # results that are listed; of more, none is


class Claim(Value, frozen=True, kw_only=True):
    """What a statement says, as far as a policy asks."""

    record: str  # sha256 of the record of the run that it is about
    result: str
    run: str
    rerun: str | None
    level: Level | None  # None: there was nothing to compare
    witness: Literal["same host", "other host"]

    def __str__(self) -> str:
        level = str(self.level) if self.level is not None else "nothing"
        where = "another host" if self.witness == "other host" else "the same host"
        return f"{level} on {where}" + (f", by {self.rerun}" if self.rerun else "")


class _Digest(msgspec.Struct, frozen=True, kw_only=True):
    sha256: Sha256


class _Subject(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    digest: _Digest


class _Verification(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    run: str
    rerun: str | None
    level: Literal["E0", "E1", "E2", "E3", "E4", "E5"] | None
    witness: Literal["same host", "other host"]


class _Predicate(msgspec.Struct, frozen=True, kw_only=True):
    verification: _Verification


class _Statement(msgspec.Struct, frozen=True, kw_only=True):
    _type: str
    subject: list[_Subject]
    predicateType: str  # noqa: N815 - the name in the file
    predicate: _Predicate


def make(verification: Verification) -> bytes:
    """The statement of a verification.

    Raises:
        RefusedError: the run is of an earlier version, and has no digests that could be attested.
    """
    record, result = plain(verification.record), plain(verification.result)
    if not (record and result):
        raise RefusedError(
            f"the verification of run {verification.run} cannot be signed: it does not tell the run's result",
            hints=["none is in records whose outputs could not all be read, and in old ones: `repro run` it anew"],
        )
    return identity.canonical(
        {
            "_type": STATEMENT,
            "predicate": _predicate(verification),
            "predicateType": PREDICATE,
            "subject": [
                {"digest": {"sha256": record}, "name": RECORD},
                {"digest": {"sha256": result}, "name": RESULT},
            ],
        }
    )


def plain(digest: str | None) -> str:
    """A sha256 without a prefix that says so; "" where there is none."""
    return (digest or "").removeprefix("sha256:")


def read(payload: bytes) -> Claim:
    """What a statement claims.

    Raises:
        MalformedError: it is no statement of a verification, or not in canonical JSON.
    """
    value = strict(payload)
    try:
        if identity.canonical(value) != payload:
            raise MalformedError("not in canonical JSON")
        found = msgspec.convert(value, _Statement)
    except (ValueError, RecursionError) as error:  # msgspec's and the canonical form's are ValueErrors
        raise MalformedError(f"no statement of a verification: {str(error)[:200]}") from error
    ours = found.predicate.verification
    if (found._type, found.predicateType, ours.version) != (STATEMENT, PREDICATE, VERSION):
        raise MalformedError("a statement of another type or version")
    subjects = {subject.name: subject.digest.sha256 for subject in found.subject}
    if len(found.subject) != 2 or set(subjects) != {RECORD, RESULT}:
        raise MalformedError("its subjects are not one record and one result")
    return Claim(
        record=subjects[RECORD],
        result=subjects[RESULT],
        run=ours.run,
        rerun=ours.rerun,
        level=Level(int(ours.level[1:])) if ours.level else None,
        witness=ours.witness,
    )


def _predicate(verification: Verification) -> dict[str, Any]:
    rerun, verdict = plain(verification.rerun_record), verification.verdict
    results = [each for each in verdict.compared if each.role == "result"] if verdict else []
    tests = {
        "passedTests": [_test(each) for each in results if each.level >= verification.expected],
        "failedTests": [_test(each) for each in results if each.level < verification.expected],
    }
    return {
        "result": "PASSED" if verification.reached else "FAILED",
        "configuration": [{"digest": {"sha256": rerun}, "name": "record of the rerun"}] if rerun else [],
        **(tests if len(results) <= NAMED else {}),
        "verification": {
            "version": VERSION,
            "run": verification.run,
            "runKey": verification.run_key,
            "rerun": verification.rerun,
            "rerunRecord": rerun or None,
            "rerunResult": plain(verification.rerun_result) or None,
            "level": str(verdict.level) if verdict else None,
            "expected": str(verification.expected),
            "reached": verification.reached,
            "ceiling": {"level": str(verification.ceiling.level), "reason": verification.ceiling.reason},
            "witness": verification.witness,
            "rebuilt": verification.rebuilt,
            "at": verification.at.isoformat(),
            "hostClass": _host_class(verification.host),
            "repro": verification.repro,
        },
    }


def _test(compared: Compared) -> str:
    return " ".join(part for part in (compared.kind, compared.name) if part)


def _host_class(host: Host) -> dict[str, Any]:
    """What of a machine decides whether equal bits can be expected, and nothing that names it."""
    flags = hashlib.sha256(" ".join(host.cpu_flags).encode()).hexdigest()
    return {
        "architecture": host.architecture,
        "cpu": host.cpu,
        "cpuFlags": {"sha256": flags} if host.cpu_flags else None,
        "cpus": host.cpus,
        "gpus": [{"name": gpu.name, "architecture": gpu.architecture, "driver": gpu.driver} for gpu in host.gpus],
    }
