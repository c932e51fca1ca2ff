"""The Docker engine, through the Docker SDK: the only door to containers. It speaks strings and bytes.

Foreign exceptions become ours here and nowhere else. The SDK is imported when an engine is first asked for.
"""

from __future__ import annotations

from typing import Any, NoReturn, BinaryIO
from collections.abc import Iterator
from contextlib import contextmanager

from repro.errors import EngineUnreachableError, EnvironmentUnfitError
from repro.experiment import Value


class EngineFacts(Value, kw_only=True):
    """What an engine says of itself."""

    product: str  # Docker, Podman
    version: str
    api: str
    store: str  # overlay2, containerd, ...
    platform: str  # linux/amd64
    cpus: int
    memory: int  # bytes
    gpus: str  # "": none offered; else how: nvidia, cdi
    data_root: str
    name: str  # host name


class ImageFacts(Value, kw_only=True):
    """What an engine says of one image."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]  # repo digests; empty unless pushed or pulled
    labels: dict[str, str]
    env: tuple[str, ...]
    created: str
    size: int  # bytes
    layers: tuple[str, ...]  # diff ids
    platform: str


class Engine:
    """One engine, connected."""

    def __init__(self, client: Any) -> None:
        self.client = client  # docker.DockerClient; `builder` shares it, nobody else
