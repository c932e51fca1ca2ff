"""Names of files that differ from run to run -> names by which two runs' files can be laid side by side."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

# seconds, host, and what the writer adds: process, number within it, version of the format
EVENTS = re.compile(r"events\.out\.tfevents\.(\d+)\.(.*?)(?:\.(\d+))?(?:\.(\d+))?((?:\.v2)?)")


def pairing_name(path: str) -> str:
    """The path without what differs from run to run: of TensorBoard's files the time, the host and the process."""
    folder, name = posixpath.split(path)
    match = EVENTS.fullmatch(name)
    return posixpath.join(folder, f"events.out.tfevents{match[5]}") if match else path


def pairing_names(paths: Iterable[str]) -> dict[str, str]:
    """For each path of a run the name to look for among those of another run; no two have the same.

    Several files of TensorBoard's in one folder are numbered in the order of their making. Pairing decides nothing: two
    files that are paired wrongly differ.
    """
    found = {path: path for path in paths}
    moving = [path for path in found if pairing_name(path) != path]
    taken = found.keys() - moving
    for path in sorted(moving, key=_made):
        name, number = pairing_name(path), 1
        while found[path] in taken or number == 1:
            found[path] = name if number == 1 else f"{name}.{number}"
            number += 1
        taken.add(found[path])
    return found


def _made(path: str) -> tuple[int, int, int, str]:
    match = EVENTS.fullmatch(posixpath.basename(path))
    return (int(match[1]), int(match[4] or 0), int(match[3] or 0), path) if match else (0, 0, 0, path)
