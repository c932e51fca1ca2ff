"""A running container -> what it uses, every few seconds: lines that MLflow shows as system metrics, and the peaks."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from repro.engines.answers import Use
from repro.engines.engine import Engine
from repro.engines.refusal import ContainerGoneError
from repro.errors import EnvironmentUnfitError
from repro.record import Peaks, Record, RunFolder
from repro.running import nvidia
from repro.running.nvidia import Gpu

FIRST_SECONDS, USUAL_SECONDS, LAST_SECONDS = 0.5, 5.0, 30.0  # between two looks, as the run grows older
FINISH_SECONDS = 1.0
GPU_MEMORY = re.compile(r"system/gpu_\d+_memory_usage_megabytes$")
CPU, MEMORY = "system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"


def between(elapsed: float) -> float:
    """Seconds to the next look: short runs are seen, and a week of them is no flood."""
    return min(max(FIRST_SECONDS, elapsed), max(USUAL_SECONDS, min(elapsed / 120, LAST_SECONDS)))


class Sampler(threading.Thread):
    """Looks at a container until `finish`, also through a restart of the engine. It fails nothing and says nothing."""

    def __init__(self, engine: Engine, container: str, folder: RunFolder, record: Record) -> None:
        super().__init__(daemon=True, name="resources")
        self.engine, self.container, self.file = engine, container, folder.resources
        on_the_cpu = record.started is None or record.started.gpus == "none"
        asked = record.planned.gpus_asked.removesuffix(" or none")
        # the library asks this machine's driver, whichever machine the engine is on
        self.gpus = asked if not on_the_cpu and engine.host_url.startswith("unix:") else "none"
        self.count, self.peaks = recorded(self.file)
        self.over = threading.Event()
        self.closed = False  # the record has its peaks: a late answer changes nothing any more
        self._last: Use | None = None

    def run(self) -> None:
        """Until the container is gone, or nobody wants it any more."""
        begun = time.monotonic()
        if self._is_uncounted():
            return
        with nvidia.opened(self.gpus) as gpus:
            while True:
                try:
                    self._look(gpus)
                except ContainerGoneError:
                    return
                except EnvironmentUnfitError:  # the engine is away, or does not count: later, perhaps
                    self._last = None
                if self.over.wait(between(time.monotonic() - begun)):
                    return

    def _is_uncounted(self) -> bool:
        """Whether the engine keeps no account of a container alone: rootless ones without cgroup v2 tell of more."""
        try:
            return "memory" in self.engine.facts().unlimited
        except EnvironmentUnfitError:
            return False

    def _look(self, gpus: Iterable[Gpu]) -> None:
        use = self.engine.use(self.container)
        if use is None:
            return
        found = metrics(use, self._last) | disk(self.file)
        for gpu in gpus:
            found |= nvidia.metrics(gpu)
        self._last = use
        if not self.closed:
            self._note({name: round(value, 3) for name, value in found.items()})

    def _note(self, sample: dict[str, float]) -> None:
        line = msgspec.json.encode({"step": self.count, "ts": time.time_ns() // 1_000_000, **sample})
        self.count, self.peaks = self.count + 1, higher(self.peaks, sample)
        try:
            with self.file.open("ab+") as file:
                whole = file.seek(0, os.SEEK_END) == 0 or os.pread(file.fileno(), 1, file.tell() - 1) == b"\n"
                file.write((b"" if whole else b"\n") + line + b"\n")  # a process before us may have died within a line
        except OSError:  # a full disk is told by others; the peaks are still known here
            return

    def finish(self) -> Peaks | None:
        """The container is over: the most that it was seen to use."""
        self.over.set()
        if self.ident is not None:
            self.join(FINISH_SECONDS)  # an engine that does not answer is not waited for
        self.closed = True
        return self.peaks


def recorded(file: Path) -> tuple[int, Peaks | None]:
    """How many lines a run has already, whoever wrote them, and the peaks in them."""
    count, found = 0, None
    try:
        with file.open("rb") as lines:
            for line in lines:
                count += 1
                with contextlib.suppress(msgspec.DecodeError):  # torn when its writer died
                    found = higher(found, msgspec.json.decode(line, type=dict[str, float]))
    except OSError:
        return count, found
    return count, found


def metrics(use: Use, before: Use | None) -> dict[str, float]:
    """What a container uses, under MLflow's names; 100 % of CPU is one core, as `docker stats` has it."""
    found: dict[str, float] = {}
    if before and use.at > before.at:
        found[CPU] = max(0.0, (use.cpu - before.cpu) / (use.at - before.at) * 100)
    found[MEMORY] = use.memory / 1e6
    if use.memory_limit:
        found["system/system_memory_usage_percentage"] = use.memory / use.memory_limit * 100
    if use.received is not None and use.sent is not None:
        found["system/network_receive_megabytes"] = use.received / 1e6
        found["system/network_transmit_megabytes"] = use.sent / 1e6
    return found


def disk(file: Path) -> dict[str, float]:
    """How full the disk is that the run writes to."""
    try:
        disk = os.statvfs(file.parent)
    except OSError:
        return {}
    used = disk.f_blocks - disk.f_bfree
    return {
        "system/disk_usage_megabytes": used * disk.f_frsize / 1e6,
        "system/disk_available_megabytes": disk.f_bavail * disk.f_frsize / 1e6,
        "system/disk_usage_percentage": used / max(1, used + disk.f_bavail) * 100,
    }


def higher(before: Peaks | None, sample: Mapping[str, float]) -> Peaks | None:
    """The peaks with one more sample."""
    if MEMORY not in sample:
        return before
    known = before or Peaks(memory=0)
    gpu = [value for name, value in sample.items() if GPU_MEMORY.match(name)]
    return Peaks(
        memory=max(known.memory, round(sample[MEMORY] * 1e6)),
        cpu=max((value for value in (known.cpu, sample.get(CPU)) if value is not None), default=None),
        gpu_memory=max(known.gpu_memory or 0, round(sum(gpu) * 1e6)) if gpu else known.gpu_memory,
    )
