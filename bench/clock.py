"""Whole commands, timed in turn; lines that tell what came out."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PYTHON = sys.executable
BIN = Path(PYTHON).parent
ENV = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
GIT = {f"GIT_{who}_{what}": "bench" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def call(command: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(command),
        cwd=cwd,
        env={**ENV, **GIT},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def timed(command: Sequence[str], cwd: Path) -> float:
    begun = time.perf_counter()
    call(command, cwd)
    return time.perf_counter() - begun


def alternate(rounds: int, **commands: Callable[[], float]) -> dict[str, list[float]]:
    """Each command in turn, so that a busy moment of the machine meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(command())
    return times


def row(name: str, times: list[float]) -> str:
    return f"  {name:<44} median {statistics.median(times):7.3f} s   min {min(times):7.3f}   max {max(times):7.3f}"


def ratio(name: str, ours: list[float], theirs: list[float], bound: float) -> str:
    value = statistics.median(ours) / statistics.median(theirs)
    return f"  {name:<44} ratio  {value:7.2f}     bound {bound:g}: {'held' if value <= bound else 'MISSED'}"


def limit(name: str, times: list[float], bound: float) -> str:
    value = statistics.median(times)
    return f"  {name:<44} median {value:7.3f} s   bound {bound:g} s: {'held' if value <= bound else 'MISSED'}"
