"""`repro attest` and `repro verify --policy`, as a user has them, without an engine."""

# ruff: noqa: F811 - a fixture is imported, and asked for by its name
from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from repro import identity
from repro.project import Project
from repro.record import RunFolder
from repro.verdict import Level, Verification
from tests.test_attest import ALICE, BOB, RERUN, line_of, openssh, verification
from tests.test_sharing import RUN, Say, made, say  # noqa: F401


@pytest.fixture
def verified(project: Project) -> RunFolder:
    """A run with one verification that was made here and is not signed."""
    folder = made(project)
    (folder.verifications / "20261124-080000-toy-aa11bb.intoto.jsonl").unlink()
    rerun = made(project, RERUN, reproduces=RUN)
    record = folder.read()
    assert record.ended is not None
    ended = msgspec.structs.replace(record.ended, result=identity.result(record.ended))
    record = msgspec.structs.replace(record, ended=ended)
    folder.write(record)
    found = verification(
        Level.BYTES,
        record=identity.record_digest(record),
        result=ended.result,
        rerun_record=identity.record_digest(rerun.read()),
    )
    for path in (folder.verifications / f"{RERUN}.json", rerun.verification):
        path.write_bytes(msgspec.json.encode(found))
    return folder


@pytest.fixture
def key(tmp_path: Path) -> str:
    (tmp_path / "key").write_bytes(openssh(ALICE._key))
    return str(tmp_path / "key")


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "policy.toml"
    path.write_text(f'threshold = 1\nlevel = "E5"\n[keys]\nalice = "{line_of(ALICE)}"\nbob = "{line_of(BOB)}"\n')
    return str(path)


def test_what_is_signed_later_meets_a_policy(
    verified: RunFolder,
    project: Project,
    say: Say,
    key: str,
    policy: str,
) -> None:
    assert say(project, "verify", RUN, "--policy", policy).code == 4
    done = say(project, "attest", RUN, "--sign", key, "--json")
    assert done.code == 0, done.err
    (signed,) = json.loads(done.out)
    assert (signed["verification"], signed["keyid"]) == (RERUN, ALICE.public.fingerprint)
    before = Path(signed["file"]).read_bytes()
    assert say(project, "attest", RUN, "--sign", key).code == 0
    assert Path(signed["file"]).read_bytes() == before
    done = say(project, "verify", RUN, "--policy", policy, "--json")
    assert (done.code, json.loads(done.out)["signers"]) == (0, ["alice"]), done.err


def test_what_others_say_of_a_run_is_not_signed_with_what_was_seen_here(
    verified: RunFolder, project: Project, say: Say, key: str
) -> None:
    """It came with a pull or a bundle: two who sign it would be two witnesses of nothing."""
    own = verified.verifications / f"{RERUN}.json"
    forged = msgspec.structs.replace(msgspec.json.decode(own.read_bytes(), type=Verification), by="mallory")
    theirs = verified.verifications / f"{RERUN[:-1]}9.json"
    theirs.write_bytes(msgspec.json.encode(msgspec.structs.replace(forged, rerun=theirs.stem)))
    (verified.verifications / "junk.json").write_bytes(b"[" * 10**5)
    done = say(project, "attest", RUN, "--sign", key, "--json")
    assert (done.code, [each["verification"] for each in json.loads(done.out)]) == (0, [RERUN])
    assert f"not signed  {theirs.stem}" in done.err
    own.write_bytes(msgspec.json.encode(forged))
    done = say(project, "attest", RUN, "--sign", key)
    assert (done.code, "made in this project" in done.err) == (4, True)
    RunFolder(project.runs / RERUN).verification.write_bytes(own.read_bytes())
    RunFolder(project.runs / RERUN).elsewhere.touch()
    assert say(project, "attest", RUN, "--sign", key).code == 4


def test_a_verification_of_another_record_is_not_signed(
    verified: RunFolder,
    project: Project,
    say: Say,
    key: str,
) -> None:
    record = verified.read()
    verified.write(msgspec.structs.replace(record, planned=msgspec.structs.replace(record.planned, notices=("x",))))
    done = say(project, "attest", RUN, "--sign", key)
    assert (done.code, "is not of the record that run" in done.err) == (4, True)
    assert list(verified.verifications.glob("*.jsonl")) == []


def test_a_run_that_nobody_verified_has_nothing_to_sign(project: Project, say: Say, key: str) -> None:
    made(project)
    done = say(project, "attest", RUN, "--sign", key)
    assert (done.code, "there is no verification" in done.err, "--sign KEY" in done.err) == (2, True, True)


def test_a_key_that_cannot_sign_is_told_before_the_run_is_looked_for(project: Project, say: Say) -> None:
    done = say(project, "reproduce", "none", "--sign", str(project.root / "toy.sh"))
    assert (done.code, "holds no key that signs" in done.err) == (2, True)
