"""Signed verifications: what is signed, who signs, and what never passes for a signature. Real keys, real ssh-agent."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rfc8785
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from repro.attest import envelope, keys, policy, signing, statement
from repro.attest.policy import Judgement, Policy
from repro.errors import BadInputError, EnvironmentUnfitError, RefusedError
from repro.record import Gpu, Host, RunFolder
from repro.verdict import Ceiling, Compared, Level, Verdict, Verification

RECORD, RESULT = "a" * 64, "b" * 64
RUN, RERUN = "20261123-191500-toy-3f9c1a", "20261124-080000-toy-aa11bb"
HOST = Host(
    name="secret-name",
    user="secret-user",
    system="Linux",
    cpus=8,
    memory=1 << 34,
    engine="Docker 28",
    architecture="x86_64",
    cpu="Some CPU",
    cpu_flags=("avx2", "sse2"),
    gpus=(Gpu(name="Some GPU", uuid="secret-uuid", architecture="9.0", memory=1 << 36, driver="1.2"),),
)


def verification(level: Level | None = Level.BYTES, **changes: Any) -> Verification:
    """One that went as `level` says."""
    compared = (Compared(kind="file", name="x", level=level or Level.MISSING),)
    verdict = Verdict(before=RUN, after=RERUN, level=level, compared=compared) if level is not None else None
    value = Verification(
        run=RUN,
        record=RECORD,
        run_key="c" * 64,
        result=RESULT,
        rerun=RERUN,
        rerun_record="d" * 64,
        rerun_result=RESULT,
        at=datetime(2026, 11, 24, 8, tzinfo=timezone.utc),
        by="secret-user",
        repro="0.1.0",
        host=HOST,
        witness="other host",
        expected=Level.BYTES,
        ceiling=Ceiling(level=Level.BYTES, reason=""),
        ingredients=(),
        rebuilt=False,
        verdict=verdict,
        reached=level is Level.BYTES,
    )
    return msgspec.structs.replace(value, **changes)


def new_key() -> keys.PrivateKey:
    return keys.PrivateKey(Ed25519PrivateKey.generate())


def line_of(key: keys.PrivateKey) -> str:
    return f"ssh-ed25519 {base64.b64encode(key.public.blob).decode()} somebody@example.org"


ALICE, BOB, MALLORY = new_key(), new_key(), new_key()


def demand(threshold: int = 1, level: Level = Level.BYTES, *, other_host: bool = False) -> Policy:
    trusted = {"alice": ALICE.public, "bob": BOB.public}
    return Policy(threshold=threshold, level=level, other_host=other_host, keys=trusted)


def judged(*lines: bytes, wanted: Policy | None = None) -> Judgement:
    return policy.judge(wanted or demand(), RECORD, RESULT, lines)


def signed(key: keys.PrivateKey = ALICE, level: Level | None = Level.BYTES, **changes: Any) -> bytes:
    return signing.sign(verification(level, **changes), key)


def sealed(payload: bytes, key: keys.PrivateKey = ALICE) -> bytes:
    """Any payload, truly signed."""
    return envelope.wrap(payload, key.public.fingerprint, key.sign(envelope.encoding(payload)))


def changed(line: bytes, **members: Any) -> bytes:
    return json.dumps({**json.loads(line), **members}).encode()


# what is signed -------------------------------------------------------------------------------------------------


def test_what_is_signed_is_encoded_as_the_dsse_specification_shows() -> None:
    found = envelope.encoding(b"hello world", "http://example.com/HelloWorld")
    assert found == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_a_statement_is_one_of_in_toto_about_record_and_result_and_names_nobody() -> None:
    payload = statement.make(verification())
    found = json.loads(payload)
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["subject"] == [
        {"name": "record", "digest": {"sha256": RECORD}},
        {"name": "result", "digest": {"sha256": RESULT}},
    ]
    predicate = found["predicate"]
    assert (predicate["result"], predicate["passedTests"], predicate["failedTests"]) == ("PASSED", ["file x"], [])
    assert (predicate["verification"]["level"], predicate["verification"]["rerun"]) == ("E5", RERUN)
    assert predicate["verification"]["hostClass"]["gpus"][0]["architecture"] == "9.0"
    assert b"secret" not in payload
    assert rfc8785.dumps(found) == payload


def test_one_that_differs_is_attested_as_failed() -> None:
    predicate = json.loads(statement.make(verification(Level.DIFFERENT)))["predicate"]
    assert (predicate["result"], predicate["failedTests"]) == ("FAILED", ["file x"])


def test_a_run_without_a_result_cannot_be_attested() -> None:
    with pytest.raises(RefusedError, match="does not tell the run's result"):
        signing.sign(verification(result=""), ALICE)


# who signs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ssh(tmp_path: Path) -> Callable[..., str]:
    """A program of OpenSSH's, in a folder of its own."""

    def call(*argv: str, **environment: str) -> str:
        done = subprocess.run(
            argv, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@pytest.mark.parametrize("phrase", ["", "with a passphrase"])
def test_a_key_of_ssh_keygen_signs_and_its_id_is_the_fingerprint_that_it_prints(
    tmp_path: Path, ssh: Callable[..., str], phrase: str
) -> None:
    ssh("ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", "key")
    signer = signing.key(tmp_path / "key", ask=lambda _prompt: phrase)
    assert signer.public.fingerprint in ssh("ssh-keygen", "-lf", "key.pub").split()
    trusted = {"carol": keys.public((tmp_path / "key.pub").read_text())}
    wanted = Policy(threshold=1, level=Level.BYTES, other_host=True, keys=trusted)
    assert judged(signing.sign(verification(), signer), wanted=wanted).signers == ("carol",)


@pytest.fixture
def agent(ssh: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real ssh-agent, without keys."""
    told = dict(re.findall(r"(SSH_\w+)=([^;]+);", ssh("ssh-agent", "-s")))
    monkeypatch.setenv("SSH_AUTH_SOCK", told["SSH_AUTH_SOCK"])
    yield
    ssh("ssh-agent", "-k", **told)


@pytest.mark.usefixtures("agent")
def test_with_a_public_key_the_agent_signs(tmp_path: Path, ssh: Callable[..., str]) -> None:
    ssh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "key")
    with pytest.raises(BadInputError, match="does not hold"):
        signing.key(tmp_path / "key.pub")
    ssh("ssh-add", "-q", "key")
    by_agent = signing.sign(verification(), signing.key(tmp_path / "key.pub"))
    assert by_agent == signing.sign(verification(), signing.key(tmp_path / "key"))


def test_without_an_agent_a_public_key_cannot_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / "key.pub").write_text(line_of(ALICE))
    with pytest.raises(EnvironmentUnfitError, match="through ssh-agent, and none is running"):
        signing.key(tmp_path / "key.pub")


def openssh(key: Any, phrase: bytes = b"") -> bytes:
    how = serialization.BestAvailableEncryption(phrase) if phrase else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, how))


@pytest.mark.parametrize(
    ("content", "answer", "said"),
    [
        (openssh(rsa.generate_private_key(65537, 2048)), None, "another kind; only ed25519"),
        (openssh(Ed25519PrivateKey.generate(), b"right"), None, "no terminal to ask"),
        (openssh(Ed25519PrivateKey.generate(), b"right"), "wrong", "passphrase is wrong"),
        (openssh(Ed25519PrivateKey.generate())[:200], None, "no private OpenSSH key"),
        (b"hello", None, "no key that signs"),
        (None, None, "cannot be read"),
    ],
    ids=["rsa", "nobody to ask", "wrong passphrase", "cut", "no key", "missing"],
)
def test_a_key_that_cannot_sign_is_told_before_anything_runs(
    tmp_path: Path, content: bytes | None, answer: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(BadInputError, match=said):
        signing.key(tmp_path / "key", ask=lambda _prompt: answer)


def test_lines_are_added_once_and_a_torn_last_line_spoils_no_other(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    place = signing.place(folder, RERUN)
    assert place == tmp_path / "verifications" / f"{RERUN}.intoto.jsonl"
    assert signing.append(place, signed(ALICE))
    assert not signing.append(place, signed(ALICE))
    place.write_bytes(place.read_bytes() + signed(BOB)[:50])
    assert signing.append(place, signed(BOB))
    found = judged(*signing.lines(folder), wanted=demand(2))
    assert (found.met, found.signers, len(found.signatures)) == (True, ("alice", "bob"), 3)


# what a policy makes of it --------------------------------------------------------------------------------------


def test_as_many_distinct_signers_as_the_policy_says_meet_it() -> None:
    assert judged(signed(ALICE), signed(BOB), wanted=demand(2)).met
    alone = judged(signed(ALICE), wanted=demand(2))
    assert (alone.met, alone.text.splitlines()[0]) == (False, "1 of 2 signers that the policy demands: alice")


def test_a_signer_counts_once_however_often_they_sign() -> None:
    found = judged(signed(ALICE), signed(ALICE, rerun="another"), signed(ALICE), wanted=demand(2))
    assert (found.met, found.signers) == (False, ("alice",))


@pytest.mark.parametrize(
    ("line", "who", "why"),
    [
        (signed(MALLORY), MALLORY.public.fingerprint, "unknown key"),
        (signed(record="e" * 64), "alice", "another record"),
        (signed(result="e" * 64), "alice", "another result"),
        (signed(level=Level.STABILIZED), "alice", "E4 is less than E5"),
        (signed(level=None), "alice", "nothing was compared"),
    ],
    ids=["unknown key", "record", "result", "level", "no rerun"],
)
def test_a_signature_that_does_not_count_is_named_with_its_reason(line: bytes, who: str, why: str) -> None:
    found = judged(line)
    assert not found.met
    assert found.signatures[0].who == who
    assert why in found.signatures[0].why


def test_where_another_host_is_demanded_the_same_one_does_not_count() -> None:
    line = signed(witness="same host")
    assert judged(line).met
    assert "on the host of the original" in judged(line, wanted=demand(other_host=True)).signatures[0].why


def other_payload() -> bytes:
    """Alice's signature over another statement of hers, which attests more."""
    low, high = signed(level=Level.DIFFERENT), signed()
    return changed(low, payload=json.loads(high)["payload"])


def statement_with(**members: Any) -> bytes:
    return rfc8785.dumps({**json.loads(statement.make(verification())), **members})


TWICE = statement.make(verification(Level.DIFFERENT)).replace(b'"level":"E1"', b'"level":"E1","level":"E5"')
HOSTILE = {
    "another payload under the signature": other_payload(),
    "a type that is none of in-toto's": changed(signed(), payloadType="text/plain"),
    "signed as another type": envelope.wrap(
        statement.make(verification()), "", ALICE.sign(envelope.encoding(statement.make(verification()), "text/plain"))
    ),
    "signed without the encoding": envelope.wrap(
        statement.make(verification()), "", ALICE.sign(statement.make(verification()))
    ),
    "two signatures in one envelope": changed(signed(), signatures=json.loads(signed())["signatures"] * 2),
    "no signature": changed(signed(), signatures=[]),
    "a signature that is too short": changed(signed(), signatures=[{"sig": "AAAA"}]),
    "wrong base64": changed(signed(), payload="*" + json.loads(signed())["payload"]),
    "base64 with a space in it": changed(signed(), payload=json.loads(signed())["payload"][:8] + " AAAA"),
    "a payload that is no text": changed(signed(), payload=7),
    "a name twice in the envelope": signed()[:-1] + b',"payloadType":"application/vnd.in-toto+json"}',
    "a name twice in the statement": sealed(TWICE),
    "not canonical": sealed(statement.make(verification()) + b" "),
    "another predicate": sealed(statement_with(predicateType="https://example.org/other/v1")),
    "another statement": sealed(statement_with(_type="https://in-toto.io/Statement/v0.1")),
    "no subject": sealed(statement_with(subject=[])),
    "a subject more": sealed(statement_with(subject=[*json.loads(statement.make(verification()))["subject"]] * 2)),
    "the id of a trusted key": envelope.wrap(
        statement.make(verification()), ALICE.public.fingerprint, MALLORY.sign(b"anything")
    ),
    "no object": b"[]",
    "not JSON": b"hello",
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "a huge number": sealed(b'{"_type":' + b"9" * 5000 + b"}"),
    "huge": signed() + b" " * envelope.LINE_LIMIT,
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_signed_statement_counts_for_nothing_and_spoils_no_other(line: bytes) -> None:
    found = judged(line, signed(BOB), wanted=demand(1))
    assert [each.valid for each in found.signatures] == [False, True]
    assert found.signatures[0].why
    assert not judged(line).met


def test_base64_for_addresses_is_understood_as_dsse_allows_it() -> None:
    line = json.loads(signed())
    line["payload"] = line["payload"].replace("+", "-").replace("/", "_")
    line["signatures"][0]["sig"] = line["signatures"][0]["sig"].replace("+", "-").replace("/", "_")
    assert judged(json.dumps(line).encode()).met


def test_nothing_that_a_stranger_writes_reaches_the_terminal_as_it_is() -> None:
    line = changed(signed(MALLORY), signatures=[{"keyid": "\x1b[2J", "sig": base64.b64encode(b"0" * 64).decode()}])
    assert "\x1b" not in judged(line).text


def test_a_file_without_an_end_is_not_read_without_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    place = signing.place(folder, RERUN)
    signing.append(place, signed())
    with place.open("ab") as file:
        file.truncate(1 << 30)  # a hole
    found = judged(*signing.lines(folder))
    assert (found.met, found.signatures[1].valid) == (True, False)
    assert sum(map(len, signing.lines(folder))) <= signing.FILE_LIMIT + envelope.LINE_LIMIT


# the policy itself ----------------------------------------------------------------------------------------------


def written(folder: Path, text: str, signers: str = "") -> Path:
    (folder / "signers").write_text(signers)
    (folder / "policy.toml").write_text(text)
    return folder / "policy.toml"


def test_a_policy_names_its_keys_or_a_file_of_allowed_signers(tmp_path: Path) -> None:
    text = (
        f'threshold = 2\nlevel = "E4"\nother_host = true\nallowed_signers = "signers"\n[keys]\nal = "{line_of(ALICE)}"'
    )
    found = policy.read(written(tmp_path, text, f"# ours\n\nbob@example.org {line_of(BOB)}\n"))
    assert found == Policy(
        threshold=2,
        level=Level.STABILIZED,
        other_host=True,
        keys={"al": ALICE.public, "bob@example.org": BOB.public},
    )


def rsa_as_ed25519() -> str:
    blob = rsa.generate_private_key(65537, 2048).public_key()
    line = blob.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    return line.replace("ssh-rsa", "ssh-ed25519")


HEAD = 'threshold = 1\nlevel = "E5"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('level = "E5"', "threshold"),
        ("threshold = 1", "level"),
        ('threshold = 0\nlevel = "E5"', "threshold"),
        ('threshold = 1\nlevel = "E1"', "E1"),
        (HEAD + "treshold = 2", "treshold"),
        (HEAD + f'[keys]\na = "{line_of(ALICE)}"\nb = "{line_of(ALICE)}"', "'b' is 'a' once more"),
        (HEAD + f'[keys]\na = "{rsa_as_ed25519()}"', "the key of 'a' cannot be used"),
        (HEAD + f'[keys]\na = "ssh-rsa AAAA {line_of(ALICE)}"', "the key of 'a' cannot be used"),
        (HEAD + '[keys]\na = "ssh-ed25519 AAAA"', "the key of 'a' cannot be used"),
        (f'threshold = 3\nlevel = "E5"\n[keys]\na = "{line_of(ALICE)}"', "demands 3 signers and trusts 1"),
        (HEAD + 'allowed_signers = "signers"', "line 1: not NAME ssh-ed25519 KEY"),
        (HEAD + 'allowed_signers = "nothing"', "cannot be read"),
        ("[[[", "is no policy"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInputError, match=re.escape(said)):
        policy.read(written(tmp_path, text, f"* cert-authority {line_of(ALICE)}\n"))
