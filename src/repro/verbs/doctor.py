"""This machine -> Findings: what it can do for experiments, what it cannot, and what to do about it.

The checks wait for engine, network and disks at the same time. `choose` decides, without asking anything again, which
variant of the image fits what was found.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from repro.errors import EnvironmentUnfitError, ExitCode, ReproError
from repro.experiment import DatasetConfig, Value
from repro.project import Project, cache_folder, ignored_folder
from repro.record import write_atomic
from repro.verbs import enginecheck
from repro.verbs.findings import GIB, Facts, Finding, Level, disk, program

REGISTRY = "https://registry-1.docker.io/v2/"
NETWORK_SECONDS = 3.0
MARKER = "# written by `repro doctor --write`"


class Choice(Value, frozen=True, kw_only=True):
    """The image variant for this machine, and why."""

    variant: str
    why: str


def examine(project: Project) -> tuple[Finding, ...]:
    """Look at everything that a run of this project needs; takes as long as the slowest answer."""
    checks: tuple[Callable[[], Sequence[Finding]], ...] = (
        enginecheck.examine,
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
    version = program("git", "--version")
    if not version:
        return Finding(
            what="git", level=Level.BAD, detail="no git on PATH", hint="install it: `sudo apt-get install git`"
        )
    head = program("git", "-C", str(project.root), "rev-parse", "--verify", "--quiet", "HEAD")
    if head:
        return Finding(what="git", level=Level.OK, detail=f"{version}, HEAD is {head[:12]}", facts={"head": head})
    inside = program("git", "-C", str(project.root), "rev-parse", "--is-inside-work-tree")
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


def _disks(project: Project) -> list[Finding]:
    return [
        disk("runs", project.runs, warn=2 * GIB, bad=GIB // 5, hint="remove old runs, or set REPRO_RUNS_DIR"),
        disk("cache", cache_folder(), warn=2 * GIB, bad=GIB // 5, hint="set REPRO_CACHE to a folder on another disk"),
    ]


def _store(project: Project) -> Finding:
    from repro import config
    from repro.tracking import tracking

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
