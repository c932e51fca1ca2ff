"""NVIDIA's management library -> what the GPUs of a run are doing: the only door to it. Without a driver, nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from repro import record
from repro.experiment import Value


class Gpu(Value, frozen=True, kw_only=True):
    """One GPU: its number on this machine, and the library's own handle."""

    index: int
    handle: Any


@contextlib.contextmanager
def opened(asked: str) -> Iterator[tuple[Gpu, ...]]:
    """The GPUs that a plan asks for, in the words of `plan.gpus_text`; none where the driver or a GPU is missing."""
    if asked == "none":
        yield ()
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield ()
        return
    try:
        yield tuple(_chosen(asked))
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _chosen(asked: str) -> Iterator[Gpu]:
    import pynvml

    for name in _names(asked, _count()):
        with contextlib.suppress(pynvml.NVMLError):
            if name.isdecimal():
                yield Gpu(index=int(name), handle=pynvml.nvmlDeviceGetHandleByIndex(int(name)))
            else:
                handle = pynvml.nvmlDeviceGetHandleByUUID(name)
                yield Gpu(index=pynvml.nvmlDeviceGetIndex(handle), handle=handle)


def _count() -> int:
    import pynvml

    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0


def _names(asked: str, count: int) -> list[str]:
    """Numbers and UUIDs: engines give the first ones where a number is asked for."""
    if asked == "all":
        return [str(index) for index in range(count)]
    if asked.isdecimal():
        return [str(index) for index in range(int(asked))]
    return [each.removeprefix("id ").rpartition("=")[2] for each in asked.split(",")]  # CDI: nvidia.com/gpu=0


def metrics(gpu: Gpu) -> dict[str, float]:
    """What the GPU is doing, under MLflow's names for it; what it does not tell is left out."""
    import pynvml

    found: dict[str, float] = {}
    name = f"system/gpu_{gpu.index}"
    with contextlib.suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu.handle)
        found[f"{name}_memory_usage_megabytes"] = memory.used / 1e6
        found[f"{name}_memory_usage_percentage"] = memory.used / memory.total * 100
    with contextlib.suppress(pynvml.NVMLError):
        found[f"{name}_utilization_percentage"] = pynvml.nvmlDeviceGetUtilizationRates(gpu.handle).gpu
    with contextlib.suppress(pynvml.NVMLError):
        milliwatts = pynvml.nvmlDeviceGetPowerUsage(gpu.handle)
        found[f"{name}_power_usage_watts"] = milliwatts / 1000
        found[f"{name}_power_usage_percentage"] = milliwatts / pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu.handle) * 100
    return found


def facts() -> tuple[record.Gpu, ...]:
    """What is to know of each GPU of this machine, in their order, but for those that do not tell."""
    import pynvml

    found: list[record.Gpu] = []
    with opened("all") as gpus:
        for gpu in gpus:
            with contextlib.suppress(pynvml.NVMLError):
                major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(gpu.handle)
                found.append(
                    record.Gpu(
                        name=_text(pynvml.nvmlDeviceGetName(gpu.handle)),
                        uuid=_text(pynvml.nvmlDeviceGetUUID(gpu.handle)),
                        architecture=f"{major}.{minor}",
                        memory=pynvml.nvmlDeviceGetMemoryInfo(gpu.handle).total,
                        driver=_text(pynvml.nvmlSystemGetDriverVersion()),
                    )
                )
    return tuple(found)


def _text(answer: str | bytes) -> str:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer
