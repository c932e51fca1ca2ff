"""A real engine, and the Debian base that the project bootstraps for itself: made once, kept by its content."""

from __future__ import annotations

import pytest

from repro import base
from repro.engine import Engine, connect
from repro.experiment import BaseRecipe

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
