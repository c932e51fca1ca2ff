"""The short form of `python -m tests.faults`: each fault once, for real, and everything that must hold afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.acts import ACTS
from tests.faults.cases import FAULTS, cases
from tests.faults.suite import run
from tests.second_engine import require_root

SEED = 1
WORKERS = 3


def test_the_same_seed_gives_the_same_faults_at_the_same_moments() -> None:
    assert cases(7, 100) == cases(7, 100)
    assert cases(7, 100) != cases(8, 100)
    assert cases(7, 100)[:50] == cases(7, 50)


def test_every_fault_gets_its_turn() -> None:
    assert {case.fault for case in cases(SEED, len(FAULTS))} == set(FAULTS) == set(ACTS)


@pytest.mark.engine
@pytest.mark.tracking
@pytest.mark.timeout(900)
def test_nothing_is_lost_doubled_or_left_whatever_dies(debian_base: str, tmp_path: Path) -> None:
    require_root()
    results = list(run(cases(SEED, len(FAULTS)), debian_base, WORKERS, tmp_path, print))
    assert [(result.case.title, result.violations) for result in results if result.violations] == []
    assert len(results) == len(FAULTS)
    assert sum(result.struck for result in results) > len(FAULTS) // 2
