"""What a user calls a run -> its record and its folder."""

from __future__ import annotations

from repro.errors import BadInputError
from repro.project import Project
from repro.record import Record, RunFolder, folders
from repro.tracking import tracking

NAMED = 10  # of several runs that may be meant


def find(project: Project, wanted: str) -> tuple[Record, RunFolder]:
    """The run of an id, an MLflow run id, a unique prefix of either, or `latest`.

    Raises:
        BadInputError: none, or several.
    """
    everything = folders(project.runs)
    if not everything:
        raise BadInputError(f"no run is recorded in {project.runs}", hints=["make one: `repro run experiment=NAME`"])
    if wanted == "latest":
        return everything[-1].read(), everything[-1]
    found = [folder for folder in everything if folder.path.name.startswith(wanted)]
    found = found or [folder for folder in everything if tracking.mlflow_run(folder).startswith(wanted)]
    if len(found) == 1:
        return found[0].read(), found[0]
    if not found:
        hints = ["`repro runs` lists them", "`repro pull` gets one that somebody has pushed"]
        raise BadInputError(f"no run begins with {wanted!r}", hints=hints)
    names = [folder.path.name for folder in found[-NAMED:]]
    raise BadInputError(
        f"{wanted!r} is the beginning of {len(found)} runs",
        evidence=[f"… and {len(found) - NAMED} older ones", *names] if len(found) > NAMED else names,
    )
