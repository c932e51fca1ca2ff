"""A build context -> a tagged image: through `docker buildx` where it is installed, else the classic builder."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from repro.build import dockerfile
from repro.engines.engine import Engine, translated
from repro.errors import BadInputError, EngineUnreachableError, EnvironmentUnfitError, ReproError
from repro.experiment import SecretSource, Value

OTHER_HOST = "another"  # name of the host that a varied build runs on
STOP_SECONDS = 5.0
OUTPUT_LINES = 15  # of the failing step, shown with the error; the log has all
# what builders say when a base image cannot be had (Docker 20.10 to 28, BuildKit 0.8 to 0.25, Podman 4 and 5)
NOT_TO_BE_HAD = re.compile(
    r"pull access denied|manifest unknown|manifest for .* not found|failed to resolve source metadata|"
    r"repository does not exist|connection refused|no such host|i/o timeout|TLS handshake|toomanyrequests|"
    r"server misbehaving|network is unreachable|initializing source docker://|access to the resource is denied",
    re.IGNORECASE,
)
ENGINE_GONE = re.compile(
    r"Cannot connect to the Docker daemon|error during connect|failed to receive status|error reading from server|"
    r"transport is closing|connection reset by peer|EOF$"
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CLASSIC_STEP = re.compile(r"Step (\d+)/\d+ : (.*)")
CLASSIC_IMAGE = re.compile(r" ---> ([0-9a-f]{12,64})$")
CLASSIC_NOISE = re.compile(r" ---> |Removing intermediate container |--> |(\[\d+/\d+\] )?COMMIT ")
PODMAN_STEP = re.compile(r"(?:\[\d+/\d+\] )?STEP \d+/\d+: (.*)")  # counted anew in each stage
OUR_LABELS = ("LABEL repro.", 'LABEL "repro.')
PODMAN_HEREDOCS = (4, 8)  # older ones read the lines of a here-document as instructions
BUILDKIT_NAMES_HOSTS = 23  # first engine whose BuildKit takes the host name of its steps from a build argument
BUILDKIT_LINE = re.compile(r"#(\d+) (?:(\[.*?\]) (.*)|(ERROR): .*|\d+\.\d+ (.*))")  # of one step, by its number
PLUGIN_FOLDERS = [
    f"{root}/docker/cli-plugins" for root in ("/usr/local/lib", "/usr/local/libexec", "/usr/lib", "/usr/libexec")
]
BUILDKIT_PLACE = re.compile(r"(\S+):(\d+)$")
BUILDKIT_PREFIX = re.compile(
    r"^(ERROR: |failed to build: |failed to solve: |rpc error: code = \w+ desc = |failed to solve with frontend \S+: |"
    r"failed to create LLB definition: )+"
)


class Request(Value, frozen=True, kw_only=True):
    """One build, complete."""

    tag: str
    dockerfile: str  # its path in the context
    text: str  # of the Dockerfile
    context: Callable[[IO[bytes]], None]  # writes the tar
    build_args: dict[str, str]
    labels: dict[str, str]
    platform: str
    target: str | None
    network: str | None
    no_cache: bool
    secrets: dict[str, SecretSource]  # that steps may mount, by id
    varied: bool = False  # with another host name and on one processor, as far as the builder can
    traceless: bool = False  # of the classic builder's stages, nothing stays on the engine


def buildx() -> str | None:
    """The version of `docker buildx`, if the docker command on PATH has it."""
    if shutil.which("docker") is None:
        return None
    done = subprocess.run(["docker", "buildx", "version"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def name_for(engine: Engine) -> str:
    """What builds for this engine: `buildx`, `podman`, or the engine's own `classic` builder."""
    if engine.podman:  # buildx needs a door into the engine that Podman does not have
        return "podman"
    return "buildx" if buildx() else "classic"


def check(engine: Engine, text: str, name: str) -> None:
    """Refuse, before anything is built, a Dockerfile that the builder of this engine cannot read.

    Raises:
        BadInputError: naming the line, and what to install.
    """
    if engine.podman:
        _check_for_podman(engine, text, name)
        return
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


def variations(engine: Engine) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What `varied` changes with the builder of this machine, and what it cannot change."""
    facts = engine.facts()
    if name_for(engine) != "buildx":
        name = "host name (the classic builder draws one for each step)"
        one = "one processor"
        return ((name, one), ()) if facts.cpus > 1 else ((name,), (f"{one} (the engine has no more)",))
    cpus = "number of processors (BuildKit has no option for it)"
    if int(facts.version.partition(".")[0] or 0) < BUILDKIT_NAMES_HOSTS:
        return (), (f"host name (BuildKit of engine {facts.version} has one for all builds)", cpus)
    return ("host name",), (cpus,)


def _check_for_podman(engine: Engine, text: str, name: str) -> None:
    version = engine.facts().version
    known = [int(part) for part in re.findall(r"\d+", version)[:2]] >= [*PODMAN_HEREDOCS]
    if need := dockerfile.podman_lacks(text, heredocs=known):
        raise BadInputError(
            f"{name}:{need.line} holds what Podman {version} does not do through Docker's API: {need.what}",
            evidence=[f"line {need.line}: {need.what}", f"engine: {engine.host_url}"],
            hints=["write that line without it", "or build with Docker and its buildx plugin"],
        )


class _StepError(Exception):
    """A builder gave up: what it said, and of which step."""

    def __init__(self, message: str, instruction: str, line: int | None, output: Iterable[str]) -> None:
        super().__init__(message)
        self.message, self.instruction, self.line, self.output = message, instruction, line, tuple(output)

    def changed(self, masked: Callable[[str], str]) -> _StepError:
        """The same, with `masked` applied to what a builder said."""
        return _StepError(masked(self.message), masked(self.instruction), self.line, map(masked, self.output))


def build(
    engine: Engine, request: Request, *, say: Callable[[str], None], log: Path | None, masked: Callable[[str], str]
) -> None:
    """Build `request.tag` on the engine; every line of the builder goes to `say` and to `log`, each through `masked`.

    Raises:
        BadInputError: a step failed, or the Dockerfile has an error; its last lines are the evidence.
        EnvironmentUnfitError: the base cannot be had, or the engine refuses.
        EngineUnreachableError: the engine went away in the middle.
    """
    lines = _with_buildx(engine, request) if name_for(engine) == "buildx" else _with_classic(engine, request)
    with _log(log) as file, contextlib.closing(lines):
        try:
            for line in map(masked, lines):
                say(line)
                if file:
                    file.write(line + "\n")
                    file.flush()
        except _StepError as failure:
            if file:
                file.write(masked(failure.message) + "\n")
            raise _error(failure.changed(masked), request, log) from None


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


def _with_classic(engine: Engine, request: Request) -> Generator[str, None, None]:
    """The lines of a build by the engine itself."""
    transcript = _Transcript(request.text)
    try:
        yield from _classic(engine, request, transcript)
    finally:
        if request.traceless:
            _remove(engine, transcript.left_over())


def _remove(engine: Engine, images: Iterable[str]) -> None:
    """Remove images without a tag, newest first; one that something else needs stays, as does a base below them."""
    import docker.errors

    with translated("removing what the builder left"):
        for image in images:
            with contextlib.suppress(docker.errors.APIError):
                engine.client.api.remove_image(image, noprune=True)


def _classic(engine: Engine, request: Request, transcript: _Transcript) -> Generator[str, None, None]:
    options: dict[str, Any] = {}
    if request.platform.split("/")[:2] != engine.facts().platform.split("/")[:2]:
        options["platform"] = request.platform  # engines before 23 refuse the word without a need
    if request.varied and engine.facts().cpus > 1:
        options["container_limits"] = {"cpusetcpus": "0"}
    try:
        with translated("building the image"), _piped(request.context) as context:
            stream = engine.client.api.build(
                fileobj=context,
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
                yield from transcript.lines(event)
    except EngineUnreachableError:
        raise
    except EnvironmentUnfitError as error:  # the engine refuses the request: a syntax error, for one
        raise _StepError("\n".join(error.evidence), "", None, ()) from error
    if transcript.failure:  # raised only here: a stream that is read to its end closes its connection
        raise transcript.failure
    if not transcript.whole:  # an engine that is stopped ends the stream without a word
        raise _engine_gone("its answer ends in the middle")


class _Transcript:
    """The classic builder's answer, event by event."""

    def __init__(self, text: str) -> None:
        self._text = text  # of the Dockerfile
        self._line: int | None = None
        self._instruction = ""
        self._output: deque[str] = deque(maxlen=OUTPUT_LINES)
        self._stages: list[list[str]] = [[]]  # ids of the images that the steps of each made
        self.whole = False  # it said that the image is there
        self.failure: _StepError | None = None  # it said that it gave up

    def lines(self, event: dict[str, Any]) -> Iterator[str]:
        """The lines of an event, without colours."""
        for raw in str(event.get("stream", "")).split("\n"):
            line = COLOUR.sub("", raw).rstrip()
            if begun := CLASSIC_STEP.match(line):
                self._line, self._instruction = dockerfile.line_of_step(self._text, int(begun[1])), begun[2]
                self._output.clear()
                if begun[2].upper().startswith("FROM "):
                    self._stages.append([])
            elif begun := PODMAN_STEP.match(line):
                self._line, self._instruction = dockerfile.line_of(self._text, begun[1]), begun[1]
                self._output.clear()
            elif (made := CLASSIC_IMAGE.match(line)) and not self._instruction.upper().startswith("FROM "):
                self._stages[-1].append(made[1])
            elif line and not CLASSIC_NOISE.match(line):
                self._output.append(line)
            if self._instruction.startswith(OUR_LABELS):  # repeated by the builders, of up to 64 KiB
                line = line if len(line) < 120 else f"{line[:100]}..."
            self.whole = self.whole or line.startswith("Successfully built")
            if line:
                yield line
        self.whole = self.whole or "ID" in (event.get("aux") or {})
        if event.get("error") or event.get("errorDetail"):  # either may be missing, by the engine's age
            message = (event.get("errorDetail") or {}).get("message") or event["error"]
            self.failure = _StepError(message.strip(), self._instruction, self._line, self._output)

    def left_over(self) -> list[str]:
        """Ids of the images that have no tag, newest first: of all stages but the one that became the image."""
        stages = self._stages[:-1] if self.whole else self._stages
        return [made for stage in reversed(stages) for made in reversed(stage)]


def _with_buildx(engine: Engine, request: Request) -> Generator[str, None, None]:
    """The lines of a build by BuildKit, inside the same engine."""
    process = subprocess.Popen(
        _buildx_command(request),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_buildx_environment(engine),
    )
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    threading.Thread(target=_feed, args=(process.stdin, request.context), daemon=True).start()
    heard: list[str] = []
    try:
        for raw in process.stdout:
            line = COLOUR.sub("", raw.decode(errors="replace")).rstrip()
            if line:
                heard.append(line)
                yield line
        if process.wait():
            raise _buildkit_error(heard, request)
    finally:
        if process.poll() is None:  # interrupted: the engine cancels a build whose client goes away
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()


def _buildx_command(request: Request) -> list[str]:
    # `default` is the builder of DOCKER_HOST: any other could not see the images that this engine holds
    command = [*_buildx_program(), "build", "--builder=default", "--load", "--progress=plain", "--provenance=false"]
    command += [f"--tag={request.tag}", f"--file={request.dockerfile}", f"--platform={request.platform}"]
    command += [f"--build-arg={key}={value}" for key, value in request.build_args.items()]
    command += [f"--build-arg=BUILDKIT_SANDBOX_HOSTNAME={OTHER_HOST}"] if request.varied else []
    command += [f"--label={key}={value}" for key, value in request.labels.items()]
    command += [f"--target={request.target}"] if request.target else []
    command += [f"--network={request.network}"] if request.network else []
    command += ["--no-cache"] if request.no_cache else []
    command += [f"--secret=id={name},{_option(source)}" for name, source in request.secrets.items()]
    # on Linux the build ends with us even where we are killed: it would go on, and give its result a tag, if its steps
    # print nothing that finds the pipe closed
    return [*(["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []), *command, "-"]


def _option(source: SecretSource) -> str:
    return f"env={source.env}" if source.env else f"src={source.file}"


def _buildx_program() -> list[str]:
    """The plugin itself, where it lies in a usual place: docker commands before 25 keep signals from it."""
    own = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "cli-plugins"
    for folder in (own, *map(Path, PLUGIN_FOLDERS)):
        if os.access(folder / "docker-buildx", os.X_OK):
            return [str(folder / "docker-buildx")]
    return ["docker", "buildx"]


def _buildx_environment(engine: Engine) -> dict[str, str]:
    ours = {"DOCKER_HOST": engine.host_url, "NO_COLOR": "1"}
    return {**{key: value for key, value in os.environ.items() if key != "DOCKER_CONTEXT"}, **ours}


def _buildkit_error(heard: list[str], request: Request) -> _StepError:
    """What failed, from the lines of BuildKit: `#7 [2/3] RUN x`, `#7 0.1 its output`, `#7 ERROR: ...`."""
    names: dict[str, str] = {}
    outputs: dict[str, list[str]] = {}
    failed, line = "", None
    for text in heard:
        if found := BUILDKIT_LINE.match(text):
            step, bracket, name, error, output = found.groups()
            if bracket:
                names.setdefault(step, f"{bracket} {name}" if bracket == "[internal]" else name)
            elif error:
                failed = step
            else:
                outputs.setdefault(step, []).append(output)
        elif (place := BUILDKIT_PLACE.match(text)) and place[1] in (request.dockerfile, Path(request.dockerfile).name):
            line = int(place[2])
    instruction = names.get(failed, "")
    return _StepError(
        BUILDKIT_PREFIX.sub("", heard[-1]) if heard else "buildx ended without a word",
        instruction,
        line or dockerfile.line_of(request.text, instruction),
        outputs.get(failed, [])[-OUTPUT_LINES:],
    )


def _feed(out: IO[bytes], context: Callable[[IO[bytes]], None]) -> None:
    with contextlib.suppress(BrokenPipeError), out:
        context(out)


@contextlib.contextmanager
def _piped(context: Callable[[IO[bytes]], None]) -> Iterator[IO[bytes]]:
    """The tar as a file to read from, made while it is read: it may hold gigabytes of wheels."""
    reading, writing = os.pipe()
    thread = threading.Thread(target=_feed, args=(os.fdopen(writing, "wb"), context), daemon=True)
    with os.fdopen(reading, "rb") as source:
        thread.start()
        yield source
    thread.join()


def _engine_gone(evidence: str) -> EngineUnreachableError:
    return EngineUnreachableError(
        "the engine went away during the build", evidence=[evidence], hints=["start it and repeat the command"]
    )


def _error(failure: _StepError, request: Request, log: Path | None) -> ReproError:
    kind = failure.instruction.partition(" ")[0]
    place = f"{request.dockerfile}:{failure.line}" if failure.line else request.dockerfile
    where = [f"log: {log}"] if log else []
    if ENGINE_GONE.search(failure.message) and kind != "RUN":
        return _engine_gone(failure.message)
    if NOT_TO_BE_HAD.search(failure.message) and kind != "RUN":
        return EnvironmentUnfitError(
            f"{place}: what it fetches cannot be had" if kind == "ADD" else f"{place}: a base image cannot be had",
            evidence=[*filter(None, [failure.instruction]), failure.message, *where],
            hints=["check its name, the network and `docker login`", "`repro doctor` tells what is reachable"],
        )
    return BadInputError(
        f"the image could not be built: {place} failed",
        evidence=[*filter(None, [failure.instruction]), *failure.output, failure.message, *where],
        hints=["correct the line, then repeat the command: finished steps are kept"],
    )
