"""Where the engine is: DOCKER_HOST, the current Docker context, or the default socket."""

from __future__ import annotations

import json
import os
from pathlib import Path

from repro.errors import EngineUnreachableError


def host() -> str:
    """The address of the engine that this user's commands go to."""
    return os.environ.get("DOCKER_HOST") or _context_host() or "unix:///var/run/docker.sock"


def _context_host() -> str | None:
    """The host of the context that `docker context use` chose: rootless engines and Docker Desktop set one."""
    config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        chosen = os.environ.get("DOCKER_CONTEXT") or json.loads(config.read_text(encoding="utf-8")).get(
            "currentContext"
        )
    except (OSError, ValueError):
        return None
    if not chosen or chosen == "default":
        return None
    from docker.context import ContextAPI

    context = ContextAPI.get_context(chosen)
    return str(context.Host) if context else None


def unreachable(host: str, error: Exception) -> EngineUnreachableError:
    """The error for an engine that does not answer at `host`."""
    text = str(error)
    if "Permission denied" in text:
        hints = ["let your user use it: `sudo usermod -aG docker $USER`, then log in again"]
    else:
        hints = [
            "start it: `sudo systemctl start docker` (or Docker Desktop)",
            "none installed? `sudo apt-get install docker.io` on Debian and Ubuntu; docs.docker.com/engine elsewhere",
            "another engine: set DOCKER_HOST, or `docker context use NAME`",
        ]
    return EngineUnreachableError(f"no Docker engine answers at {host}", evidence=[text], hints=hints)
