"""One question to a local engine in a few milliseconds, for commands that ask for nothing else.

The SDK alone takes longer to import than such a command may take.
"""

from __future__ import annotations

import http.client
import json
import socket
import urllib.parse
from contextlib import suppress

from repro.engines import answers, endpoint, imagefacts
from repro.engines.answers import ContainerFacts
from repro.engines.engine import connect
from repro.engines.imagefacts import ImageFacts
from repro.errors import EnvironmentUnfitError

PATIENCE = 60.0  # seconds


def image(ref: str) -> ImageFacts | None:
    """`connect().image(ref)`. Engines that are not behind a local socket are asked through the SDK.

    Raises:
        EngineUnreachableError: none answers.
    """
    host = endpoint.host()
    if not host.startswith("unix://"):
        return connect().image(ref)
    try:
        status, podman, body = _get(host, f"/images/{urllib.parse.quote(ref)}/json", PATIENCE)
    except (OSError, http.client.HTTPException) as error:
        raise endpoint.unreachable(host, error) from error
    if status == 404:
        return None
    if status != 200:
        raise EnvironmentUnfitError(f"looking for image {ref} failed", evidence=[body.decode(errors="replace")])
    return imagefacts.of(json.loads(body), podman=podman)


def containers(label: str, seconds: float) -> list[ContainerFacts]:
    """The containers with a label, `key=value`; none where no local engine tells in time."""
    host = endpoint.host()
    if host.startswith("unix://"):
        wanted = urllib.parse.urlencode({"all": "1", "filters": json.dumps({"label": [label]})})
        with suppress(OSError, http.client.HTTPException, ValueError):
            status, _podman, body = _get(host, f"/containers/json?{wanted}", seconds)
            if status == 200:
                return [answers.container_facts(each) for each in json.loads(body)]
    return []


def _get(host: str, path: str, seconds: float) -> tuple[int, bool, bytes]:
    """Status, whether it is Podman that answers, body."""
    connection = http.client.HTTPConnection("localhost", timeout=seconds)
    try:
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(seconds)
        connection.sock.connect(host.removeprefix("unix://"))
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, bool(answer.getheader("Libpod-API-Version")), answer.read()
    finally:
        connection.close()
