"""An image, looked into: files of it, without a start, and what a program of it says, with nothing else around it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from repro.engines import refusal
from repro.engines.engine import Engine, translated
from repro.errors import EnvironmentUnfitError

LABEL = "repro.probe"
SECONDS = 30.0
TOO_LONG = 124  # the exit code that `timeout` has for it
FILES_LIMIT = 64 << 20  # bytes of a folder
Files = dict[str, bytes]  # by path


def files(engine: Engine, image: str, paths: Sequence[str]) -> Files:
    """Those of these files, and the files right in those of these folders, that the image has.

    Raises:
        EnvironmentUnfitError: the engine refuses.
    """
    found: Files = {}
    with _container(engine, image, ["none"]) as container:
        for path in paths:
            found |= _archive(engine, container, path)
    return found


def said(engine: Engine, image: str, command: Sequence[str]) -> tuple[int, bytes] | None:
    """Exit code and stdout of a command in a container of its own, without network; None: there is no such program.

    Raises:
        EnvironmentUnfitError: it could not be started for another reason.
    """
    with _container(engine, image, command) as container:
        try:
            engine.start(container)
        except refusal.CommandNotFoundError:
            return None
        exited = engine.wait(container, timeout=SECONDS)
        if exited is None:
            return TOO_LONG, b""
        with translated("reading a program's answer"):
            return exited.code, bytes(engine.client.api.logs(container, stdout=True, stderr=False))


@contextmanager
def _container(engine: Engine, image: str, command: Sequence[str]) -> Iterator[str]:
    api = engine.client.api
    with translated(f"looking into image {image}"):
        host = api.create_host_config(network_mode="none", cap_drop=["ALL"], security_opt=["no-new-privileges:true"])
        made = api.create_container(
            image,
            list(command[1:]),
            entrypoint=[command[0]],  # the image's own would run first, and print who knows what
            user="0:0",
            working_dir="/",
            labels={LABEL: image},
            host_config=host,
        )
    container = str(made["Id"])
    try:
        yield container
    finally:
        with translated("removing the container"):
            api.remove_container(container, v=True, force=True)  # with the volumes that the image declares


def _archive(engine: Engine, container: str, path: str) -> Files:
    import docker.errors

    with translated(f"reading {path} of an image"):
        try:
            chunks, _stat = engine.client.api.get_archive(container, path)
        except docker.errors.NotFound:
            return {}
        content = b"".join(_limited(chunks))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {name: file for entry in archive if entry.isfile() for name, file in [_read(archive, entry, path)]}


def _limited(chunks: Any) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > FILES_LIMIT:
            raise EnvironmentUnfitError(f"more than {FILES_LIMIT >> 20} MiB where a package database should be")
        yield chunk


def _read(archive: tarfile.TarFile, entry: tarfile.TarInfo, path: str) -> tuple[str, bytes]:
    file = archive.extractfile(entry)
    assert file is not None  # noqa: S101 - it is a regular file
    return f"{path.rpartition('/')[0]}/{entry.name}", file.read()
