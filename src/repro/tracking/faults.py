"""A failure of MLflow's, its server's or its disk's -> one line of what it means, and what to try; pure."""

from __future__ import annotations

import errno
import re
from urllib.parse import urlsplit

from repro.errors import ReproError
from repro.tracking import store
from repro.tracking.client import TrackingError, UnreachableError
from repro.tracking.delivery import first_line

Told = tuple[str, tuple[str, ...]]


def explain(error: Exception, uri: str) -> Told:
    """What a failure means, in one line, and what to try."""
    if isinstance(error, ReproError):
        return " · ".join([error.what, *error.evidence]), error.hints
    return _of_server(error, uri) or _of_disk(error, uri) or (first_line(error), ())


def _of_server(error: Exception, uri: str) -> Told | None:
    text, status = first_line(error), error.status if isinstance(error, TrackingError) else 0
    if isinstance(error, UnreachableError):
        return f"the tracking server {uri} does not answer ({text})", ("start it, or name another: tracking.uri=…",)
    if "Invalid Host header" in str(error):
        host = urlsplit(uri).netloc
        return (
            f"the tracking server refuses the name {host} (403 Invalid Host header)",
            (f"start it with `mlflow server --allowed-hosts {host}`", "or name it by its IP address"),
        )
    if status in (401, 403) or re.search(r"\b(401|403)\b", text):
        return f"the tracking server {uri} refuses us: {text}", ("MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN",)
    if status:
        return f"the tracking server {uri} answers: {text}", ("its own log says more",) if status >= 500 else ()
    return None


def _of_disk(error: Exception, uri: str) -> Told | None:
    if "database is locked" in str(error):
        return f"another program has locked {uri}", ("end what writes to it; then `repro sync`",)
    if "is full" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        where = getattr(error, "filename", None) or store.sqlite_file(uri) or uri
        return f"no space is left for {where}", ("free some; then `repro sync`",)
    return None
