"""The shipped MNIST with `deterministic: portable`: the same bytes on any machine, as far as that can be told on one.

Where there is one processor only, another one is played by what libraries are told of it: the test takes back, one
after the other, what `portable` masks of it, and the number of its cores.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_experiments_engine import clone, run_in  # noqa: F401 - a fixture

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1500)]

SHORT = ("experiment=mnist", "data=mnist-t10k", "tracking.enabled=false", "gpus=none", "params.epochs=1")


def hashes(place: Path, *overrides: str) -> dict[str, str]:
    record, _folder = run_in(place, *SHORT, *overrides)
    assert record.ended is not None
    return {file.path: file.sha256 for file in record.ended.outputs}


@pytest.fixture(scope="module")
def portable(clone: Path) -> dict[str, str]:  # noqa: F811 - the fixture imported above
    return hashes(clone, "deterministic=portable", "resources.cpus=2")


@pytest.mark.parametrize(
    "machine",
    [
        ["resources.cpus=1"],
        ["+env.NPY_DISABLE_CPU_FEATURES=''"],
        ["+env.OPENBLAS_CORETYPE=SkylakeX", "+env.GLIBC_TUNABLES=''"],
    ],
    ids=["one core", "all that NumPy knows", "AVX-512 in OpenBLAS and all that glibc knows"],
)
def test_portable_mnist_is_the_same_bytes_on_another_machine(
    clone: Path,  # noqa: F811
    portable: dict[str, str],
    machine: list[str],
) -> None:
    assert hashes(clone, "deterministic=portable", *machine) == portable


def test_without_portable_the_number_of_threads_shows(clone: Path, portable: dict[str, str]) -> None:  # noqa: F811
    one, two = (hashes(clone, f"threads={threads}")["weights.npz"] for threads in (1, 2))
    assert len({one, two, portable["weights.npz"]}) == 3
