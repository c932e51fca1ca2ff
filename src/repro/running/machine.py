"""The machine under the engine, as far as it is this very one: its processor and its GPUs. Never a guess."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

from repro.engines.answers import EngineFacts
from repro.experiment import Value
from repro.record import Gpu
from repro.running import nvidia

CPUINFO = Path("/proc/cpuinfo")
FLAGS = ("flags", "Features", "isa", "features")  # x86, ARM, RISC-V, IBM Z
MODELS = ("model name", "cpu", "uarch")  # x86, POWER, RISC-V
ARM = ("CPU implementer", "CPU part", "CPU variant")  # in the place of a name


class Machine(Value, frozen=True, kw_only=True):
    """Facts about the hardware that a run has; all are empty where the engine may be on another machine."""

    architecture: str = ""
    kernel: str = ""
    cpu: str = ""
    cpu_flags: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()


def of(engine: EngineFacts, address: str, *, gpus: bool) -> Machine:
    """What is known of the machine that the engine at an address runs on; `gpus`: whether a run wants them.

    The processor is known where the engine is: behind a socket of this machine, with this machine's name and kernel.
    Where it is in a virtual machine, or behind a forwarded socket, its own word for the kernel is all there is.
    """
    found = Machine(architecture=platform.machine() if is_here(engine, address) else "", kernel=engine.kernel)
    if not found.architecture:
        return found
    model, flags = cpu(_cpuinfo())
    return Machine(
        architecture=found.architecture,
        kernel=found.kernel,
        cpu=model,
        cpu_flags=flags,
        gpus=nvidia.facts() if gpus else (),
    )


def is_here(engine: EngineFacts, address: str) -> bool:
    """Whether an engine runs on this very machine."""
    here = platform.uname()
    return address.startswith("unix://") and (engine.name, engine.kernel) == (here.node, here.release)


def _cpuinfo() -> str:
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cpu(text: str) -> tuple[str, tuple[str, ...]]:
    """The model of the processor, and what all its cores can do, sorted, by the text of /proc/cpuinfo.

    Cores of several kinds are named one after the other.
    """
    models: list[str] = []
    able: set[str] | None = None
    for block in _blocks(text):
        model = next((block[key] for key in MODELS if block.get(key)), "") or _arm(block)
        if model and model not in models:
            models.append(model)
        if listed := next((block[key] for key in FLAGS if key in block), ""):
            flags = set(listed.split())
            able = flags if able is None else able & flags
    return " + ".join(models), tuple(sorted(able or ()))


def _blocks(text: str) -> Iterator[dict[str, str]]:
    """One for each core; some kernels put what is common to all into a block of its own."""
    for block in text.split("\n\n"):
        pairs = (line.partition(":")[::2] for line in block.splitlines())
        yield {key.strip(): value.strip() for key, value in pairs}


def _arm(block: dict[str, str]) -> str:
    named = [f"{key.removeprefix('CPU ')} {block[key]}" for key in ARM if key in block]
    return f"ARM {' '.join(named)}" if named else ""
