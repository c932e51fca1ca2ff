"""OpenSSH's ed25519 keys, the one door to cryptography: a public key checks a signature, a private one makes it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repro import printable
from repro.errors import BadInputError
from repro.experiment import Value

KIND = "ssh-ed25519"
KEY_LIMIT = 64 << 10  # bytes of a key file
MAKE_ONE = "`ssh-keygen -t ed25519` makes one that does"
PUBLIC = re.compile(rf"{KIND}\s+([A-Za-z0-9+/]+=*)(?:\s|$)")


class PublicKey(Value, frozen=True, kw_only=True):
    """An ed25519 key that signatures are checked with."""

    blob: bytes  # as SSH sends it: the kind of key and its 32 bytes

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it; the key id in our envelopes."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature of the message was made with the private half."""
        from cryptography.exceptions import InvalidSignature

        try:
            _loaded(self.blob).verify(signature, message)
        except InvalidSignature:
            return False
        return True


def public(line: str) -> PublicKey:
    """The key of a line as in `id_ed25519.pub`.

    Raises:
        ValueError: it has no ed25519 key, or bytes that are not what the line says: why.
    """
    found = PUBLIC.match(line.strip())
    if found is None:
        raise ValueError(f"not `{KIND}` and a key in base64: {printable.line(line.strip()[:40])}")
    try:
        blob = base64.b64decode(found[1], validate=True)
        loaded = _loaded(blob)
    except ValueError as error:
        raise ValueError(f"no {KIND} key: {error}") from error
    return _public(loaded)


def _public(key: Any) -> PublicKey:
    """In the one encoding that it has, whatever the file was like: one key is one signer."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return PublicKey(blob=base64.b64decode(line.split()[1]))


def _loaded(blob: bytes) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    key = load_ssh_public_key(f"{KIND} ".encode() + base64.b64encode(blob))
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("another kind of key")  # noqa: TRY004 - of the file, not of our arguments
    return key


class PrivateKey:
    """A private key in memory."""

    def __init__(self, key: Any) -> None:
        self._key = key

    @property
    def public(self) -> PublicKey:
        """Its public half."""
        return _public(self._key.public_key())

    def sign(self, message: bytes) -> bytes:
        """The signature of a message."""
        return bytes(self._key.sign(message))


def content(path: Path) -> bytes:
    """A key file, as far as one can be long.

    Raises:
        BadInputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(KEY_LIMIT)
    except OSError as error:
        raise BadInputError(f"the key {path} cannot be read", evidence=[str(error)], hints=[MAKE_ONE]) from error


def private(path: Path, ask: Callable[[str], str | None]) -> PrivateKey:
    """The key of a file in OpenSSH's format. `ask` is asked for a passphrase, once; None: nobody can answer.

    Raises:
        BadInputError: it is no such file, not of ed25519, or the passphrase is wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    raw = content(path)
    phrase: str | None = None
    try:
        try:
            key: Any = load_ssh_private_key(raw, None)
        except TypeError:  # it is encrypted
            phrase = ask(f"passphrase of {path}: ")
            if phrase is None:
                raise _locked(path) from None
            key = load_ssh_private_key(raw, phrase.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        what = "the passphrase is wrong, or the file is damaged" if phrase is not None else "no private OpenSSH key"
        raise BadInputError(f"{path}: {what}", evidence=[str(error)[:200]], hints=[MAKE_ONE]) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInputError(f"{path} is a key of another kind; only ed25519 signs", hints=[MAKE_ONE])
    return PrivateKey(key)


def _locked(path: Path) -> BadInputError:
    return BadInputError(
        f"{path} has a passphrase, and there is no terminal to ask for it",
        hints=[f"`ssh-add {path}`, then `--sign {path}.pub`: the agent signs"],
    )
