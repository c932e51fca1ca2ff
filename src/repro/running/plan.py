"""Experiment + ingredients -> Plan: all that a run will be, decided by a pure function; nothing is touched."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import msgspec

from repro import __version__, identity, manifest
from repro.engines.answers import EngineFacts
from repro.engines.engine import ContainerSpec, Mount
from repro.engines.refusal import STARTER
from repro.errors import BadInputError
from repro.experiment import Experiment, Resources, RunSecret, Value
from repro.record import Code, DatasetUsed, Host, ImageUsed, Planned, RunFolder
from repro.running import determinism, ownership
from repro.running.machine import Machine
from repro.secrets.secretsfolder import INSIDE as SECRETS

INSIDE = Path(__file__).parents[1] / "inside"  # what we mount into every container
HOME = "/home/repro"
RUN_LABEL = "repro.run"
Gpus = tuple[str, ...] | int  # ids; a number (-1: all); () for none


class Ingredients(Value, frozen=True, kw_only=True):
    """What has been found or made for a run before it is planned."""

    code: Code
    code_prefix: str = ""  # of the project inside its repository
    code_folder: str  # the export of the snapshot on this host
    diff: str  # uncommitted changes, for people
    image: ImageUsed
    image_env: tuple[str, ...]  # NAME=value, as the image sets them
    inputs: dict[str, str]  # texts that the image was made from, by path
    data: tuple[DatasetUsed, ...]
    engine: EngineFacts
    machine: Machine = Machine()
    notices: tuple[str, ...] = ()


class Circumstances(Value, frozen=True, kw_only=True):
    """Time, place and person: everything that enters a plan from outside."""

    run: str
    created: datetime
    project: str
    folder: str  # of the run
    argv: tuple[str, ...]
    overrides: tuple[str, ...]
    uid: int
    gid: int
    user: str  # name
    tracking_uri: str | None
    secrets_folder: str = ""  # on this host, in memory; "" without secrets
    reproduces: str | None = None  # the run that this one executes again
    repeats: str | None = None  # the first of the runs that `--repeat` makes


class Plan(Value, frozen=True, kw_only=True):
    """All decided, nothing done."""

    planned: Planned
    folder: str
    container: ContainerSpec
    cpu_fallback: bool  # without GPUs to be had, run on the CPU and say so
    time_limit: float | None  # seconds
    stop_grace: float  # seconds
    diff: str
    inputs: dict[str, str]
    secrets: dict[str, RunSecret]  # where they come from; read when the run starts
    secrets_folder: str  # where they are put for it


def run_id(name: str, created: datetime, random: bytes) -> str:
    """Sortable time + experiment + random, as 20261123-191500-mnist-3f9c1a."""
    return f"{created.astimezone(timezone.utc):%Y%m%d-%H%M%S}-{name}-{random.hex()[:6]}"


def decide(experiment: Experiment, ingredients: Ingredients, circumstances: Circumstances) -> Plan:
    """Decide everything about a run.

    Raises:
        BadInputError: `gpus`, `env`, `secrets` or `outputs` says what cannot be.
    """
    manifest.matcher(experiment.outputs.ignore)
    manifest.matcher(experiment.outputs.by_products, "outputs.by_products")
    gpus, cpu_fallback = gpu_request(experiment.gpus)
    env = container_env(experiment, ingredients, circumstances)
    _check_variables(experiment, env)
    tracking = experiment.tracking
    planned = Planned(
        run=circumstances.run,
        name=experiment.name,
        created=circumstances.created,
        repro=__version__,
        project=circumstances.project,
        argv=circumstances.argv,
        overrides=circumstances.overrides,
        command=experiment.command,
        config=msgspec.json.decode(msgspec.json.encode(experiment)),
        code=ingredients.code,
        image=ingredients.image,
        data=ingredients.data,
        host=host(ingredients.engine, ingredients.machine, circumstances.user),
        user=user(experiment, ingredients.engine, circumstances),
        env=env,
        gpus_asked=gpus_text(gpus) + (" or none" if cpu_fallback else ""),
        network=experiment.network,
        tracking_uri=circumstances.tracking_uri,
        tracking_experiment=tracking.experiment or experiment.name,
        notices=(*ingredients.notices, *_unlimited(experiment, ingredients.engine)),
        code_prefix=ingredients.code_prefix,
        helper=helper(),
        reproduces=circumstances.reproduces,
        repeats=circumstances.repeats,
    )
    return complete(planned, experiment, ingredients, circumstances, gpus, cpu_fallback=cpu_fallback)


def complete(
    planned: Planned,
    experiment: Experiment,
    ingredients: Ingredients,
    circumstances: Circumstances,
    gpus: Gpus,
    *,
    cpu_fallback: bool,
) -> Plan:
    """The plan of a run whose record is decided, all but the key of what goes in."""
    planned = msgspec.structs.replace(planned, run_key=identity.run_key(planned))
    return Plan(
        planned=planned,
        folder=circumstances.folder,
        container=container(experiment, ingredients, planned, circumstances, gpus),
        cpu_fallback=cpu_fallback,
        time_limit=experiment.resources.time_limit,
        stop_grace=experiment.resources.stop_grace,
        diff=ingredients.diff,
        inputs=ingredients.inputs,
        secrets=experiment.secrets,
        secrets_folder=circumstances.secrets_folder,
    )


def user(experiment: Experiment, engine: EngineFacts, circumstances: Circumstances) -> str:
    """Who the container's program is, as uid:gid."""
    # where the engine runs as the caller, its root is the caller, and any other user cannot write their files
    as_root = engine.rootless or experiment.user == "root"
    return "0:0" if as_root else f"{circumstances.uid}:{circumstances.gid}"


@cache
def helper() -> str:
    """One sha256 over all that we mount into every container: it is as constant as our version."""
    hasher = hashlib.sha256()
    for path in sorted(INSIDE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content = path.read_bytes()
            name = path.relative_to(INSIDE).as_posix()
            hasher.update(f"{len(content)} {name}\0".encode() + content)
    return hasher.hexdigest()


def start_command(
    command: tuple[str, ...], secrets: Mapping[str, RunSecret], limits: Resources | None = None
) -> tuple[str, ...]:
    """What the container is started with: the command itself, or what becomes it where there is more to do.

    With `limits`, the container keeps its time limit by itself, whoever has died meanwhile.
    """
    options: list[str] = []
    if limits and limits.time_limit is not None:
        times = ("--limit", _decimal(limits.time_limit), "--grace", _decimal(limits.stop_grace))
        options += [*times, "--signal", limits.stop_signal.removeprefix("SIG")]
    for name, secret in secrets.items():
        if secret.to == "env":
            options += ["--env", f"{name}={SECRETS}/{name}"]
    return (STARTER, *options, "--", *command) if options else command


def _decimal(seconds: float) -> str:
    """As every `sleep` reads it: no exponent."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def _check_variables(experiment: Experiment, env: Mapping[str, str]) -> None:
    names = [name for name, secret in experiment.secrets.items() if secret.to == "env"]
    if taken := sorted(set(names) & set(env)):
        raise BadInputError(
            f"configuration: secrets: {', '.join(taken)} is in the environment already",
            hints=["choose another name, or take it out of `env`"],
        )
    if odd := [name for name in names if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)]:
        raise BadInputError(
            f"configuration: secrets.{odd[0]} cannot be an environment variable: its name has other characters than "
            "letters, digits and _",
            hints=["choose another name, or leave `to: env` out"],
        )


def gpu_request(asked: str | int | tuple[str | int, ...]) -> tuple[Gpus, bool]:
    """What to ask the engine for, and whether the CPU will do when it has none.

    Raises:
        BadInputError: neither auto, none, all, a number nor a list of ids.
    """
    if asked == "auto":
        return -1, True
    if asked in ("none", 0, ()):
        return (), False
    if asked == "all":
        return -1, False
    if isinstance(asked, int) and asked > 0:
        return asked, False
    if isinstance(asked, tuple):
        return tuple(str(each) for each in asked), False
    raise BadInputError(
        f"configuration: gpus: {asked!r} is not understood",
        hints=["gpus=auto, gpus=none, gpus=all, a number (gpus=2), or ids (gpus=[0,1], gpus=[GPU-...])"],
    )


def _unlimited(experiment: Experiment, engine: EngineFacts) -> tuple[str, ...]:
    """What the user asked for and the engine takes without keeping it: rootless ones without cgroup v2 do."""
    asked = {"memory": experiment.resources.memory, "cpus": experiment.resources.cpus}
    lost = [f"resources.{name}" for name in engine.unlimited if asked.get(name)]
    return (f"{' and '.join(lost)}: {engine.product} takes the limit and cannot keep it here",) if lost else ()


def gpus_text(gpus: Gpus) -> str:
    if isinstance(gpus, int):
        return "all" if gpus < 0 else str(gpus)
    return ",".join(f"id {each}" for each in gpus) or "none"


def container_env(experiment: Experiment, ingredients: Ingredients, circumstances: Circumstances) -> dict[str, str]:
    """The environment in the container: what keeps a run repeatable, where things are, and the user's own.

    Raises:
        BadInputError: the user's own tries to set one of ours.
    """
    image_env = dict(pair.partition("=")[::2] for pair in ingredients.image_env)
    path = image_env.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    ours = {
        "REPRO_RUN": circumstances.run,
        "REPRO_CONFIG": "/repro/config.json",
        "REPRO_OUTPUTS": "/outputs",
        "REPRO_JOURNAL": "/journal",
        "REPRO_DATA": "/data",
        "PATH": f"/repro/inside/bin:{path}",
        "PYTHONPATH": ":".join(filter(None, ["/repro/inside", image_env.get("PYTHONPATH")])),
        "HOME": HOME,
        "USER": "repro",
        "LOGNAME": "repro",
    }
    defaults = {
        "TZ": "UTC",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": str(experiment.seed),
        "PYTHONUNBUFFERED": "1",  # lines arrive while the run goes on
        "PYTHONDONTWRITEBYTECODE": "1",  # /workspace is read-only
        "XDG_CACHE_HOME": f"{HOME}/.cache",
        "MPLCONFIGDIR": f"{HOME}/.config/matplotlib",
        "MPLBACKEND": "agg",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "MLFLOW_TRACKING_URI": "repro://run",  # its store is `inside/repro_mlflow.py`
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",  # MLflow asks for git, which few images have
        "DO_NOT_TRACK": "1",
        "TINI_KILL_PROCESS_GROUP": "1",  # to Docker's init: a stop reaches what a shell script has started, too
    }
    defaults |= determinism.environment(experiment, experiment.resources.cpus or ingredients.engine.cpus)
    if taken := sorted(set(experiment.env) & set(ours)):
        raise BadInputError(
            f"configuration: env: {', '.join(taken)} is set by repro",
            hints=["choose another name; PATH and PYTHONPATH are extended with ENV in the Dockerfile"],
        )
    return defaults | experiment.env | ours


def host(engine: EngineFacts, machine: Machine, user: str) -> Host:
    """What a record keeps of the machine."""
    return Host(
        name=engine.name,
        user=user,
        system=engine.platform,
        cpus=engine.cpus,
        memory=engine.memory,
        engine=f"{engine.product} {engine.version} ({engine.store})",
        architecture=machine.architecture,
        kernel=machine.kernel,
        cpu=machine.cpu,
        cpu_flags=machine.cpu_flags,
        gpus=machine.gpus,
    )


def container(
    experiment: Experiment, ingredients: Ingredients, planned: Planned, circumstances: Circumstances, gpus: Gpus
) -> ContainerSpec:
    """The container of what is planned."""
    limits, folder = experiment.resources, RunFolder(Path(circumstances.folder))
    mounts = [
        Mount(source=ingredients.code_folder, target="/workspace"),
        Mount(source=str(folder.outputs), target="/outputs", read_only=False),
        Mount(source=str(folder.journal), target="/journal", read_only=False),
        Mount(source=str(INSIDE), target="/repro/inside"),
        Mount(source=str(folder.config_json), target="/repro/config.json"),
        *(Mount(source=dataset.folder, target=f"/data/{dataset.name}") for dataset in planned.data),
        *([Mount(source=circumstances.secrets_folder, target=SECRETS)] if experiment.secrets else []),
    ]
    # `exec`: frameworks compile kernels into these folders and load them from there
    tmpfs = {
        "/tmp": f"rw,exec,nosuid,nodev,size={limits.tmp},mode=1777",  # noqa: S108 - the container's, in memory
        HOME: f"rw,exec,nosuid,nodev,size={limits.tmp},mode=1777",  # Podman knows no owner of a tmpfs
    }
    return ContainerSpec(
        image=planned.image.id,
        name=f"repro-{planned.run}",
        command=start_command(planned.command, experiment.secrets, limits),
        env=planned.env,
        labels={
            RUN_LABEL: planned.run,
            "repro.project": planned.project,
            "repro.folder": str(folder.path),
            "repro.user": planned.host.user,  # else it would be the image's, which may be another's
        },
        user=planned.user,
        workdir="/workspace",
        mounts=tuple(mounts),
        tmpfs=tmpfs,
        network=planned.network,
        gpus=gpus,
        cpus=limits.cpus,
        memory=limits.memory,
        shm=limits.shm,
        pids=limits.pids,
        stop_signal=limits.stop_signal,
        capabilities=ownership.ROOT_CAPABILITIES if experiment.user == "root" else (),
    )
