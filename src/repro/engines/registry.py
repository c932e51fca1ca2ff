"""A registry as the engine sees it: what a tag points to, pull, push; each way to fail in words of its own.

The engine does the talking, with the credentials of the Docker configuration (`docker login`, credential helpers).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from repro.engines import repodigest
from repro.engines.engine import Engine, translated
from repro.engines.imagefacts import ImageFacts
from repro.errors import BadInputError, EngineUnreachableError, EnvironmentUnfitError
from repro.experiment import Value

# its first part has a dot or a port: any other would be a user of Docker Hub
NAME = re.compile(r"(localhost|[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+|[A-Za-z0-9.-]+:\d+)(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
SAY_SECONDS = 1.0  # between two lines of progress
DONE = ("Pull complete", "Already exists", "Layer already exists", "Pushed", "Mounted from")
NAMED = re.compile(r"[Dd]igest: (sha256:[0-9a-f]{64})")


class NotThereError(EnvironmentUnfitError):
    """The registry answers, and has no such image."""


class Cause(Value, frozen=True, kw_only=True):
    """One way to fail: how engines say it, and how we do."""

    said: str  # regular expression
    why: str
    hints: tuple[str, ...]
    kind: type[EnvironmentUnfitError] = EnvironmentUnfitError


# The first one that fits. What engines say was collected from 20.10 and 28.5, with both image stores.
CAUSES = (
    Cause(
        said=r"server gave HTTP response to HTTPS client",
        why="{host} speaks plain HTTP, and the engine demands HTTPS of it",
        hints=(
            'let the engine trust it: `"insecure-registries": ["{host}"]` in /etc/docker/daemon.json',
            "then `sudo systemctl reload docker`",
        ),
    ),
    Cause(
        said=r"connection refused|no such host|is unreachable|no route to host|i/o timeout|TLS handshake timeout|"
        r"server misbehaving|connection reset|Read timed out|Client\.Timeout|deadline exceeded|proxyconnect|dial tcp|"
        r"50[234] (Bad Gateway|Service Unavailable|Gateway Time)|: EOF$",
        why="{host} cannot be reached",
        hints=("is the registry up, and its name right? The engine has to reach it, not this terminal",),
    ),
    Cause(
        said=r"x509:|\btls: ",
        why="the engine does not trust the TLS certificate of {host}",
        hints=("give the engine the authority that signed it: /etc/docker/certs.d/{host}/ca.crt",),
    ),
    Cause(
        said=r"[Cc]redentials store error",
        why="the credentials for {host} cannot be had",
        hints=("does the helper that ~/.docker/config.json names run? `docker login {host}` tells",),
    ),
    Cause(
        said=r"no basic auth credentials|\bunauthorized\b|401 Unauthorized|authentication required|"
        r"incorrect username or password",
        why="{host} does not accept your credentials, or wants some",
        hints=("`docker login {host}`",),
    ),
    Cause(
        said=r"\bname unknown\b|repository name not known|repository with name .* does not exist|project .* not found",
        why="{host} has no repository of that name",
        hints=("check `image.registry` and `image.name`; some registries want a repository to be made first",),
        kind=NotThereError,
    ),
    Cause(
        said=r"access denied|\bdenied\b|403 Forbidden|insufficient_scope|405 Method Not Allowed|\bunsupported:",
        why="{host} does not allow it",
        hints=("`docker login {host}` as somebody who may; does the repository exist there?",),
    ),
    Cause(
        said=r"toomanyrequests|429 Too Many",
        why="{host} wants you to ask less often",
        hints=("wait, or `docker login {host}`: users that it knows may ask more often",),
    ),
    Cause(said=r"no space left on device", why="a disk is full", hints=("`docker system df`; `repro prune`",)),
    Cause(
        said=r"manifest unknown|manifest for .* not found|not found$",
        why="{host} has no such {thing}",
        hints=(),
        kind=NotThereError,
    ),
)


def check(name: str | None) -> str | None:
    """The `image.registry` of a configuration, if it can be one.

    Raises:
        BadInputError: it cannot; it is not shown, since people write passwords into addresses.
    """
    if name is not None and not NAME.fullmatch(name):
        raise BadInputError(
            "image.registry is not host[:port][/path]",
            hints=["without https:// and users, which `docker login` keeps", "for Docker Hub: docker.io/USER"],
        )
    return name


def look(engine: Engine, tag: str, *, hints: Iterable[str] = ()) -> str:
    """The digest (`sha256:…`) that a tag has in its registry now; nothing is fetched.

    Raises:
        NotThereError: the registry has no such tag.
        EnvironmentUnfitError: not allowed, or the registry cannot be reached.
    """
    with _worded("looked up", tag, hints):
        return str(engine.client.api.inspect_distribution(tag)["Descriptor"]["digest"])


def pull(engine: Engine, ref: str, say: Callable[[str], None], *, hints: Iterable[str] = ()) -> ImageFacts:
    """Fetch an image from its registry.

    Raises:
        NotThereError: the registry has no such image.
        EnvironmentUnfitError: not allowed, or the registry cannot be reached.
    """
    say(f"pulling {ref}")
    with _worded("pulled", ref, hints):
        heard = _follow(engine.client.api.pull(ref, stream=True, decode=True), "pulled", say)
        found = engine.image(ref)
    if heard:
        repodigest.note(f"{repodigest.repository(ref)}@{heard}")
    if found is None:
        raise EnvironmentUnfitError(
            f"{ref} cannot be pulled", evidence=["the engine does not hold it after the pull"], hints=hints
        )
    return found


def push(engine: Engine, tag: str, say: Callable[[str], None]) -> str:
    """Send the image of a tag to the registry that the tag names; its digest there, `sha256:…`.

    Raises:
        EnvironmentUnfitError: not allowed, or the registry cannot be reached.
    """
    say(f"pushing {tag}")
    with _worded("pushed", tag, ()), engine.patient() as api:
        name, _, version = tag.rpartition(":")
        heard = _follow(api.push(name, version, stream=True, decode=True), "pushed", say)
    if heard is None:
        raise EnvironmentUnfitError(
            f"{tag} cannot be pushed", evidence=["the engine names no digest after the push"], hints=["push it again"]
        )
    repodigest.note(f"{name}@{heard}")
    return heard


def host_of(ref: str) -> str:
    """The registry that a reference names."""
    first, slash, _ = ref.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


class _SaidError(Exception):
    """A failure that came as a line of the engine's answer."""


def _follow(events: Iterable[dict[str, Any]], verb: str, say: Callable[[str], None]) -> str | None:
    """Read an answer to its end, which closes its connection; the digest that it names last."""
    layers: dict[str, int] = {}  # bytes so far
    done: set[str] = set()
    failure, digest, spoken = "", None, time.monotonic()
    for event in events:
        failure = failure or (event.get("errorDetail") or {}).get("message") or event.get("error") or ""
        status, layer = event.get("status", ""), event.get("id", "")
        digest = found[1] if (found := NAMED.search(status)) else digest
        if status in ("Downloading", "Pushing"):
            layers[layer] = (event.get("progressDetail") or {}).get("current") or layers.get(layer, 0)
        elif status.startswith(DONE):
            layers.setdefault(layer, 0)
            done.add(layer)
        elif status in ("Waiting", "Preparing", "Pulling fs layer"):
            layers.setdefault(layer, 0)
        if layers and time.monotonic() - spoken >= SAY_SECONDS:
            spoken = time.monotonic()
            say(f"{verb} {sum(layers.values()) / 1e6:.0f} MB, {len(done)} of {len(layers)} layers")
    if failure:
        raise _SaidError(failure)
    return digest


@contextmanager
def _worded(done: str, ref: str, hints: Iterable[str]) -> Iterator[None]:
    import docker.errors

    try:
        with translated(ref):
            yield
    except EngineUnreachableError as error:
        if "Read timed out" not in str(error):
            raise
        raise failure(done, ref, "\n".join(error.evidence), hints) from None  # the engine waits for the registry
    except (_SaidError, EnvironmentUnfitError, docker.errors.DockerException) as error:
        message = "\n".join(getattr(error, "evidence", ())) or str(error)
        raise failure(done, ref, message, hints) from None  # what it came from may hold a request with credentials


def failure(done: str, ref: str, message: str, hints: Iterable[str] = ()) -> EnvironmentUnfitError:
    """The error for `ref`, which could not be `done` (pulled, pushed, looked up), from what the engine said."""
    what = f"{ref} cannot be {done}"
    words = {"host": host_of(ref), "thing": "image any more: its digest is gone" if "@" in ref else "tag"}
    for cause in CAUSES:
        if re.search(cause.said, message):
            own = [hint.format(**words) for hint in cause.hints]
            return cause.kind(f"{what}: {cause.why.format(**words)}", evidence=[message], hints=[*own, *hints])
    return EnvironmentUnfitError(what, evidence=[message], hints=["check its name, and `docker login`", *hints])
