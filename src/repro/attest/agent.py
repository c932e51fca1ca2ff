"""ssh-agent: keys that this process never sees, and that sign all the same."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping

from repro.attest.keys import KIND, PublicKey
from repro.errors import BadInputError, EnvironmentUnfitError

SECONDS = 60.0  # a person may have to touch or to confirm something
ANSWER_LIMIT = 1 << 20  # bytes
LIST, LISTED, SIGN, SIGNED = 11, 12, 13, 14  # messages of the agent's protocol


class AgentKey:
    """A key that the agent holds."""

    def __init__(self, public: PublicKey, address: str) -> None:
        self.public, self._address = public, address

    def sign(self, message: bytes) -> bytes:
        """The agent's signature of a message.

        Raises:
            EnvironmentUnfitError: it refuses, or does not answer.
        """
        answer = _ask(self._address, SIGN, _text(self.public.blob) + _text(message) + struct.pack(">I", 0))
        parts = list(_texts(next(_texts(answer[1:]), b""))) if answer[:1] == bytes([SIGNED]) else []
        if len(parts) != 2 or parts[0] != KIND.encode():
            raise EnvironmentUnfitError(
                f"ssh-agent does not sign with {self.public.fingerprint}", hints=["`ssh-add -l` lists what it holds"]
            )
        return parts[1]


def key(public: PublicKey, environ: Mapping[str, str] = os.environ) -> AgentKey:
    """The private half of a key in the agent.

    Raises:
        EnvironmentUnfitError: no agent answers.
        BadInputError: it does not hold the key.
    """
    address = environ.get("SSH_AUTH_SOCK", "")
    if not address:
        raise EnvironmentUnfitError(
            "a public key signs through ssh-agent, and none is running here (SSH_AUTH_SOCK is not set)",
            hints=["name the private key", "`eval $(ssh-agent)`, `ssh-add KEY`"],
        )
    answer = _ask(address, LIST, b"")
    if answer[:1] != bytes([LISTED]) or public.blob not in list(_texts(answer[5:])):
        raise BadInputError(
            f"ssh-agent does not hold {public.fingerprint}", hints=["`ssh-add KEY` gives it to the agent"]
        )
    return AgentKey(public, address)


def _ask(address: str, kind: int, body: bytes) -> bytes:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(SECONDS)
            connection.connect(address)
            connection.sendall(struct.pack(">IB", len(body) + 1, kind) + body)
            (length,) = struct.unpack(">I", _exactly(connection, 4))
            return _exactly(connection, min(length, ANSWER_LIMIT))
    except OSError as error:
        raise EnvironmentUnfitError(f"ssh-agent does not answer at {address}", evidence=[str(error)]) from error


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            raise ConnectionError("it hung up")
        found += piece
    return found


def _text(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def _texts(raw: bytes) -> Iterator[bytes]:
    """The byte strings of a message, one after the other."""
    while len(raw) >= 4:
        (length,) = struct.unpack(">I", raw[:4])
        yield raw[4 : 4 + length]
        raw = raw[4 + length :]
