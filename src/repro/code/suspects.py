"""Untracked files that look like secrets, by name or by content: said before git stores them for ever."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from repro.errors import BadInputError, RefusedError
from repro.record import shown

HOLDERS = (
    *(".env", ".env.*", "*.p12", "*.pfx", "*.jks", "*.kdbx", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519"),
    *(".netrc", "_netrc", ".pgpass", ".pypirc", ".npmrc", ".git-credentials", "credentials.json", "secrets.*"),
)
CERTIFICATES = ("*.pem", "*.key", "*.crt")  # and keys: their content tells
HARMLESS = ("*.example", "*.sample", "*.template", "*.dist", "*.pub")
SMALL = 1 << 20  # bytes; what is larger is data
GLANCE = 4 << 10  # bytes that are looked at, of certificates all
KEYS = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY|PuTTY-User-Key-File",
    "an AWS key": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22})",
    "a GitLab token": rb"\bglpat-[A-Za-z0-9_-]{20}",
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30}",
    "an API key": rb"\bsk-[A-Za-z0-9_-]{24}|\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": rb"\bxox[abprs]-[A-Za-z0-9-]{10}",
}
SIGNS = re.compile(b"|".join(b"(%s)" % sign for sign in KEYS.values()))
LISTED = 10
POLICY = "REPRO_SNAPSHOT_SECRETS"


def report(top: Path, untracked: Iterable[str], warn: Callable[[str], None]) -> None:
    """Say which files look like secrets, and how to keep them out; or refuse, where the user wants that.

    Args:
        top: the repository's folder, below which the paths are.

    Raises:
        RefusedError: there are some, and REPRO_SNAPSHOT_SECRETS is `refuse`.
        BadInputError: it is neither that nor `warn`.
    """
    policy = os.environ.get(POLICY) or "warn"
    if policy not in ("warn", "refuse"):
        raise BadInputError(f"{POLICY} is neither `warn` nor `refuse`", evidence=policy)
    found = [f"{shown(path)}: {why}" for path in untracked if (why := suspicion(top, path))]
    if not found:
        return
    lines = found[:LISTED] + [f"... and {len(found) - LISTED} more"] * (len(found) > LISTED)
    what = "files that look like secrets would be stored in git, in the snapshot of the code"
    hints = [
        f"list them in {top}/.gitignore; the snapshot leaves out what git ignores",
        "what a run needs of them reaches it through the configuration's `secrets`",
    ]
    if policy == "refuse":
        raise RefusedError(what, evidence=lines, hints=[*hints, f"or accept them for once: {POLICY}=warn"])
    warn(f"{what}: {'; '.join(lines)}. Stop now (Ctrl-C) and {hints[0]}")


def suspicion(top: Path, path: str) -> str:
    """Why a file looks like a secret; "" when it does not."""
    name = path.rpartition("/")[2].lower()
    if _is_one(name, HARMLESS):
        return ""
    if _is_one(name, HOLDERS):
        return "files of this name hold secrets"
    content = _beginning(top / path, SMALL if _is_one(name, CERTIFICATES) else GLANCE)
    return next(_signs(content), "")


def _is_one(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _signs(content: bytes) -> Iterator[str]:
    names = list(KEYS)
    yield from (f"it holds {names[match.lastindex - 1]}" for match in SIGNS.finditer(content) if match.lastindex)


def _beginning(path: Path, size: int) -> bytes:
    """Of a small regular file; b"" of others, and of one that cannot be read: git says so."""
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > SMALL:
            return b""
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""
