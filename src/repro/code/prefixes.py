"""Where a project is inside its repository, by the record of a run: those of earlier versions do not tell."""

from __future__ import annotations

import os
from pathlib import Path

from repro.code.repository import git
from repro.errors import BadInputError
from repro.record import Planned

MARKS = {"conf", "docker"}  # the folders that make a folder a project


def of(top: Path, planned: Planned) -> str:
    """The project's folder in the commit of a run, found out where the record is older than this member.

    Args:
        top: of a repository that has the commit.
        planned: of the run.

    Raises:
        BadInputError: several folders may be meant, or the commit is not there.
    """
    if planned.code_prefix or planned.run_key:  # both came at once: at the top, then
        return planned.code_prefix
    words = ("ls-tree", "-r", "-d", "-z", "--name-only", "--full-tree", planned.code.commit)
    folders = set(os.fsdecode(git(top, *words)).split("\0"))
    projects = {parent for parent in map(_parent, folders) if all(f"{parent}{mark}" in folders for mark in MARKS)}
    named = sorted(each for each in projects if each and f"{planned.project}/".endswith(f"/{each}"))
    if not named and ("" in projects or not projects):
        return ""
    top_too = [""] if "" in projects else []
    return _only(planned, [*top_too, *named] if named else sorted(projects))


def _only(planned: Planned, candidates: list[str]) -> str:
    if len(candidates) == 1:
        return candidates[0].rstrip("/")
    raise BadInputError(
        f"the record of {planned.run} is an old one, and does not tell which project of its repository it ran",
        evidence=[f"commit {planned.code.commit}", *(f"has a project in {each or '.'}" for each in candidates)],
        hints=["`repro run` it anew: records tell it now"],
    )


def _parent(folder: str) -> str:
    """With a slash at its end; the top is empty."""
    return folder[: folder.rfind("/") + 1]
