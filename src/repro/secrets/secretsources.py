"""Where a secret comes from -> its value: a variable of the environment, a file, or a program's answer."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from repro.errors import BadInputError
from repro.experiment import RunSecret, SecretSource
from repro.secrets.masking import Masker

SAID = 2000  # characters of what a program says when it fails


def check(key: str, source: SecretSource, root: Path) -> None:
    """Whether the value can be had, as far as that can be told without asking a program for it.

    Args:
        key: of the configuration, as `secrets.TOKEN`.
        source: exactly one of its fields is the source.
        root: the project's folder, which relative paths start from.

    Raises:
        BadInputError: the value is not there, or the source is not one source.
    """
    command = source.command if isinstance(source, RunSecret) else None
    given = {"env": source.env, "file": source.file, "command": command}
    if sum(value is not None for value in given.values()) != 1:
        ways = {"env": "VARIABLE", "file": "PATH"}
        if isinstance(source, RunSecret):
            ways["command"] = "'PROGRAM ARGUMENTS'"
        raise BadInputError(
            f"{key}: give {' or '.join(ways)}, and no two of them",
            evidence=[", ".join(f"{way}: {given[way]}" for way in ways)],
            hints=[", or ".join(f"{key}.{way}={example}" for way, example in ways.items())],
        )
    if source.env is not None:
        _check_variable(key, source.env, empty=not isinstance(source, RunSecret))
    elif source.file is not None:
        _check_file(key, place(source.file, root))
    elif command is not None:
        _argv(key, command, root)


def place(file: str, root: Path) -> Path:
    """Where a file of the configuration lies."""
    return root / Path(file).expanduser()


def value(key: str, source: RunSecret, root: Path) -> bytes:
    """The value, read now: a variable's and a file's as it is, a program's answer without the newline at its end.

    Raises:
        BadInputError: it cannot be had, or there is nothing in it. No value is in the error.
    """
    check(key, source, root)
    if source.env is not None:
        return os.fsencode(os.environ[source.env])
    if source.command is not None:
        return _answer(key, source.command, root)
    path = place(str(source.file), root)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"{key}: {path} cannot be read", evidence=[str(error)]) from error
    if not content.strip():
        raise BadInputError(f"{key}: {path} is empty", hints=["write the value into it, or leave the secret out"])
    return content


def _check_variable(key: str, name: str, *, empty: bool) -> None:
    """`empty`: a build may do without."""
    if name not in os.environ or not (os.environ[name] or empty):
        state = "set, and empty" if name in os.environ else "not set"
        raise BadInputError(
            f"{key}: the environment variable {name} is {state}",
            hints=[f"`export {name}=...`, then repeat the command"],
        )


def _check_file(key: str, path: Path) -> None:
    if not os.access(path, os.R_OK) or path.is_dir():
        raise BadInputError(
            f"{key}: {path} cannot be read",
            evidence=["it is a folder" if path.is_dir() else "not yours to read" if path.exists() else "no such file"],
            hints=["paths are taken from the project's folder; `~` is yours"],
        )


def _argv(key: str, command: str, root: Path) -> list[str]:
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise BadInputError(
            f"{key}.command cannot be split into words", evidence=[f"{command}: {error}"], hints=["close its quotes"]
        ) from error
    if not argv:
        raise BadInputError(f"{key}.command is empty", hints=["name a program: `pass show mine/token`"])
    if shutil.which(root / argv[0] if "/" in argv[0] else argv[0]) is None:
        raise BadInputError(
            f"{key}.command: there is no program {argv[0]}",
            evidence=[command],
            hints=["it is started as it is, without a shell; for a shell's syntax: command: \"sh -c '...'\""],
        )
    return argv


def _answer(key: str, command: str, root: Path) -> bytes:
    argv = _argv(key, command, root)
    try:
        done = subprocess.run(argv, cwd=root, capture_output=True, check=False)
    except OSError as error:
        raise BadInputError(f"{key}.command cannot be started", evidence=[command, str(error)]) from error
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout.removesuffix(b"\n")
    # it may have said the value, before it failed or where it does not belong
    said = Masker([done.stdout]).whole(done.stderr).decode(errors="replace").strip()[-SAID:]
    outcome = f"failed with exit code {done.returncode}" if done.returncode else "printed nothing"
    raise BadInputError(
        f"{key}.command {outcome}", evidence=[command, *([said] if said else [])], hints=["try it in your own shell"]
    )
