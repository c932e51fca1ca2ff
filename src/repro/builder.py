"""A build context -> a tagged image: through `docker buildx` where it is installed, else the classic builder."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from repro import dockerfile
from repro.engine import Engine, translated
from repro.errors import BadInputError, EngineUnreachableError, EnvironmentUnfitError, ReproError
from repro.experiment import Value

EVIDENCE_LINES = 20
# what builders say when a base image cannot be had (Docker 20.10 to 28, BuildKit 0.8 to 0.25)
NO_BASE = re.compile(
    r"pull access denied|manifest unknown|manifest for .* not found|failed to resolve source metadata|"
    r"repository does not exist|connection refused|no such host|i/o timeout|TLS handshake|toomanyrequests",
    re.IGNORECASE,
)
ENGINE_GONE = re.compile(r"Cannot connect to the Docker daemon|error during connect|failed to receive status|EOF$")


class Request(Value, frozen=True, kw_only=True):
    """One build, complete."""

    tag: str
    dockerfile: str  # its path in the context
    text: str  # of the Dockerfile
    context: bytes  # tar
    build_args: dict[str, str]
    labels: dict[str, str]
    platform: str
    target: str | None
    network: str | None
    no_cache: bool


def buildx() -> str | None:
    """The version of `docker buildx`, if the docker command on PATH has it."""
    if shutil.which("docker") is None:
        return None
    done = subprocess.run(["docker", "buildx", "version"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def check(engine: Engine, text: str, name: str) -> None:
    """Refuse, before anything is built, a Dockerfile that needs BuildKit where there is only the classic builder.

    Raises:
        BadInputError: naming the line, and what to install.
    """
    need = dockerfile.needs_buildkit(text)
    if need and buildx() is None:
        raise BadInputError(
            f"{name}:{need.line} needs BuildKit, and this machine has only the engine's classic builder",
            evidence=[f"line {need.line}: {need.what}", f"engine: {engine.host_url}"],
            hints=[
                "install the buildx plugin: package docker-buildx (Debian 13, Ubuntu) or Docker's docker-buildx-plugin",
                "or write that line without it",
            ],
        )


def build(engine: Engine, request: Request, *, say: Callable[[str], None], log: Path | None) -> None:
    """Build `request.tag` on the engine; every line of the builder goes to `say` and to `log`.

    Raises:
        BadInputError: a step failed, or the Dockerfile has an error; its last lines are the evidence.
        EnvironmentUnfitError: the base cannot be had, or the engine refuses.
        EngineUnreachableError: the engine went away in the middle.
    """
    tail: deque[str] = deque(maxlen=EVIDENCE_LINES)
    with _log(log) as file:

        def heard(line: str) -> None:
            tail.append(line)
            say(line)
            if file:
                file.write(line + "\n")
                file.flush()

        lines = _with_buildx(engine, request) if buildx() else _classic(engine, request)
        failure = ""
        for line, is_failure in lines:
            heard(line)
            failure = line if is_failure else failure
    if failure:
        raise _error(failure, list(tail), request, log)


@contextlib.contextmanager
def _log(path: Path | None) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise EnvironmentUnfitError(f"the build log {path} cannot be written", evidence=[str(error)]) from error
    with file:
        yield file


def _classic(engine: Engine, request: Request) -> Iterator[tuple[str, bool]]:
    """(line, whether it is the failure) of a build by the engine itself."""
    options: dict[str, Any] = {}
    if request.platform.split("/")[:2] != engine.facts().platform.split("/")[:2]:
        options["platform"] = request.platform  # engines before 23 refuse the word without a need
    step = ""
    try:
        with translated("building the image"):
            stream = engine.client.api.build(
                fileobj=request.context,
                custom_context=True,
                decode=True,
                dockerfile=request.dockerfile,
                tag=request.tag,
                buildargs=request.build_args,
                labels=request.labels,
                target=request.target,
                network_mode=request.network,
                nocache=request.no_cache,
                rm=True,
                forcerm=True,
                **options,
            )
            for event in stream:
                for line in str(event.get("stream", "")).splitlines():
                    if line.strip():
                        step = line if line.startswith("Step ") else step
                        yield line.rstrip(), False
                if event.get("error") or event.get("errorDetail"):
                    message = (event.get("errorDetail") or {}).get("message") or event["error"]
                    yield f"{step.partition(' : ')[2]}: {message}" if step else message, True
                    return
    except EngineUnreachableError:
        raise
    except EnvironmentUnfitError as error:  # the engine refuses the request: a syntax error, for one
        yield from ((line, True) for line in "\n".join(error.evidence).splitlines())


def _with_buildx(engine: Engine, request: Request) -> Iterator[tuple[str, bool]]:
    """(line, whether it is the failure) of a build by BuildKit, inside the same engine."""
    command = ["docker", "buildx", "build", "--builder=default", "--load", "--progress=plain", "--provenance=false"]
    command += [f"--tag={request.tag}", f"--file={request.dockerfile}", f"--platform={request.platform}"]
    command += [f"--build-arg={key}={value}" for key, value in request.build_args.items()]
    command += [f"--label={key}={value}" for key, value in request.labels.items()]
    command += [f"--target={request.target}"] if request.target else []
    command += [f"--network={request.network}"] if request.network else []
    command += ["--no-cache"] if request.no_cache else []
    # `default` is the builder of DOCKER_HOST: any other could not see the images that this engine holds
    environment = {**os.environ, "DOCKER_HOST": engine.host_url, "BUILDKIT_COLORS": ""}
    environment.pop("DOCKER_CONTEXT", None)
    process = subprocess.Popen(
        [*command, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    feeder = threading.Thread(target=_feed, args=(process.stdin, request.context), daemon=True)
    feeder.start()
    last = ""
    try:
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            if line:
                last = line
                yield line, False
        if process.wait():
            yield last, True
    finally:
        if process.poll() is None:  # interrupted: the engine cancels a build whose client goes away
            process.terminate()
            process.wait()


def _feed(stdin: IO[bytes], context: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), stdin:
        stdin.write(context)


def _error(failure: str, tail: list[str], request: Request, log: Path | None) -> ReproError:
    text = "\n".join(tail)
    where = [f"log: {log}"] if log else []
    if ENGINE_GONE.search(failure):
        return EngineUnreachableError(
            "the engine went away during the build", evidence=[failure], hints=["start it and repeat the command"]
        )
    if NO_BASE.search(failure) and not _installs(failure, text):
        return EnvironmentUnfitError(
            "a base image of the Dockerfile cannot be had",
            evidence=[failure],
            hints=["check its name, the network and `docker login`", "`repro doctor` tells what is reachable"],
        )
    if "dockerfile parse error" in failure.lower() or "unknown instruction" in failure.lower():
        return BadInputError(f"{request.dockerfile} cannot be read", evidence=[failure])
    line = _failing_line(failure, text, request)
    place = f"{request.dockerfile}:{line}" if line else request.dockerfile
    return BadInputError(
        f"the image could not be built: {place} failed",
        evidence=[*tail, *where],
        hints=["correct the line, then repeat the command: finished steps are kept"],
    )


def _installs(failure: str, text: str) -> bool:
    """Whether the network failed inside a RUN rather than at a FROM."""
    return "returned a non-zero code" in failure or "did not complete successfully" in text


def _failing_line(failure: str, text: str, request: Request) -> int | None:
    if named := re.search(r"^\S*Dockerfile\S*:(\d+)$", text, re.MULTILINE):  # BuildKit names it
        return int(named[1])
    return dockerfile.line_of(request.text, failure.partition(": ")[0])
