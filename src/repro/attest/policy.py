"""Policy: whose word counts, how many of them it takes, and what they have to say. A judgement names every signature.

A line that somebody deleted leaves no trace, so nothing is ever concluded from a signature that is missing, or from
one that says otherwise: the policy alone says how many there have to be.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from repro import printable
from repro.attest import envelope, keys, statement
from repro.attest.envelope import MalformedError
from repro.attest.keys import PublicKey
from repro.errors import BadInputError
from repro.experiment import Positive, Value
from repro.verdict import Level

EXAMPLE = 'threshold = 2, level = "E5", and [keys] with lines such as alice = "ssh-ed25519 AAAA…"'
SIGNERS_LIMIT = 1 << 20  # bytes of a policy or a file of allowed signers


class Policy(Value, frozen=True, kw_only=True):
    """What somebody demands before they believe that a run can be had again."""

    threshold: int  # of distinct keys
    level: Level  # the least
    other_host: bool  # whether only a rerun on another host counts
    keys: dict[str, PublicKey]  # by the name that the policy gives them


class Signature(Value, frozen=True, kw_only=True):
    """One signed line, and what it counts for."""

    line: int
    who: str  # as the policy names the key; else the key id that the line gives itself, or ""
    trusted: bool  # it is signed by a key of the policy
    claim: str  # what it attests, where it is trusted
    valid: bool  # it counts
    why: str  # why it does not; "" where it does


class Judgement(Value, frozen=True, kw_only=True):
    """Whether a policy is met."""

    met: bool
    threshold: int
    signers: tuple[str, ...]  # whose signatures count, each once
    signatures: tuple[Signature, ...]

    @property
    def text(self) -> str:
        """The judgement for a person: first the count, then every signature."""
        count = f"{len(self.signers)} of {self.threshold} signers that the policy demands"
        lines = [count + (f": {', '.join(self.signers)}" if self.signers else "")]
        for each in self.signatures:
            words = "counts" if each.valid else f"does not count: {each.why}"
            lines.append("  ".join(part for part in (" ", each.who or f"line {each.line}", each.claim, words) if part))
        return "\n".join(lines)


class _File(Value, frozen=True, kw_only=True):
    """The policy as it is written."""

    threshold: Positive
    level: Literal["E2", "E3", "E4", "E5"]
    other_host: bool = False
    keys: dict[str, str] = msgspec.field(default_factory=dict)
    allowed_signers: str | None = None  # a file as ssh-keygen knows it, beside the policy


def read(path: Path) -> Policy:
    """The policy of a file.

    Raises:
        BadInputError: it is no policy, a key is not one of ed25519 or comes twice, or there are fewer keys than it
            takes.
    """
    try:
        written = msgspec.toml.decode(_content(path), type=_File)
    except msgspec.MsgspecError as error:
        raise BadInputError(f"{path} is no policy", evidence=[str(error)], hints=[EXAMPLE]) from error
    given = list(written.keys.items())
    if written.allowed_signers is not None:
        given += _allowed(path.parent / written.allowed_signers)
    known: dict[str, PublicKey] = {}
    for name, line in given:
        try:
            key = keys.public(line)
        except ValueError as error:
            raise BadInputError(f"{path}: the key of {name!r} cannot be used", evidence=[str(error)]) from error
        twice = [other for other, found in known.items() if found == key or other == name]
        if twice:
            raise BadInputError(f"{path}: {name!r} is {twice[0]!r} once more: each name has a key of its own")
        known[name] = key
    if len(known) < written.threshold:
        raise BadInputError(
            f"{path} demands {written.threshold} signers and trusts {len(known)}", hints=["add keys, or ask for less"]
        )
    return Policy(
        threshold=written.threshold,
        level=Level(int(written.level[1:])),
        other_host=written.other_host,
        keys=known,
    )


def judge(policy: Policy, record_digest: str, result: str, lines: Iterable[bytes]) -> Judgement:
    """What these signed lines say of the run with this record and this result, by the policy."""
    subject = statement.plain(record_digest), statement.plain(result)
    found = tuple(_signature(policy, subject, number, line) for number, line in enumerate(lines, start=1))
    signers = tuple(dict.fromkeys(each.who for each in found if each.valid))
    met = len(signers) >= policy.threshold
    return Judgement(met=met, threshold=policy.threshold, signers=signers, signatures=found)


def _signature(policy: Policy, subject: tuple[str, str], number: int, line: bytes) -> Signature:
    try:
        sealed = envelope.unwrap(line)
    except MalformedError as error:
        return _refused(number, "", f"malformed line: {error}")
    signed = envelope.encoding(sealed.payload)
    who = next((name for name, key in policy.keys.items() if key.verifies(sealed.signature, signed)), None)
    if who is None:  # nothing of what it says is believed
        named = next((name for name, key in policy.keys.items() if key.fingerprint == sealed.keyid), None)
        shown = printable.line(sealed.keyid[:100]) or "no key id"
        return _refused(number, named or shown, "bad signature" if named else "unknown key")
    try:
        claim = statement.read(sealed.payload)
    except MalformedError as error:
        return _refused(number, who, f"malformed line: {error}", trusted=True)
    why = _objection(policy, subject, claim)
    return Signature(line=number, who=who, trusted=True, claim=printable.line(str(claim)), valid=not why, why=why)


def _refused(number: int, who: str, why: str, *, trusted: bool = False) -> Signature:
    return Signature(line=number, who=who, trusted=trusted, claim="", valid=False, why=printable.line(why))


def _objection(policy: Policy, subject: tuple[str, str], claim: statement.Claim) -> str:
    """Why a true statement of somebody trusted is not enough; "" when it is."""
    record, result = subject
    if claim.record != record:
        return f"it is about another record (sha256 {claim.record[:12]}, not {record[:12]})"
    if claim.result != result:
        return f"it is about another result (sha256 {claim.result[:12]}, not {result[:12]})"
    if claim.level is None:
        return "nothing was compared"
    if claim.level < policy.level:
        return f"{claim.level} is less than {policy.level}"
    if policy.other_host and claim.witness != "other host":
        return "it was on the host of the original run"
    return ""


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(SIGNERS_LIMIT + 1)
    except OSError as error:
        raise BadInputError(f"{path} cannot be read", evidence=[str(error)]) from error
    if len(content) > SIGNERS_LIMIT:
        raise BadInputError(f"{path} is too long for what it should be")
    return content


def _allowed(path: Path) -> list[tuple[str, str]]:
    """Names and keys of a file of allowed signers.

    Raises:
        BadInputError: a line is not NAME ssh-ed25519 KEY. Options would limit a key in ways that we cannot see to.
    """
    found = []
    for number, line in enumerate(_content(path).decode("utf-8", "replace").splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) < 3 or fields[1] != keys.KIND:
            raise BadInputError(
                f"{path}, line {number}: not NAME {keys.KIND} KEY",
                evidence=[printable.line(line[:200])],
                hints=["options (cert-authority, namespaces, valid-before) and other kinds of keys are not supported"],
            )
        found.append((fields[0], " ".join(fields[1:3])))
    return found
