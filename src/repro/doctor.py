"""This machine -> Findings: what it can do for experiments, what it cannot, and what to do about it.

The checks wait for engine, network and disks at the same time. `choose` decides, without asking anything again, which
variant of the image fits what was found.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from enum import Enum
from pathlib import Path

import msgspec

from repro.answers import EngineFacts
from repro.errors import EnvironmentUnfitError, ExitCode, ReproError
from repro.experiment import DatasetConfig, Value
from repro.project import Project, cache_folder, ignored_folder
from repro.record import write_atomic

REGISTRY = "https://registry-1.docker.io/v2/"
NETWORK_SECONDS = 3.0
PROGRAM_SECONDS = 10.0
GIB = 1 << 30
MARKER = "# written by `repro doctor --write`"


Facts = dict[str, str | int | bool]  # flat, as JSON has it


class Level(str, Enum):
    """How much a finding matters."""

    OK = "ok"
    WARN = "warn"  # works, with less than could be had
    BAD = "bad"  # runs will fail until it is mended


class Finding(Value, frozen=True, kw_only=True):
    """One thing that was looked at. `facts` is what a program would want to know of it."""

    what: str
    level: Level
    detail: str
    hint: str = ""
    facts: Facts = msgspec.field(default_factory=dict)


class Choice(Value, frozen=True, kw_only=True):
    """The image variant for this machine, and why."""

    variant: str
    why: str


def examine(project: Project) -> tuple[Finding, ...]:
    """Look at everything that a run of this project needs; takes as long as the slowest answer."""
    checks: tuple[Callable[[], Sequence[Finding]], ...] = (
        _engine,
        lambda: [registry()],
        lambda: [_git(project)],
        lambda: [_bootstrap()],
        lambda: _disks(project),
        lambda: [*_configuration(project), _store(project)],  # one after the other: Hydra keeps global state
    )
    with ThreadPoolExecutor(len(checks)) as pool:
        return tuple(finding for found in pool.map(lambda check: check(), checks) for finding in found)


def exit_code(findings: Sequence[Finding]) -> ExitCode:
    """0 when runs can work here, 3 when something has to be mended first."""
    return ExitCode.ENVIRONMENT if any(each.level is Level.BAD for each in findings) else ExitCode.OK


def rows(findings: Sequence[Finding]) -> list[tuple[str, str, str]]:
    """(level, what, detail) for a table; a hint stands in a row of its own below its finding."""
    table = []
    for each in findings:
        table.append((each.level.value, each.what, each.detail))
        if each.hint:
            table.append(("", "", f"try: {each.hint}"))
    return table


# the choice of a variant -----------------------------------------------------------------------------------------


def choose(findings: Sequence[Finding]) -> Choice:
    """The image variant that these findings allow.

    Raises:
        EnvironmentUnfitError: a base image can neither be pulled nor made here.
    """
    found = {each.what: each for each in findings}
    if found["registry"].level is Level.OK:
        if found["gpu"].facts.get("offered"):
            return Choice(variant="tensorflow", why="the registry is reachable and the engine offers GPUs")
        return Choice(variant="tensorflow-cpu", why="the registry is reachable and the engine offers no GPU")
    if found["bootstrap"].level is Level.OK:
        return Choice(variant="debian", why="no registry is reachable, and mmdebstrap can make the base")
    raise EnvironmentUnfitError(
        "no image variant fits this machine: a base can neither be pulled nor made",
        evidence=[f"{what}: {found[what].detail}" for what in ("registry", "bootstrap")],
        hints=[
            "let this machine reach registry-1.docker.io (docs.docker.com/engine/daemon/proxy)",
            "name a base that the engine has: `image.base=NAME:TAG`",
            "as root on Debian or Ubuntu: `apt-get install mmdebstrap debian-archive-keyring`, then try again",
        ],
    )


def write(project: Project, choice: Choice, now: datetime) -> tuple[Path, bool]:
    """Note the choice in conf/local/default.yaml; (the file, False when it is the user's own and was left alone)."""
    path = project.conf / "local" / "default.yaml"
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(
        ("# @package _global_\n" + MARKER, MARKER)
    ):
        return path, False
    ignored_folder(path.parent)
    text = (
        "# @package _global_\n"
        f"{MARKER} on {now:%Y-%m-%d}, for this machine alone; git ignores it.\n"
        f"# Why: {choice.why}.\n"
        "# To keep changes of your own, delete the second line: the file is then yours and stays as it is.\n"
        "defaults:\n"
        f"  - override /image: {choice.variant}\n"
    )
    write_atomic(path, text.encode())
    return path, True


# engine, builder, GPU --------------------------------------------------------------------------------------------


def _engine() -> list[Finding]:
    from repro.engine import connect

    try:
        engine = connect(timeout=10)
        with contextlib.closing(engine.client):
            facts = engine.facts()
    except ReproError as error:
        hint = error.hints[0] if error.hints else ""
        unknown = Finding(what="gpu", level=Level.WARN, detail="unknown without an engine", facts={"offered": False})
        return [Finding(what="engine", level=Level.BAD, detail=error.what, hint=hint), unknown]
    return [_engine_finding(facts, engine.host_url), _builder(), gpu(facts), _engine_disk(facts, engine.host_url)]


def _engine_finding(facts: EngineFacts, url: str) -> Finding:
    return Finding(
        what="engine",
        level=Level.OK,
        detail=f"{facts.product} {facts.version} at {url}: {facts.platform}, {facts.cpus} CPUs, "
        f"{facts.memory / GIB:.1f} GiB, {facts.store} store in {facts.data_root}",
        facts={"product": facts.product, "version": facts.version, "api": facts.api, "store": facts.store, "url": url},
    )


def _builder() -> Finding:
    buildx = _answer("docker", "buildx", "version")
    if buildx:
        return Finding(what="builder", level=Level.OK, detail=f"BuildKit: {buildx}", facts={"builder": "buildx"})
    return Finding(
        what="builder",
        level=Level.OK,
        detail="the engine's classic builder: Dockerfiles without RUN --mount, heredocs and COPY --link",
        hint="for BuildKit install docker's buildx plugin (package docker-buildx-plugin or docker-buildx)",
        facts={"builder": "classic"},
    )


def gpu(facts: EngineFacts) -> Finding:
    """What the engine can give, beside what the machine in front of us has.

    A hook in dockerd's PATH serves GPUs without being announced: with a card and NVIDIA's toolkit here, we count on it.
    """
    cards = _answer("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    count = len(cards.splitlines())
    toolkit = any(shutil.which(name) for name in ("nvidia-container-runtime-hook", "nvidia-ctk"))
    offered = bool(facts.gpus) or bool(cards and toolkit)
    seen: Facts = {"offered": offered, "engine": facts.gpus, "cards": count}
    if offered:
        names = f": {', '.join(cards.splitlines())}" if cards else ""
        detail = f"the engine offers GPUs ({facts.gpus or 'hook'}){names}"
        return Finding(what="gpu", level=Level.OK, detail=detail, facts=seen)
    if cards:
        return Finding(
            what="gpu",
            level=Level.WARN,
            detail=f"{count} in this machine ({cards.splitlines()[0]}), and the engine offers none",
            hint="install the NVIDIA Container Toolkit, `nvidia-ctk runtime configure`, restart the engine",
            facts=seen,
        )
    return Finding(what="gpu", level=Level.OK, detail="none: experiments run on the CPU", facts=seen)


# network ---------------------------------------------------------------------------------------------------------


def registry(url: str = REGISTRY) -> Finding:
    """Whether a registry answers. A proxy that answers in its place is no registry."""
    import requests

    try:
        answer = requests.head(url, timeout=NETWORK_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        return _no_registry(url, _cause(error))
    if answer.status_code in (200, 401) and "Docker-Distribution-Api-Version" in answer.headers:
        return Finding(what="registry", level=Level.OK, detail=f"{url} answers", facts={"reachable": True})
    return _no_registry(url, f"HTTP {answer.status_code}, and not from a registry")


def _no_registry(url: str, why: str) -> Finding:
    return Finding(
        what="registry",
        level=Level.WARN,
        detail=f"{url} cannot be reached from here ({why})",
        hint="images whose base is on this machine, and image=debian, need no registry",
        facts={"reachable": False},
    )


def _cause(error: Exception) -> str:
    """The innermost reason in few words: requests' own texts carry addresses of objects."""
    inner: BaseException = error
    while inner.__cause__ or inner.__context__:
        inner = inner.__cause__ or inner.__context__ or inner
    return f"{type(error).__name__}: {getattr(inner, 'strerror', None) or type(inner).__name__}"


def datasets(data: Mapping[str, DatasetConfig], *, cache: Path, local: str | None) -> list[Finding]:
    """Whether each dataset is in the cache, or can be had from one of its sources (asked for, not fetched)."""
    return [_dataset(name, dataset, cache=cache, local=local) for name, dataset in data.items()]


def _dataset(name: str, dataset: DatasetConfig, *, cache: Path, local: str | None) -> Finding:
    what = f"data {name}"
    from repro import data

    if data.cached(name, dataset, cache=cache):
        return Finding(what=what, level=Level.OK, detail=f"in the cache, {cache}", facts={"source": "cache"})
    asked = {file: data.places(name, file, dataset, local) for file in dataset.files}
    found = {file: next(filter(_has, places), "") for file, places in asked.items()}
    lacking = [file for file, place in found.items() if not place]
    if not lacking:
        sources = ", ".join(dict.fromkeys(place.rpartition("/")[0] for place in found.values()))
        return Finding(what=what, level=Level.OK, detail=f"can be had from {sources}", facts={"source": sources})
    return Finding(
        what=what,
        level=Level.WARN,
        detail=f"{len(lacking)} of {len(found)} files are neither in the cache nor to be had, as {lacking[0]} "
        f"({len(asked[lacking[0]])} places asked)",
        hint=f"lay the files in a folder {name}/ and name the folder above it: REPRO_DATA_SOURCE=FOLDER",
        facts={"source": ""},
    )


def _has(place: str) -> bool:
    import requests

    if "://" not in place:
        return Path(place).is_file()
    try:
        return requests.head(place, timeout=NETWORK_SECONDS, allow_redirects=True).ok
    except requests.RequestException:
        return False


# project and machine ---------------------------------------------------------------------------------------------


def _configuration(project: Project) -> list[Finding]:
    """Every experiment of the project composed, and the datasets that they name."""
    from repro import config, data

    broken: list[Finding] = []
    wanted: dict[str, DatasetConfig] = {}
    names = config.options(project, "experiment")
    for name in names:
        try:
            wanted.update(data.rooted(config.compose(project, [f"experiment={name}"]).data, project.root))
        except ReproError as error:
            broken.append(Finding(what=f"experiment {name}", level=Level.WARN, detail=error.what, hint=_hint(error)))
    composed = Finding(
        what="experiments",
        level=Level.OK if names else Level.WARN,
        detail=", ".join(names) or f"none in {project.conf / 'experiment'}",
        hint="" if names else "`repro init` makes a first one",
        facts={"count": len(names), "broken": len(broken)},
    )
    local = os.environ.get("REPRO_DATA_SOURCE")
    return [composed, *broken, *datasets(wanted, cache=cache_folder(), local=local)]


def _hint(error: ReproError) -> str:
    return error.hints[0] if error.hints else ""


def _git(project: Project) -> Finding:
    version = _answer("git", "--version")
    if not version:
        return Finding(
            what="git", level=Level.BAD, detail="no git on PATH", hint="install it: `sudo apt-get install git`"
        )
    head = _answer("git", "-C", str(project.root), "rev-parse", "--verify", "--quiet", "HEAD")
    if head:
        return Finding(what="git", level=Level.OK, detail=f"{version}, HEAD is {head[:12]}", facts={"head": head})
    inside = _answer("git", "-C", str(project.root), "rev-parse", "--is-inside-work-tree")
    return Finding(
        what="git",
        level=Level.WARN if inside else Level.BAD,
        detail=f"{version}; {project.root} is {'a repository without a commit' if inside else 'no repository'}",
        hint="`git init && git add -A && git commit -m begin`: a run records the code that ran",
    )


def _bootstrap() -> Finding:
    program, root = shutil.which("mmdebstrap"), os.geteuid() == 0
    facts: Facts = {"mmdebstrap": program or "", "root": root}
    if program and root:
        detail = "mmdebstrap and root: image=debian makes its base here"
        return Finding(what="bootstrap", level=Level.OK, detail=detail, facts=facts)
    lacking = " and ".join(name for name, there in (("mmdebstrap", program), ("root", root)) if not there)
    return Finding(
        what="bootstrap",
        level=Level.WARN,
        detail=f"without {lacking}: no base image can be made here (image=debian)",
        hint="only needed where no registry can be reached: as root, `apt-get install mmdebstrap`",
        facts=facts,
    )


def _engine_disk(facts: EngineFacts, url: str) -> Finding:
    if not url.startswith("unix://") or not Path(facts.data_root).is_dir():
        return Finding(what="disk engine", level=Level.OK, detail=f"not visible from here ({facts.data_root})")
    return disk("engine", Path(facts.data_root), warn=10 * GIB, bad=2 * GIB, hint="`repro prune`, `docker system df`")


def _disks(project: Project) -> list[Finding]:
    return [
        disk("runs", project.runs, warn=2 * GIB, bad=GIB // 5, hint="remove old runs, or set REPRO_RUNS_DIR"),
        disk("cache", cache_folder(), warn=2 * GIB, bad=GIB // 5, hint="set REPRO_CACHE to a folder on another disk"),
    ]


def disk(name: str, folder: Path, *, warn: int, bad: int, hint: str) -> Finding:
    """Free space where `folder` is, or will be; whether it can be written is asked of its nearest parent."""
    place = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK) or name == "engine"  # the engine's folder is the engine's to write
    level = Level.BAD if free < bad or not writable else Level.WARN if free < warn else Level.OK
    return Finding(
        what=f"disk {name}",
        level=level,
        detail=f"{free / GIB:.1f} GiB free in {folder}" if writable else f"{folder} cannot be written",
        hint="" if level is Level.OK else hint,
        facts={"free": free, "writable": writable},
    )


def _store(project: Project) -> Finding:
    from repro import config, tracking

    try:
        uri = tracking.resolve_uri(config.compose_tracking_uri(project), project)
    except ReproError as error:
        return Finding(what="mlflow", level=Level.WARN, detail=error.what, hint=_hint(error))
    if uri.startswith(("http://", "https://")):
        return _server(uri)
    return Finding(what="mlflow", level=Level.OK, detail=uri, facts={"uri": uri})


def _server(uri: str) -> Finding:
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=NETWORK_SECONDS).raise_for_status()
    except requests.RequestException as error:
        return Finding(
            what="mlflow",
            level=Level.WARN,
            detail=f"{uri} does not answer ({_cause(error)})",
            hint="runs work without it; `repro sync` brings it up to date later",
            facts={"uri": uri},
        )
    return Finding(what="mlflow", level=Level.OK, detail=f"{uri} answers", facts={"uri": uri})


def _answer(*argv: str) -> str:
    """What a program prints; "" when it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=PROGRAM_SECONDS, stdin=subprocess.DEVNULL, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
