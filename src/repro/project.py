"""Project: the folder that holds the user's conf/ and docker/, and where everything of ours lies in it."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from repro.errors import BadInputError, EnvironmentUnfitError


class Project:
    """Paths below a project's root; nothing is created by asking."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.conf = root / "conf"
        self.docker = root / "docker"
        self.lock = root / "repro.lock"
        self.runs = Path(os.environ.get("REPRO_RUNS_DIR") or root / "runs").absolute()
        self.scratch = root / ".repro"  # caches and locks that may be deleted at any time; ignored by git
        self.store = root / "mlflow.db"

    @classmethod
    def find(cls, start: Path) -> Project:
        """The nearest folder at or above `start` that has both conf/ and docker/, else one with imported runs.

        Raises:
            BadInputError: there is none.
        """
        for folder in (start, *start.parents):
            if (folder / "conf").is_dir() and (folder / "docker").is_dir():
                return cls(folder)
        for folder in (start, *start.parents):
            if any(cls(folder).runs.glob("*/archive")):
                return cls(folder)
        raise BadInputError(
            f"no project here: neither {start} nor a folder above it has both conf/ and docker/",
            hints=["change to your project's folder", "`repro init` makes the two folders in this one"],
        )


def cache_folder() -> Path:
    """Where things shared between projects are kept: REPRO_CACHE, else the system's cache folder."""
    if configured := os.environ.get("REPRO_CACHE"):
        return Path(configured).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("repro"))


def ignored_folder(folder: Path) -> Path:
    """Make a folder of ours in the user's project, ignored by git whatever their .gitignore says."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / ".gitignore"
        if not marker.exists():
            marker.write_text("*\n")
    except OSError as error:
        raise EnvironmentUnfitError(
            f"{folder} cannot be written", evidence=[str(error)], hints=["free some space, or make it writable"]
        ) from error
    return folder


def user_name() -> str:
    """Who runs this, by name where the system knows one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
