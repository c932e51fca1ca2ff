"""A record that somebody else wrote -> what in it no run of ours would have; pure. Its names become paths and words."""

from __future__ import annotations

import re
from collections.abc import Iterator

from repro.record import Planned, Record

RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")
OBJECT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # of git
SHA256 = re.compile(r"[0-9a-f]{64}")
DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@/-]*")


def strange(record: Record) -> tuple[str, ...]:
    """What is wrong with a record that is not from here; () when all of it is what its name says."""
    return (*_names(record.planned), *_files(record))


def _names(planned: Planned) -> Iterator[str]:
    if not RUN.fullmatch(planned.run):
        yield f"{planned.run!r} is no id of a run"
    code = planned.code
    if not all(OBJECT.fullmatch(each) for each in (code.commit, code.tree)):
        yield "its record names no commit"
    if planned.code_prefix and not _inside(planned.code_prefix.rstrip("/")):
        yield f"the project's folder {planned.code_prefix!r} is not inside its repository"
    for name in (planned.image.id, planned.image.tag):
        if name and (not IMAGE.fullmatch(name) or ".." in name):
            yield f"{name!r} is no name of an image"


def _files(record: Record) -> Iterator[str]:
    for dataset in record.planned.data:
        if not DATASET.fullmatch(dataset.name):
            yield f"{dataset.name!r} is no name of a dataset"
        for file in dataset.files:
            if not _inside(file.path) or not SHA256.fullmatch(file.sha256):
                yield f"data {dataset.name}: {file.path!r} with sha256 {file.sha256!r} is no file of a dataset"
    if record.ended is None:
        yield "it is of a run that is not over"
    for output in record.ended.outputs if record.ended else ():
        if not _inside(output.path):
            yield f"{output.path!r} leads out of the outputs"


def _inside(path: str) -> bool:
    return "\0" not in path and {"", ".", ".."}.isdisjoint(path.split("/"))
