"""Runs made by hand: a record and a folder with files and a journal, as a run leaves them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from repro import identity
from repro.compare.comparing import Side
from repro.record import (
    Canonical,
    Code,
    DatasetUsed,
    End,
    Ended,
    FileUsed,
    Fingerprint,
    Host,
    ImageUsed,
    OutputFile,
    Planned,
    Record,
    RunFolder,
    Series,
    Started,
)

NOW = datetime(2026, 11, 27, 12, tzinfo=timezone.utc)
Points = Mapping[str, Sequence[float]]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def output(path: str, content: bytes, **more: Any) -> OutputFile:
    return OutputFile(path=path, size=len(content), sha256=sha256(content), **more)


def canonical(content: bytes, stabilizer: str = "zip@1") -> Canonical:
    return Canonical(stabilizer=stabilizer, sha256=sha256(content))


def series(name: str, values: Sequence[float], role: str = "result") -> Series:
    lines = "".join(f"{step} {float(value).hex()}\n" for step, value in enumerate(values))
    return Series(
        name=name,
        count=len(values),
        last=float(values[-1]).hex(),
        sha256=sha256(lines.encode()),
        role=role,  # type: ignore[arg-type]
    )


def moment(at: str, digests: Mapping[str, str] | None = None, values: Mapping[str, float] | None = None) -> Fingerprint:
    return Fingerprint(
        at=at,
        digests={name: sha256(text.encode()) for name, text in (digests or {}).items()},
        values={name: value.hex() for name, value in (values or {}).items()},
    )


def dataset(name: str, files: Mapping[str, bytes]) -> DatasetUsed:
    used = tuple(FileUsed(path=path, size=len(content), sha256=sha256(content)) for path, content in files.items())
    digest = sha256("".join(f"{file.sha256} {file.path}" for file in used).encode())
    return DatasetUsed(name=name, digest=digest, files=used, folder="/cache")


PLANNED = Planned(
    run="20261127-120000-toy-000001",
    name="toy",
    created=NOW,
    repro="0.1.0",
    project="/project",
    argv=("repro", "run"),
    overrides=(),
    command=("python3", "train.py"),
    config={"name": "toy", "seed": 1, "params": {"lr": 0.1}, "resources": {"cpus": None}},
    code=Code(commit="c" * 40, tree="1" * 40, head="c" * 40, branch="main", remote=None, dirty=False),
    image=ImageUsed(
        variant="cpu",
        tag="my-tf:0123456789abcdef",
        id="sha256:" + "a" * 64,
        spec="b" * 64,
        base="debian:12",
        base_resolved="debian@sha256:" + "c" * 64,
        platform="linux/amd64",
        content="d" * 64,
    ),
    data=(dataset("mnist", {"x.gz": b"numbers"}),),
    host=Host(
        name="machine",
        user="me",
        system="linux",
        cpus=2,
        memory=8 << 30,
        engine="docker 27 (overlay2)",
        architecture="x86_64",
        kernel="6.1",
        cpu="a processor",
        cpu_flags=("avx", "avx2"),
    ),
    user="1000:1000",
    env={"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "1", "REPRO_RUN": "20261127-120000-toy-000001", "TZ": "UTC"},
    gpus_asked="none",
    network="none",
    tracking_uri=None,
    tracking_experiment="toy",
    run_key="k" * 64,
)


def made(
    folder: Path,
    files: Mapping[str, bytes] | None = None,
    metrics: Points | None = None,
    *,
    end: End = End.FINISHED,
    trace: Sequence[Fingerprint] = (),
    outputs: Sequence[OutputFile] | None = None,
    measured: Sequence[Series] | None = None,
    **planned: Any,
) -> Side:
    """A run that has ended, in `folder`, with these files and metrics; `planned` differs from PLANNED in these."""
    found = RunFolder(folder)
    found.outputs.mkdir(parents=True)
    found.journal.mkdir()
    for path, content in (files or {}).items():
        target = found.outputs / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    lines = [
        json.dumps({"t": "m", "k": name, "v": value, "ts": 1000 + step, "s": step})
        for name, values in (metrics or {}).items()
        for step, value in enumerate(values)
    ]
    (found.journal / "events-1.jsonl").write_text("".join(f"{line}\n" for line in lines))
    ended = Ended(
        at=NOW,
        end=end,
        exit_code=0 if end is End.FINISHED else 1,
        reason="exit code 0",
        outputs=tuple(outputs or (output(path, content) for path, content in sorted((files or {}).items()))),
        metrics=tuple(measured or (series(name, values) for name, values in (metrics or {}).items())),
        trace=tuple(trace),
    )
    ended = msgspec.structs.replace(ended, result=identity.result(ended))
    plan = msgspec.structs.replace(PLANNED, **{"run": f"20261127-120000-toy-{folder.name}", **planned})
    record = Record(planned=plan, started=Started(at=NOW, container="c", gpus="none"), ended=ended)
    found.write(record)
    return Side(record=record, folder=found)
