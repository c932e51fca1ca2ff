"""A real engine, the Debian base that the project bootstraps for itself, and the two builders.

What takes long to get is kept in the cache folder: the base by its content, the plugin by its release.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from repro.build import builder
from repro.engines.engine import Engine, connect
from repro.experiment import BaseRecipe
from repro.recipe import base
from tests.debian import fetched

RECIPE = BaseRecipe(
    suite="bookworm", packages=("python3", "python3-venv", "ca-certificates"), source_date_epoch=1_700_000_000
)


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine of this environment; its absence is a failure, not a skip."""
    return connect()


@pytest.fixture(scope="session")
def debian_base(engine: Engine) -> str:
    """The tag of the base of image=debian."""
    return base.ensure(RECIPE, engine, say=print)


@pytest.fixture(scope="session")
def buildx_config(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A DOCKER_CONFIG in which `docker buildx` works; None where it works as it is."""
    if builder.buildx():
        return None
    plugins = fetched("buildx", "docker-buildx") / "usr" / "libexec" / "docker"
    config = tmp_path_factory.mktemp("docker-config")
    (config / "cli-plugins").symlink_to(plugins / "cli-plugins")
    return config


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
