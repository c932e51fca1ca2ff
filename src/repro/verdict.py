"""Verdict: what a comparison of two runs came to. Values only; `docs/reproducibility.md` says what each level means."""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum
from typing import Literal

from repro.experiment import Value
from repro.record import Host

SCHEMA = 1


class Level(IntEnum):
    """How much two results have in common; a higher level includes the lower ones."""

    MISSING = 0  # one side has it, the other has not
    DIFFERENT = 1
    STATISTICAL = 2  # inside the prediction interval of the original's repeats
    TOLERANCE = 3  # numbers inside a declared tolerance
    STABILIZED = 4  # the same bytes after named stabilizers
    BYTES = 5  # the same bytes

    def __str__(self) -> str:
        return f"E{self.value}"


class Compared(Value, frozen=True, kw_only=True):
    """One result on both sides: a file, a metric, or the exit code."""

    kind: Literal["file", "metric", "exit"]
    name: str  # path of the file, name of the metric
    level: Level
    role: Literal["result", "by-product"] = "result"
    before: str = ""  # in short: sha256, value; "" where it is missing
    after: str = ""
    stabilizer: str | None = None  # that level 4 rests on
    remark: str = ""  # the interval, the tolerance, the largest difference, ...


class Verdict(Value, frozen=True, kw_only=True):
    """The comparison of two runs. `level` is the lowest of all that is a result."""

    before: str  # run
    after: str
    level: Level
    compared: tuple[Compared, ...]
    explanation: str = ""  # where they differ: the likely cause, in one sentence
    divergence: str = ""  # the first moment of the trace at which they differ


class Ingredient(Value, frozen=True, kw_only=True):
    """Something that a run needs to run again."""

    kind: Literal["code", "config", "image", "data", "host", "secret"]
    name: str  # of the dataset, of the secret; "" where there is one
    recorded: str  # its identity
    found: tuple[str, ...]  # where it is, the best first; () when it is lost
    use: str  # what will be used, "" when it is lost
    remark: str = ""


class Ceiling(Value, frozen=True, kw_only=True):
    """The most that can be expected of a run here."""

    level: Level
    reason: str  # "" at the highest


class Verification(Value, frozen=True, kw_only=True):
    """An attempt to get a run back, whatever became of it. It is on disk, and can be signed."""

    schema: int = SCHEMA
    run: str  # the original
    record: str  # sha256 of its record in canonical form
    run_key: str
    result: str  # what it came to
    rerun: str | None  # the run that was made for it; None: none could be
    rerun_record: str | None
    rerun_result: str | None
    at: datetime
    by: str  # user
    repro: str  # version
    host: Host
    witness: Literal["same host", "other host"]
    expected: Level
    ceiling: Ceiling
    ingredients: tuple[Ingredient, ...]
    rebuilt: bool  # the image was built anew, and is not the recorded one by its id
    verdict: Verdict | None
    reached: bool
