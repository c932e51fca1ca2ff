"""Who wants a run to stop, and the stopping itself. The wish is on disk before anything is done."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone

import msgspec

from repro.engines.engine import connect
from repro.engines.refusal import ContainerGoneError
from repro.errors import EngineUnreachableError
from repro.project import user_name
from repro.record import RunFolder, Started, write_atomic
from repro.running.ending import StopRequest

CTRL_C = "Ctrl-C"
LATE_SECONDS = 5.0  # after which a container that should have ended itself is ended from here


def stop(folder: RunFolder, started: Started, how: str, grace: float) -> None:
    """Ask the container of a run to end, and end it by force `grace` seconds later. One that is over was not stopped.

    Raises:
        EngineUnreachableError: its engine does not answer; the wish is noted.
    """
    with contextlib.suppress(ContainerGoneError):
        try:
            engine = connect(started.endpoint or None)
            over = engine.exit(started.container) is not None
        except EngineUnreachableError:
            ask_to_stop(folder, how, grace)
            raise
        if not over:
            ask_to_stop(folder, how, grace)
            engine.stop(started.container, grace)


def stop_request(folder: RunFolder) -> StopRequest | None:
    """Who wants this run to stop."""
    try:
        return msgspec.json.decode(folder.stop.read_bytes(), type=StopRequest)
    except (OSError, msgspec.MsgspecError):
        return None


def interrupted(folder: RunFolder) -> bool:
    """Whether it was Ctrl-C that stopped the run."""
    request = stop_request(folder)
    return request is not None and request.how == CTRL_C


def ask_to_stop(folder: RunFolder, how: str, grace: float = 0.0) -> None:
    """Note who wants the run to stop, before it is stopped. The first to ask is who stopped it."""
    if not folder.stop.exists():
        request = StopRequest(at=datetime.now(timezone.utc), by=user_name(), how=how, grace=grace)
        with contextlib.suppress(OSError):  # a full disk is no reason to let it run on
            write_atomic(folder.stop, msgspec.json.encode(request))


def overdue(request: StopRequest) -> bool:
    """Whether who asked has had the time to do it: a second signal would disturb an end in good order."""
    return datetime.now(timezone.utc) > request.at + timedelta(seconds=request.grace + LATE_SECONDS)
