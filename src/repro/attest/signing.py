"""Verification + key -> a signed line beside it, without any network."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from repro.attest import agent, envelope, keys, statement
from repro.attest.keys import PublicKey
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.record import RunFolder
from repro.verdict import Verification

SUFFIX = ".intoto.jsonl"
FILE_LIMIT = 16 << 20  # bytes; what is beyond is not read


class Signer(Protocol):
    """Whatever can sign."""

    @property
    def public(self) -> PublicKey:
        """What its signatures are checked with."""

    def sign(self, message: bytes) -> bytes:
        """The signature of a message."""


def on_terminal(prompt: str) -> str | None:
    """What a person types, unseen; None where there is nobody to ask."""
    import getpass

    return getpass.getpass(prompt, stream=sys.stderr) if sys.stdin.isatty() else None


def key(path: Path, ask: Callable[[str], str | None] = on_terminal) -> Signer:
    """What signs: the private key of a file or, for a file with a public one, ssh-agent. To be had before a long run.

    Raises:
        BadInputError: it cannot be read, is not of ed25519, its passphrase is wrong, or the agent does not hold it.
        EnvironmentUnfitError: no agent answers.
    """
    begin = keys.content(path)
    if b"PRIVATE KEY" in begin:
        return keys.private(path, ask)
    try:
        public = keys.public(begin.decode("utf-8", "replace").partition("\n")[0])
    except ValueError as error:
        raise BadInputError(f"{path} holds no key that signs", evidence=[str(error)], hints=[keys.MAKE_ONE]) from error
    return agent.key(public)


def sign(verification: Verification, signer: Signer) -> bytes:
    """The signed statement of a verification, as one line; the same key and verification give the same line.

    Raises:
        RefusedError: there is nothing in it that could be attested.
        EnvironmentUnfitError: the agent does not sign.
    """
    payload = statement.make(verification)
    message = envelope.encoding(payload)
    signature = signer.sign(message)
    if not signer.public.verifies(signature, message):
        raise EnvironmentUnfitError(f"what signs for {signer.public.fingerprint} gives a wrong signature")
    return envelope.wrap(payload, signer.public.fingerprint, signature)


def place(folder: RunFolder, rerun: str) -> Path:
    """Where the signatures of a verification are: beside it, in the folder of the original run."""
    return folder.verifications / f"{rerun}{SUFFIX}"


def append(path: Path, line: bytes) -> bool:
    """Add a line to a file; False: it is there already.

    Raises:
        EnvironmentUnfitError: it cannot be written.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        before = path.read_bytes() if path.exists() else b""
        if line in before.split(b"\n"):
            return False
        torn = b"\n" if before and not before.endswith(b"\n") else b""
        with path.open("ab") as file:
            file.write(torn + line + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise EnvironmentUnfitError(f"the signature cannot be written to {path}", evidence=[str(error)]) from error
    return True


def lines(folder: RunFolder) -> Iterator[bytes]:
    """Every signed line of a run, as it is; of what is too long, so much that it is seen to be so."""
    for path in sorted(folder.verifications.glob(f"*{SUFFIX}")):
        read = 0
        with path.open("rb") as file:
            while read < FILE_LIMIT and (line := file.readline(envelope.LINE_LIMIT + 1)):
                read += len(line)
                if line.strip():
                    yield line.rstrip(b"\n")
