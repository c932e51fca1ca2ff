"""Record: all that is known of a run, on disk, as JSON. The run folder is the truth; MLflow is a view of it."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from datetime import datetime
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import msgspec

from repro import tolerant
from repro.errors import BadInputError
from repro.experiment import Value

SCHEMA = 1
PACKAGES, SBOM = "packages.json", "sbom.cdx.json"  # among the inputs: what is in the image
RESERVE = 128 << 10  # bytes
SECOND = len("20261123-191500")  # of a run id


class End(str, Enum):
    """How a run ended."""

    FINISHED = "finished"
    FAILED = "failed"
    KILLED = "killed"
    TIMEOUT = "timeout"
    OOM = "oom"
    LOST = "lost"


class Code(Value, frozen=True, kw_only=True):
    """The code that ran: a snapshot commit."""

    commit: str  # of the snapshot; equal to `head` when nothing was uncommitted
    tree: str
    head: str
    branch: str | None  # None: detached HEAD
    remote: str | None  # URL of `origin` without credentials
    dirty: bool


class ImageUsed(Value, frozen=True, kw_only=True):
    """The image that ran, by each of its names; those that do not exist are None.

    `digest` is a repo digest and exists only for pushed or pulled images, `manifest` only where the engine keeps
    manifests. `content` is the same in every store: one sha256 over `layers`, the diff ids.
    """

    variant: str
    tag: str
    id: str
    spec: str  # full sha256 of the ImageSpec
    base: str  # as asked for
    base_resolved: str  # repo digest or image id that the build started from
    platform: str
    digest: str | None = None
    floating: tuple[str, ...] = ()  # what of its recipe was open when it ran: base, 3 packages, ...
    manifest: str | None = None  # digest of the platform's manifest
    config: str | None = None  # digest of the configuration
    layers: tuple[str, ...] = ()
    content: str = ""  # "" in records of earlier versions
    settings: str = ""  # sha256 over what of its configuration reaches a run: environment and entry point
    drift: str | None = None  # the same spec had other content before: which, and what differs


class FileUsed(Value, frozen=True, kw_only=True):
    """A file of a dataset or of the outputs. `path` is relative, with forward slashes."""

    path: str
    size: int  # bytes
    sha256: str


class Canonical(Value, frozen=True, kw_only=True):
    """What is left of a file when everything is taken out that does not belong to its meaning."""

    stabilizer: str  # name@version of the function that took it out
    sha256: str


class OutputFile(FileUsed, frozen=True, kw_only=True):
    """A file that a run has made."""

    role: Literal["result", "by-product"] = "result"  # a by-product may differ from run to run
    canonical: Canonical | None = None  # None: no stabilizer knows this kind of file, or cannot read this one
    unsettled: bool = False  # a stabilizer is meant for it, and had too little time or memory to say


class Series(Value, frozen=True, kw_only=True):
    """All points of one metric. Floats are written as Python's `float.hex` does: exactly."""

    name: str
    count: int
    last: str  # the value of the point with the highest step, the last one logged of these
    sha256: str  # over the lines `STEP HEX\\n`, sorted by step, those of one step in the order of logging
    role: Literal["result", "by-product"] = "result"


class Fingerprint(Value, frozen=True, kw_only=True):
    """What an experiment was like at one moment, in a few words, so that two runs can be compared moment by moment."""

    at: str  # init, batch 1, epoch 3, or what the experiment calls it; unique within a run
    digests: dict[str, str]  # sha256 of weights, of a batch, ...
    values: dict[str, str]  # losses and metrics, as `float.hex` writes them


class DatasetUsed(Value, frozen=True, kw_only=True):
    """A dataset as it was mounted. `digest` is the sha256 over its sorted (sha256, path) lines."""

    name: str
    digest: str
    files: tuple[FileUsed, ...]
    folder: str  # on the host that ran it


class Gpu(Value, frozen=True, kw_only=True):
    """A GPU of the machine that the engine runs on."""

    name: str
    uuid: str
    architecture: str  # compute capability, as 9.0
    memory: int  # bytes
    driver: str  # version


class Host(Value, frozen=True, kw_only=True):
    """The machine that the engine runs on. What cannot be known from here (it may be another machine) is empty."""

    name: str
    user: str
    system: str
    cpus: int
    memory: int  # bytes
    engine: str  # name, version, store
    architecture: str = ""  # x86_64, aarch64
    kernel: str = ""
    cpu: str = ""  # model
    cpu_flags: tuple[str, ...] = ()  # instruction sets and other abilities, sorted, as Linux names them
    gpus: tuple[Gpu, ...] = ()


class Planned(Value, frozen=True, kw_only=True):
    """Everything decided, nothing done. `config` is the frozen configuration that the container reads."""

    schema: int = SCHEMA
    run: str
    name: str
    created: datetime
    repro: str  # version of this library
    project: str  # root folder
    argv: tuple[str, ...]  # what the user typed
    overrides: tuple[str, ...]
    command: tuple[str, ...]
    config: dict[str, Any]
    code: Code
    image: ImageUsed
    data: tuple[DatasetUsed, ...]
    host: Host
    user: str  # uid:gid in the container
    env: dict[str, str]
    gpus_asked: str
    network: str
    tracking_uri: str | None  # None: tracking is off
    tracking_experiment: str
    notices: tuple[str, ...] = ()  # what the user was told (floating base, ...)
    code_prefix: str = ""  # of the project inside its repository; "" at its top
    helper: str = ""  # sha256 over what `repro` mounts into the container for it to use
    run_key: str = ""  # sha256 over all that goes in; "" in records of earlier versions
    reproduces: str | None = None  # the run that this one executes again
    repeats: str | None = None  # the first of the runs that `--repeat` made


class Started(Value, frozen=True, kw_only=True):
    """A container exists for the plan."""

    at: datetime
    container: str  # id
    gpus: str  # what the container was given: none, all, a number, or ids separated by commas
    notices: tuple[str, ...] = ()  # what the user was told at the start: no GPU to be had, ...
    engine: str = ""  # id of the engine that has it; "" where engines have none
    endpoint: str = ""  # its address
    boot: str = ""  # changes when this machine is restarted


class Peaks(Value, frozen=True, kw_only=True):
    """The most that a run was seen to use at once; what is used up between two looks is not seen."""

    memory: int  # bytes
    cpu: float | None = None  # percent of one core; None: it was over too soon to tell
    gpu_memory: int | None = None  # bytes, of its GPUs together, whoever used them; None: no GPU that could be asked


class Ended(Value, frozen=True, kw_only=True):
    """The run is over. `exit_code` is the container's; None when nobody can know it any more."""

    at: datetime
    end: End
    exit_code: int | None
    reason: str  # one sentence for a person
    outputs: tuple[OutputFile, ...]
    metrics: tuple[Series, ...] = ()
    trace: tuple[Fingerprint, ...] = ()  # in the order of their happening
    result: str = ""  # sha256 over what came out and is no by-product; "" in records of earlier versions
    ignored: int = 0  # files of the outputs that `outputs.ignore` kept out of the list
    peaks: Peaks | None = None  # None: nobody could look, or the record is of an earlier version


class Record(Value, frozen=True, kw_only=True):
    """A run, as far as it has come."""

    planned: Planned
    started: Started | None = None
    ended: Ended | None = None

    @property
    def state(self) -> str:
        """`planned`, `running`, or how it ended."""
        if self.ended:
            return self.ended.end.value
        return "running" if self.started else "planned"


class RunFolder:
    """The single place that knows where the files of a run lie."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "record.json"
        self.config_yaml = path / "config.yaml"  # for people
        self.config_json = path / "config.json"  # what the container reads
        self.outputs = path / "outputs"
        self.inputs = path / "inputs"  # what the image was made from and what is in it, as text
        self.packages = self.inputs / PACKAGES
        self.logs = path / "logs"
        self.output_log = self.logs / "output.log"  # the container's stdout and stderr
        self.output_times = self.logs / "output.times"  # when it had how many bytes
        self.journal = path / "journal"
        self.resources = path / "resources.jsonl"  # what the run used, in the journal's format; written by us alone
        self.diff = path / "uncommitted.diff.txt"
        self.verification = path / "verification.json"  # of a run that reproduces another: how it went
        self.verifications = path / "verifications"  # of this run, by others: the same files, by the other's id
        self.archive = path / "archive"  # of an imported run: the only copies of what its bundle held
        self.elsewhere = path / ".elsewhere"  # somebody else made the run, and gave it to us: a mark without content
        self.tracking = path / "tracking.json"  # where MLflow has got to; written by `tracking` alone
        self.ignore = path / ".gitignore"  # of a folder that the user chose, perhaps inside their repository
        self.reserve = path / ".reserve"  # room for the last record on a disk that the run has filled
        self.lease = path / ".lease"  # held by the process that keeps the run; there until it is over
        self.stop = path / "stop.json"  # who asked the run to stop
        self.shell = path / ".shell"  # held by the process behind an interactive container, which is no run
        self.files = (
            self.record,
            self.reserve,
            self.config_json,
            self.config_yaml,
            self.diff,
            self.ignore,
            self.resources,
            self.stop,
            self.shell,
            self.lease,
        )

    def write(self, record: Record) -> None:
        """Replace record.json in one step: a reader sees the old or the new one, whole."""
        content = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
        try:
            write_atomic(self.record, content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.reserve.exists():
                raise
            self.reserve.unlink()
            write_atomic(self.record, content)
        if record.ended:
            self.reserve.unlink(missing_ok=True)
        elif not self.reserve.exists():
            with contextlib.suppress(OSError):  # full already: the record is there, which is what counts
                self.reserve.write_bytes(bytes(RESERVE))

    def tidy(self, *files: Path) -> None:
        """Remove what writers of these files that were killed have left half-written. Only for who writes them now."""
        for path in files:
            for half in self.path.glob(f".{path.name}.*"):
                half.unlink(missing_ok=True)

    def read(self) -> Record:
        """The record of this folder.

        Raises:
            BadInputError: no record there, or one that another version wrote.
        """
        try:
            content = self.record.read_bytes()
            try:
                return msgspec.json.decode(content, type=Record)
            except msgspec.ValidationError:  # another version may have members that we do not know
                return tolerant.read(msgspec.json.decode(content), Record)[0]
        except FileNotFoundError:
            raise BadInputError(f"{self.path} holds no run (no record.json)") from None
        except msgspec.DecodeError as error:
            raise BadInputError(f"{self.record} cannot be read", evidence=[str(error)]) from error


def write_atomic(path: Path, content: bytes) -> None:
    """Write beside, flush to disk, rename over: never a half-written file under `path`."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def shown(name: str) -> str:
    """A name that can be printed and put in JSON whatever its bytes are: one that is not UTF-8 becomes `\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def folders(runs: Path) -> list[RunFolder]:
    """Every run under `runs`, once, oldest first: ids sort by second, records tell runs of one second apart."""
    if not runs.is_dir():
        return []
    found = sorted(path for path in runs.iterdir() if (path / "record.json").is_file())
    linked = {path.resolve() for path in found if path.is_symlink()}  # by its id, to a name that the user chose
    if linked:
        found = [path for path in found if path.is_symlink() or path.resolve() not in linked]
    ordered: list[RunFolder] = []
    for _second, paths in groupby(found, key=lambda path: path.name[:SECOND]):
        together = [RunFolder(path) for path in paths]
        ordered += sorted(together, key=_created) if len(together) > 1 else together
    return ordered


def _created(folder: RunFolder) -> float:
    try:
        return folder.read().planned.created.timestamp()
    except BadInputError:  # of another version: its place within the second is unknown
        return 0.0
