"""The engine -> Findings: what it is, what builds for it, and what it can and cannot do for runs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from repro.build import builder
from repro.engines.answers import EngineFacts
from repro.errors import ReproError
from repro.verbs.findings import GIB, Facts, Finding, Level, disk, program

OLDEST_API = (1, 41)  # of Docker 20.10
BUILDKIT_NETWORK_API = (1, 42)  # of Docker 23: older BuildKits do not know `RUN --network`
PODMAN_CDI = (5,)  # older ones take requests for GPUs and ignore them
CDI_FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))


def examine() -> list[Finding]:
    """Everything about the engine that a run would be given to."""
    from repro.engines.engine import connect

    try:
        engine = connect(timeout=10)
        with contextlib.closing(engine.client):
            facts = engine.facts()
            builds = builder.name_for(engine)
    except ReproError as error:
        hint = error.hints[0] if error.hints else ""
        unknown = Finding(what="gpu", level=Level.WARN, detail="unknown without an engine", facts={"offered": False})
        return [Finding(what="engine", level=Level.BAD, detail=error.what, hint=hint), unknown]
    url = engine.host_url
    return [identity(facts, url), building(facts, builds), images(facts), gpu(facts), *limits(facts), _disk(facts, url)]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def identity(facts: EngineFacts, url: str) -> Finding:
    """What it is, and whether it is too old."""
    seen: Facts = {
        "product": facts.product,
        "version": facts.version,
        "api": facts.api,
        "store": facts.store,
        "url": url,
        "rootless": facts.rootless,
    }
    if _numbers(facts.api) < OLDEST_API:
        return Finding(
            what="engine",
            level=Level.BAD,
            detail=f"{facts.product} {facts.version} at {url} speaks API {facts.api}, and runs need 1.41",
            hint="install Docker 20.10 or newer, or Podman 4 or newer",
            facts=seen,
        )
    rootless = ", rootless (root in its containers is you)" if facts.rootless else ""
    return Finding(
        what="engine",
        level=Level.OK,
        detail=f"{facts.product} {facts.version} (API {facts.api}) at {url}{rootless}: {facts.platform}, "
        f"{facts.cpus} CPUs, {facts.memory / GIB:.1f} GiB, {facts.store} store in {facts.data_root}",
        facts=seen,
    )


def building(facts: EngineFacts, builds: str) -> Finding:
    """What builds images here, and what it cannot read."""
    hint = ""
    if builds == "buildx":
        old = "; this engine's does not know RUN --network" if _numbers(facts.api) < BUILDKIT_NETWORK_API else ""
        detail = f"BuildKit in the engine, through {builder.buildx()}{old}"
    elif builds == "podman":
        heredocs = ", here-documents" if _numbers(facts.version) < builder.PODMAN_HEREDOCS else ""
        detail = f"Podman's own, with or without buildx: Dockerfiles without build secrets, COPY --link{heredocs}"
    else:
        detail = "the engine's classic builder: Dockerfiles without RUN --mount (secrets, too), here-documents, --link"
        hint = "for BuildKit install docker's buildx plugin (package docker-buildx-plugin or docker-buildx)"
    return Finding(what="builder", level=Level.OK, detail=detail, hint=hint, facts={"builder": builds})


def images(facts: EngineFacts) -> Finding:
    """What the id of an image is made of: it decides where `--locked` accepts one."""
    kind = "manifest" if facts.store == "containerd" else "configuration"
    other = "configuration" if kind == "manifest" else "manifest"
    detail = (
        f"an image's id is the digest of its {kind}; engines with ids of the {other} have others for the same image"
    )
    return Finding(what="image ids", level=Level.OK, detail=detail, facts={"id_of": kind})


def gpu(facts: EngineFacts) -> Finding:
    """What the engine can give, beside what the machine in front of us has.

    A hook in dockerd's PATH serves GPUs without being announced: with a card and NVIDIA's toolkit here, we count on it.
    """
    cards = program("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    names = f": {', '.join(cards)}" if cards else ""
    how, hint = _podman_gpus(facts) if facts.podman else _docker_gpus(facts, here=bool(cards))
    seen: Facts = {"offered": bool(how), "engine": facts.gpus, "cards": len(cards)}
    if how:
        return Finding(what="gpu", level=Level.OK, detail=f"the engine offers GPUs ({how}){names}", facts=seen)
    if not cards:
        return Finding(what="gpu", level=Level.OK, detail="none: experiments run on the CPU", facts=seen)
    lacks = f"{facts.product} {facts.version} gives none of them to containers"
    detail = f"{len(cards)} in this machine ({cards[0]}), and {lacks}; `gpus=all` is refused"
    return Finding(what="gpu", level=Level.WARN, detail=detail, hint=hint, facts=seen)


def _docker_gpus(facts: EngineFacts, *, here: bool) -> tuple[str, str]:
    toolkit = any(shutil.which(name) for name in ("nvidia-container-runtime-hook", "nvidia-ctk"))
    how = facts.gpus or ("hook" if here and toolkit else "")
    return how, "install the NVIDIA Container Toolkit, `nvidia-ctk runtime configure`, restart the engine"


def _podman_gpus(facts: EngineFacts) -> tuple[str, str]:
    """Podman announces nothing; what it reads are the CDI specifications of its machine, if that is this one."""
    if _numbers(facts.version) < PODMAN_CDI:
        return "", "it ignores requests for GPUs in silence: use Podman 5 with CDI, or Docker"
    files = [file for folder in CDI_FOLDERS for file in folder.glob("*") if os.access(file, os.R_OK) and file.is_file()]
    known = any("nvidia.com/gpu" in file.read_text(encoding="utf-8", errors="replace") for file in files)
    return "cdi" if known else "", "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`"


def limits(facts: EngineFacts) -> Sequence[Finding]:
    """The limits that a run can ask for and will not get; nothing where all of them hold."""
    if not facts.unlimited:
        return ()
    return (
        Finding(
            what="limits",
            level=Level.WARN,
            detail=f"resources: {', '.join(facts.unlimited)} are taken and not kept by this engine",
            hint="a rootless engine needs cgroup v2, delegated to its user: see rootlesscontaine.rs",
            facts={"unlimited": ",".join(facts.unlimited)},
        ),
    )


def _disk(facts: EngineFacts, url: str) -> Finding:
    if not url.startswith("unix://") or not Path(facts.data_root).is_dir():
        return Finding(what="disk engine", level=Level.OK, detail=f"not visible from here ({facts.data_root})")
    return disk("engine", Path(facts.data_root), warn=10 * GIB, bad=2 * GIB, hint="`repro prune`, `docker system df`")
