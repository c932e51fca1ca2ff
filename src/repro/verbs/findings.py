"""What one look at this machine found: a value for people and for programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from enum import Enum
from pathlib import Path

import msgspec

from repro.experiment import Value

PROGRAM_SECONDS = 10.0
GIB = 1 << 30

Facts = dict[str, str | int | bool]  # flat, as JSON has it


class Level(str, Enum):
    """How much a finding matters."""

    OK = "ok"
    WARN = "warn"  # works, with less than could be had
    BAD = "bad"  # runs will fail until it is mended


class Finding(Value, frozen=True, kw_only=True):
    """One thing that was looked at. `facts` is what a program would want to know of it."""

    what: str
    level: Level
    detail: str
    hint: str = ""
    facts: Facts = msgspec.field(default_factory=dict)


def disk(name: str, folder: Path, *, warn: int, bad: int, hint: str) -> Finding:
    """Free space where `folder` is, or will be; whether it can be written is asked of its nearest parent."""
    place = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK) or name == "engine"  # the engine's folder is the engine's to write
    level = Level.BAD if free < bad or not writable else Level.WARN if free < warn else Level.OK
    return Finding(
        what=f"disk {name}",
        level=level,
        detail=f"{free / GIB:.1f} GiB free in {folder}" if writable else f"{folder} cannot be written",
        hint="" if level is Level.OK else hint,
        facts={"free": free, "writable": writable},
    )


def program(*argv: str) -> str:
    """What a program prints; "" when it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=PROGRAM_SECONDS, stdin=subprocess.DEVNULL, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
