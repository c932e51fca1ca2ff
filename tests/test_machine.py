"""What a record tells of the machine: from the words of its kernel and its GPUs' driver, and only where it is ours."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from repro.record import Gpu
from repro.running import machine
from tests.test_plan import ENGINE

HERE = msgspec.structs.replace(ENGINE, name=platform.node(), kernel=platform.release())
SOCKET = "unix:///var/run/docker.sock"

X86 = """processor\t: 0
cpu family\t: 6
model name\t: Some(R) CPU @ 2.60GHz
flags\t\t: fpu sse2 avx2 avx512f

processor\t: 1
cpu family\t: 6
model name\t: Some(R) CPU @ 2.60GHz
flags\t\t: avx2 fpu sse2
"""
ARM = """processor\t: 0
Features\t: fp asimd sve
CPU implementer\t: 0x41
CPU variant\t: 0x1
CPU part\t: 0xd40

processor\t: 1
Features\t: fp asimd
CPU implementer\t: 0x41
CPU variant\t: 0x0
CPU part\t: 0xd05

Hardware\t: a board
"""
RISCV = "processor\t: 0\nisa\t: rv64imafdc\nuarch\t: sifive,u74-mc\n"


@pytest.mark.parametrize(
    ("text", "model", "flags"),
    [
        (X86, "Some(R) CPU @ 2.60GHz", ("avx2", "fpu", "sse2")),
        (ARM, "ARM implementer 0x41 part 0xd40 variant 0x1 + ARM implementer 0x41 part 0xd05 variant 0x0",
         ("asimd", "fp")),
        (RISCV, "sifive,u74-mc", ("rv64imafdc",)),
        ("", "", ()),
    ],
    ids=["x86", "arm, two kinds of cores", "risc-v", "nothing"],
)  # fmt: skip
def test_the_processor_is_named_and_can_do_what_all_its_cores_can(text: str, model: str, flags: tuple[str]) -> None:
    assert machine.cpu(text) == (model, flags)


def test_an_engine_behind_a_socket_with_our_name_and_kernel_is_here() -> None:
    found = machine.of(HERE, SOCKET, gpus=False)
    assert (found.architecture, found.kernel) == (platform.machine(), platform.release())
    assert (found.cpu, found.cpu_flags) == machine.cpu(machine.CPUINFO.read_text())
    assert found.cpu_flags


@pytest.mark.parametrize(
    ("changes", "address"),
    [({}, "tcp://10.0.0.1:2375"), ({"name": "other"}, SOCKET), ({"kernel": "6.12-linuxkit"}, SOCKET)],
    ids=["over the network", "forwarded", "in a virtual machine"],
)
def test_of_another_machine_nothing_is_claimed_but_the_engines_own_word(changes: dict[str, str], address: str) -> None:
    engine = msgspec.structs.replace(HERE, **changes)
    assert machine.of(engine, address, gpus=True) == machine.Machine(kernel=engine.kernel)


def test_gpus_tell_what_they_are_and_one_that_does_not_is_left_out(nvml: Path) -> None:
    code = "import msgspec\nfrom repro.running import nvidia\nprint(msgspec.json.encode(nvidia.facts()).decode())"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(nvml)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert msgspec.json.decode(done.stdout, type=tuple[Gpu, ...]) == (
        Gpu(name="NVIDIA Fake", uuid="GPU-aaaa", architecture="9.0", memory=80_000_000_000, driver="570.1"),
    )
