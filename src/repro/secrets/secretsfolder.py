"""The secrets of a run, on the host: files in memory, for the container to read, and for whoever masks its output.

Other processes find them by the run's id. They are gone when the run is over, and when the machine is restarted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import RunSecret
from repro.secrets import secretsources
from repro.secrets.masking import SHORTEST

INSIDE = "/run/secrets"  # the folder, as the container sees it
MEMORY = ("tmpfs", "ramfs")
VARIABLE_BYTES = 128 << 10  # Linux takes no longer one
STALE_SECONDS = 600.0  # after which a run without a container has no more use for its secrets


def bases() -> list[Path]:
    """Where secrets may be kept, the best first."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    named = [Path(given)] if given and Path(given).is_absolute() else []
    return list(dict.fromkeys([*named, Path(f"/run/user/{os.getuid()}"), Path("/dev/shm")]))  # noqa: S108 - checked


def place(run: str, among: Iterable[Path] | None = None) -> Path:
    """Where the secrets of a new run go: in memory, never on a disk.

    Raises:
        EnvironmentUnfitError: this machine has no such place.
    """
    refused = []
    for base in bases() if among is None else among:
        if why := _unfit(base):
            refused.append(f"{base}: {why}")
        else:
            return _of_user(base) / run
    raise EnvironmentUnfitError(
        "there is no place in memory for the run's secrets, and they are not written to a disk",
        evidence=refused,
        hints=["`export XDG_RUNTIME_DIR=FOLDER` names one: a tmpfs of your own (`mount -t tmpfs -o mode=700 ...`)"],
    )


def provide(secrets: Mapping[str, RunSecret], folder: Path, root: Path) -> tuple[str, ...]:
    """Read the values and write them into the folder; remarks for the user.

    Raises:
        BadInputError: a value cannot be had, or cannot be an environment variable.
        EnvironmentUnfitError: the folder cannot be written. In both cases nothing is left there.
    """
    try:
        _own(folder.parent)
        folder.mkdir(mode=0o700)
        remarks = []
        for name, source in secrets.items():
            value = secretsources.value(f"secrets.{name}", source, root)
            if source.to == "env":
                _check_variable(name, value)
            if len(value.strip()) < SHORTEST:
                remarks.append(f"secrets.{name} is shorter than {SHORTEST} bytes: it is not masked in the output")
            with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as file:
                file.write(value)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise EnvironmentUnfitError(
            f"the run's secrets cannot be written to {folder.parent}, which is in memory",
            evidence=[str(error)],
            hints=["free some of it, or name another tmpfs of yours: `export XDG_RUNTIME_DIR=FOLDER`"],
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return tuple(remarks)


def values(run: str) -> tuple[bytes, ...]:
    """The secrets of a run that is not over, for a Masker; () when it has none."""
    return tuple(file.read_bytes() for folder in _found(run) for file in sorted(folder.iterdir()))


def remove(run: str) -> None:
    """The run is over, or did not take place: its secrets go. No error when it has none."""
    for folder in _found(run):
        shutil.rmtree(folder, ignore_errors=True)


def stale(alive: Collection[str], older_than: float = STALE_SECONDS) -> list[str]:
    """The runs of this user with secrets here that are not `alive` (ids of runs whose container exists).

    A run has its secrets a moment before its container: those of the last `older_than` seconds do not count.
    """
    own = [folder for folder in map(_of_user, bases()) if not _unsafe(folder)]
    runs = {path.name for folder in own for path in folder.iterdir() if _age(path) > older_than}
    return sorted(runs - set(alive))


def _age(path: Path) -> float:
    """Seconds; of what is removed in this moment: none."""
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0


def _found(run: str) -> list[Path]:
    """Whatever the environment of the process that made it was."""
    own = [_of_user(base) for base in bases()]
    return [folder / run for folder in own if not _unsafe(folder) and (folder / run).is_dir()]


def _of_user(base: Path) -> Path:
    return base / f"repro-secrets-{os.getuid()}"


def _own(folder: Path) -> None:
    """Make the user's folder; anybody may write beside it in /dev/shm.

    Raises:
        OSError: it is there, and another's or open to others.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if why := _unsafe(folder):
        raise PermissionError(f"{folder} {why}")


def _unsafe(folder: Path) -> str:
    """What keeps a folder from being the user's alone; "" when nothing does."""
    try:
        facts = folder.lstat()
    except OSError as error:
        return str(error)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        return "is another user's, or no folder"
    return "can be read by others: `chmod 700` it" if facts.st_mode & 0o077 else ""


def _unfit(base: Path) -> str:
    if not base.is_dir():
        return "not there"
    if _kind(base) not in MEMORY:
        return "on a disk, not a tmpfs"
    return "" if os.access(base, os.W_OK | os.X_OK) else "not yours to write"


def _kind(base: Path) -> str:
    """The kind of file system that a folder is on; "" where the system does not tell."""
    device = base.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(" - ")[2].split()[0] for line in lines if line.split()[2] == number), "")


def _check_variable(name: str, value: bytes) -> None:
    problem = ""
    if b"\0" in value:
        problem = "it has a NUL byte in it"
    elif len(value) + len(name) + 2 > VARIABLE_BYTES:
        problem = f"it has {len(value):,} bytes, and Linux takes {VARIABLE_BYTES:,}"
    if problem:
        raise BadInputError(
            f"secrets.{name} cannot be an environment variable: {problem}",
            hints=[f"leave `to: env` out: the container finds it as {INSIDE}/{name}"],
        )
