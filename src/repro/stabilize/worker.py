"""The process in which files of an experiment's are read: it may die of one of them, and nothing else does."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from pathlib import Path

from repro.stabilize import registry
from repro.stabilize.form import LIMIT, attempt, digest

MEMORY = 8 * LIMIT  # bytes of addresses; a file, what is unpacked from it, and the libraries
CPU = 600  # seconds for one file, if nobody is left to end it earlier
NAME_BYTES = 4096


def main() -> None:
    """Answer on stdin, a socket, until its other end is closed: name and open file in, digests out."""
    _confine()
    with socket.socket(fileno=0) as asked:
        while True:
            message, descriptors, _flags, _address = socket.recv_fds(asked, NAME_BYTES, 1)
            if not message:
                return
            used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            resource.setrlimit(resource.RLIMIT_CPU, (int(used) + CPU, resource.RLIM_INFINITY))
            asked.send(json.dumps(_answer(message.decode("utf-8", "surrogateescape"), descriptors[0])).encode())


def _confine() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # a file may name filters, and none is loaded for it
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return  # not on this system


def _answer(name: str, descriptor: int) -> dict[str, str]:
    """The sha256 of what was read, the stabilizer, and the sha256 of what is left.

    The first alone of a file that no stabilizer can read, nothing where the memory was too little to tell.
    """
    stabilizer = registry.usable(name)
    try:
        with os.fdopen(descriptor, "rb") as file:
            content = file.read((stabilizer.limit if stabilizer else 0) + 1)
        found = attempt(stabilizer, content) if stabilizer else None
    except MemoryError:
        return {}
    answer = {"read": digest(content)}
    if stabilizer is not None and found is not None:
        answer |= {"stabilizer": stabilizer.label, "sha256": digest(found)}
    return answer


if __name__ == "__main__":
    main()
