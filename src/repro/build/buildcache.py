"""What BuildKit keeps of a build, taken away again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from repro.build import builder
from repro.engines.engine import Engine, translated
from repro.errors import EngineUnreachableError, EnvironmentUnfitError

ATTEMPTS = 10
CONTEXT_SECONDS = 60.0  # after so long a build has read the context that it sent


@contextmanager
def left_alone(engine: Engine) -> Iterator[None]:
    """BuildKit keeps what every step made: what it has more of at the end of the block than at its beginning, it loses.

    What others build at the same time may go with it: they build it again when they need it again.
    """
    if builder.name_for(engine) != "buildx":
        yield
        return
    before = _cached(engine)
    try:
        yield
    finally:
        for _attempt in range(ATTEMPTS):  # a record goes after those that are built on it
            added = (_cached(engine) or set()) - before if before is not None else set()
            if not added:
                break
            _prune(engine, added)


def _prune(engine: Engine, records: set[str]) -> None:
    try:
        with translated("clearing the build cache"):
            for record in records:
                engine.client.api.prune_builds(filters={"id": record}, all=True)
    except EngineUnreachableError:
        raise
    except EnvironmentUnfitError:  # somebody else clears it just now
        time.sleep(1)


def _cached(engine: Engine) -> set[str] | None:
    """Ids of what BuildKit keeps; fresh contexts are left out, since a build that loses its own too early fails.

    None where the engine does not tell: it answers one such question at a time, and none while an image goes.
    """
    for _attempt in range(ATTEMPTS):
        try:
            with translated("asking for the build cache"):
                records = engine.client.api.df().get("BuildCache") or ()
        except EngineUnreachableError:
            raise
        except EnvironmentUnfitError:
            time.sleep(1)
            continue
        limit = datetime.fromtimestamp(time.time() - CONTEXT_SECONDS, timezone.utc).isoformat()[:19]
        return {
            str(record["ID"])
            for record in records
            if "buildkit-session" not in record["Description"] or record["CreatedAt"][:19] < limit
        }
    return None
