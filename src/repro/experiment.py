"""Experiment: what the user wants, as composed by Hydra, typed and checked. Values only, no Hydra here.

Sizes are bytes, times are seconds. Every type refuses unknown keys.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all values: immutable, unknown keys refused, fields by name only.

    Each class repeats `frozen` and `kw_only`: mypy wants the one, and msgspec does not inherit the other.
    """


class BaseRecipe(Value, frozen=True, kw_only=True):
    """A base image that the project makes by itself from Debian's packages, with no registry."""

    suite: Name
    packages: tuple[str, ...]
    source_date_epoch: Annotated[int, Meta(ge=0)]


class ImageConfig(Value, frozen=True, kw_only=True):
    """One entry of the group `image`: everything that decides an image, as file names and strings."""

    variant: Name
    name: Annotated[str, Meta(pattern=r"^[a-z0-9]+([._/-][a-z0-9]+)*$")] = "my-tf"
    base: Annotated[str, Meta(min_length=1)]
    bootstrap: BaseRecipe | None = None
    dockerfile: str = "docker/Dockerfile"
    requirements: str | None = "docker/requirements.txt"
    context: tuple[str, ...] = ()  # further files or folders that the Dockerfile copies
    build_args: dict[str, str] = {}
    target: str | None = None
    platform: str = "linux/amd64"
    registry: str | None = None  # host[:port][/path] that images are pushed to and pulled from


class SecretSource(Value, frozen=True, kw_only=True):
    """Where the value of a build secret comes from: exactly one of the two."""

    env: str | None = None
    file: str | None = None


class RunSecret(SecretSource, frozen=True, kw_only=True):
    """Where the value of a run's secret comes from, a program's answer being the third way, and how it gets there."""

    command: str | None = None  # a program and its arguments; no shell
    to: Literal["file", "env"] = "file"  # a file it is in both cases


class BuildConfig(Value, frozen=True, kw_only=True):
    """How images are built. Of these, the network alone is part of an image's identity."""

    network: Literal["default", "host", "none"] | None = None  # of the build's steps; None: the engine's default
    ca_bundle: str | None = None  # PEM file that steps with a network may trust; never in the image
    secrets: dict[Name, SecretSource] = {}  # for `RUN --mount=type=secret,id=NAME`


class DatasetConfig(Value, frozen=True, kw_only=True):
    """Bytes with a name: files pinned by sha256 and where to get them."""

    files: dict[str, Sha256]
    sources: tuple[str, ...] = ()  # base URLs or folders, tried in this order


class Resources(Value, frozen=True, kw_only=True):
    """Limits of the container. None means that the engine's host is the limit."""

    cpus: Annotated[float, Meta(gt=0)] | None = None
    memory: Positive | None = None
    shm: Positive = 2 << 30
    tmp: Positive = 1 << 30
    pids: Positive = 4096
    time_limit: Seconds | None = None
    stop_signal: Literal["SIGINT", "SIGTERM"] = "SIGINT"
    stop_grace: Seconds = 10.0


class Outputs(Value, frozen=True, kw_only=True):
    """What becomes of the files that a run writes. `limit` None means that the disk is the limit."""

    ignore: tuple[str, ...] = ()  # patterns as in a .gitignore: files that stay, and are neither listed nor in MLflow
    limit: Positive | None = None  # of outputs, journal and log together
    by_products: tuple[str, ...] = ()  # patterns: files that may differ between two runs that are the same
    by_product_metrics: tuple[str, ...] = ()  # patterns as in a shell: metrics that may, as a time does


class Tracking(Value, frozen=True, kw_only=True):
    """Where MLflow is. `uri` None means MLFLOW_TRACKING_URI, else the project's own `mlflow.db`."""

    enabled: bool = True
    uri: str | None = None
    experiment: str | None = None  # MLflow's experiment; the experiment's name when None
    wait: Annotated[float, Meta(ge=0)] | None = None  # seconds; None: as long as it takes who follows, at most 2


class Experiment(Value, frozen=True, kw_only=True):
    """What the user wants, complete: the input of a plan."""

    name: Name
    command: Annotated[tuple[str, ...], Meta(min_length=1)]
    params: dict[str, Any] = {}
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 1
    threads: Positive | None = None  # for numeric libraries; None: as many as the container has CPUs
    deterministic: bool | Literal["portable"] = True  # portable: on every processor of an architecture
    gpus: str | int | tuple[str | int, ...] = "auto"
    network: str = "none"
    user: Literal["caller", "root"] = "caller"
    env: dict[str, str] = {}
    secrets: dict[Name, RunSecret] = {}
    image: ImageConfig
    build: BuildConfig = BuildConfig()
    data: dict[Name, DatasetConfig] = {}
    resources: Resources = Resources()
    outputs: Outputs = Outputs()
    tracking: Tracking = Tracking()
    description: str = ""
