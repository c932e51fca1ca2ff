"""A real engine, the Debian base that the project bootstraps for itself, and the two builders.

What takes long to get is kept in the cache folder: the base by its content, the plugin by its release.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import filelock
import pytest

from repro import base, builder
from repro.engine import Engine, connect
from repro.experiment import BaseRecipe
from repro.project import cache_folder

RECIPE = BaseRecipe(
    suite="bookworm", packages=("python3", "python3-venv", "ca-certificates"), source_date_epoch=1_700_000_000
)
BUILDX_SUITE = "forky"  # the first Debian with a buildx that knows engines of today
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine of this environment; its absence is a failure, not a skip."""
    return connect()


@pytest.fixture(scope="session")
def debian_base(engine: Engine) -> str:
    """The tag of the base of image=debian."""
    return base.ensure(RECIPE, engine, say=print)


@pytest.fixture(scope="session")
def buildx_config() -> Path | None:
    """A DOCKER_CONFIG in which `docker buildx` works; None where it works as it is."""
    if builder.buildx():
        return None
    if os.environ.get("REPRO_TEST_OFFLINE") == "1":
        pytest.skip("NOT TESTED: no buildx here, and it cannot be fetched (REPRO_TEST_OFFLINE=1)")
    folder = cache_folder() / "tests" / f"buildx-{BUILDX_SUITE}"
    plugin = folder / "config" / "cli-plugins" / "docker-buildx"
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        if not plugin.exists():
            _fetch_buildx(folder / "fetch", plugin)
    return folder / "config"


@pytest.fixture
def buildx(buildx_config: Path | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The version of a working `docker buildx`."""
    if buildx_config:
        monkeypatch.setenv("DOCKER_CONFIG", str(buildx_config))
    version = builder.buildx()
    assert version, "the plugin from Debian does not run"
    return version


@pytest.fixture
def no_buildx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the docker command, as it is for who has the library and an engine alone."""
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    assert builder.buildx() is None


@pytest.fixture(params=["classic", "buildx"])
def any_builder(request: pytest.FixtureRequest) -> str:
    """Each builder in turn; its name."""
    request.getfixturevalue("buildx" if request.param == "buildx" else "no_buildx")
    return str(request.param)


def _fetch_buildx(folder: Path, plugin: Path) -> None:
    """Debian's package, through apt with all of its state in `folder`: nothing is installed on the machine."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("state/lists/partial", "cache/archives/partial", "etc"):
        (folder / name).mkdir(parents=True)
    (folder / "state" / "status").touch()
    mirror = base.mirrors(BUILDX_SUITE)
    assert mirror, "this machine's apt sources name no Debian mirror to fetch docker-buildx from"
    (folder / "etc" / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror[0]} {BUILDX_SUITE} main\n")
    (folder / "apt.conf").write_text(
        f'Dir::State "{folder}/state"; Dir::State::status "{folder}/state/status"; Dir::Cache "{folder}/cache";\n'
        f'Dir::Etc::sourcelist "{folder}/etc/sources.list"; Dir::Etc::sourceparts "-";\n'
        'Dir::Etc::preferencesparts "-";\n'
        'APT::Sandbox::User "";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    for command in (["apt-get", "-q", "update"], ["apt-get", "-q", "download", "docker-buildx"]):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
    package = next(folder.glob("docker-buildx_*.deb"))
    subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    unpacked = next((folder / "root").rglob("cli-plugins/docker-buildx"))
    plugin.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(unpacked, plugin.with_suffix(".new"))
    plugin.with_suffix(".new").replace(plugin)
    shutil.rmtree(folder)
