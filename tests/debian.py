"""Programs of a newer Debian than the machine's, through apt with all of its state in a folder of its own.

Nothing is installed on the machine. What was fetched is kept in the cache folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import filelock
import pytest

from repro.project import cache_folder
from repro.recipe import base

SUITE = "forky"  # the first Debian with a buildx that knows engines of today, and the newest engine that any has
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def fetched(name: str, *packages: str) -> Path:
    """The root folder of these packages, unpacked; fetched when they are first asked for under this name."""
    folder = cache_folder() / "tests" / f"{name}-{SUITE}"
    root = folder / "root"
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        if not root.exists():
            if os.environ.get("REPRO_TEST_OFFLINE") == "1":
                pytest.skip(f"NOT TESTED: {', '.join(packages)} cannot be fetched (REPRO_TEST_OFFLINE=1)")
            _fetch(folder / "fetch", packages).replace(root)
            shutil.rmtree(folder / "fetch")
    return root


def _fetch(folder: Path, packages: tuple[str, ...]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("state/lists/partial", "cache/archives/partial", "etc", "root"):
        (folder / name).mkdir(parents=True)
    (folder / "state" / "status").touch()
    mirror = base.mirrors(SUITE)
    assert mirror, f"this machine's apt sources name no Debian mirror to fetch {', '.join(packages)} from"
    (folder / "etc" / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror[0]} {SUITE} main\n")
    (folder / "apt.conf").write_text(
        f'Dir::State "{folder}/state"; Dir::State::status "{folder}/state/status"; Dir::Cache "{folder}/cache";\n'
        f'Dir::Etc::sourcelist "{folder}/etc/sources.list"; Dir::Etc::sourceparts "-";\n'
        'Dir::Etc::preferencesparts "-";\n'
        'APT::Sandbox::User "";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    for command in (["apt-get", "-q", "update"], ["apt-get", "-q", "download", *packages]):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    return folder / "root"
