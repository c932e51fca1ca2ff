"""Bytes and a signature <-> one line of JSON: a DSSE envelope. What comes from a file is not trusted here at all."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import msgspec

from repro.experiment import Value

PAYLOAD = "application/vnd.in-toto+json"
LINE_LIMIT = 1 << 20  # bytes; a statement of ours has a few thousand
SIGNATURE_SIZE = 64  # bytes, of ed25519


class MalformedError(Exception):
    """Bytes that are not what they should be: why, in a few words."""


class Envelope(Value, frozen=True, kw_only=True):
    """What was signed, as it lies in its envelope; nothing is known yet of who signed it."""

    payload: bytes
    keyid: str  # what the signer calls their key: a hint, no proof
    signature: bytes


class _Signature(msgspec.Struct, frozen=True, kw_only=True):
    sig: str
    keyid: str = ""


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    payload: str
    payloadType: str  # noqa: N815 - the name in the file
    signatures: list[_Signature]


def encoding(payload: bytes, kind: str = PAYLOAD) -> bytes:
    """What is signed: DSSE's pre-authentication encoding, so that no payload can pass for one of another type."""
    name = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def wrap(payload: bytes, keyid: str, signature: bytes) -> bytes:
    """The envelope as one line, without its end."""
    line = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD,
        "signatures": [{"keyid": keyid, "sig": base64.b64encode(signature).decode()}],
    }
    return msgspec.json.encode(line, order="deterministic")


def unwrap(line: bytes) -> Envelope:
    """The envelope of a line.

    Raises:
        MalformedError: it is none, or not one of a statement with one signature.
    """
    if len(line) > LINE_LIMIT:
        raise MalformedError(f"longer than {LINE_LIMIT:,} bytes")
    try:
        found = msgspec.convert(strict(line), _Line)
    except msgspec.ValidationError as error:
        raise MalformedError(f"no DSSE envelope: {error}") from error
    if found.payloadType != PAYLOAD:
        raise MalformedError("its payload is no in-toto statement")
    if len(found.signatures) != 1:
        raise MalformedError(f"{len(found.signatures)} signatures in one envelope; each has a line of its own")
    (only,) = found.signatures
    signature = _bytes(only.sig)
    if len(signature) != SIGNATURE_SIZE:
        raise MalformedError("its signature is none of ed25519")
    return Envelope(payload=_bytes(found.payload), keyid=only.keyid, signature=signature)


def strict(text: bytes) -> Any:
    """JSON that every reader understands in the same way: a name that comes twice in an object is refused.

    Raises:
        MalformedError: it is no such JSON.
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"no JSON: {str(error)[:100]}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice in one object")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _bytes(text: str) -> bytes:
    """Base64 in either alphabet, as DSSE allows; with nothing between its letters."""
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedError("wrong base64") from error
