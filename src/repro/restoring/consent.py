"""A run that somebody else gave -> what its record would have this machine give away. Only its user may agree."""

from __future__ import annotations

from collections.abc import Iterator

from repro import printable
from repro.errors import RefusedError
from repro.experiment import Experiment, SecretSource
from repro.record import RunFolder

FLAG = "--give-secrets"


def is_foreign(folder: RunFolder) -> bool:
    """Whether somebody else wrote the record of a run: it was imported, or pulled."""
    return folder.elsewhere.exists()


def wishes(experiment: Experiment, *, built: bool) -> tuple[str, ...]:
    """What a configuration takes from the machine that it runs on; `built`: its image is built from its recipe."""
    return tuple(map(printable.line, _wishes(experiment, built=built)))  # nothing hides behind codes of a terminal


def _wishes(experiment: Experiment, *, built: bool) -> Iterator[str]:
    for name, secret in experiment.secrets.items():
        yield f"secret {name}: {place(secret)}"
    if built:
        for name, source in experiment.build.secrets.items():
            yield f"build secret {name}: {place(source)}"
        if experiment.build.ca_bundle is not None:
            yield f"build.ca_bundle: file {experiment.build.ca_bundle}"


def place(source: SecretSource) -> str:
    """Where a secret comes from, in words."""
    command = getattr(source, "command", None)
    if command is not None:
        return f"program {command}"
    return f"file {source.file}" if source.file is not None else f"environment variable {source.env}"


def require(folder: RunFolder, experiment: Experiment, *, built: bool, given: bool) -> None:
    """See that nothing of this machine goes into a run of somebody else's unless its user has said so.

    Raises:
        RefusedError: the run would take something.
    """
    found = wishes(experiment, built=built)
    if found and is_foreign(folder) and not given:
        raise RefusedError(
            f"run {folder.path.name} is somebody else's, and its record names what it would take from this machine",
            evidence=found,
            hints=[f"{FLAG} lets its code have them: programs are run here, files and variables are yours"],
        )
