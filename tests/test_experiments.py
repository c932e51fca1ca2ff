"""The shipped experiments as far as no engine is needed: their configuration, their requirements, the one in bash."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from repro import config, data
from repro.experiment import DatasetConfig
from repro.project import Project
from repro.tracking import journal
from repro.tracking.journal import Position

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
DATA = sorted((ROOT / "conf" / "data").glob("*.yaml"))
REQUIREMENTS = sorted((ROOT / "docker").glob("requirements*.txt"))


def stem(path: Path) -> str:
    return path.stem


def datasets(file: Path) -> dict[str, DatasetConfig]:
    return msgspec.convert(yaml.safe_load(file.read_text()), dict[str, DatasetConfig])


# configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_one_yaml_and_one_file(name: str) -> None:
    experiment = config.compose(Project(ROOT), [f"experiment={name}"])
    assert experiment.name == name
    assert experiment.description
    assert (ROOT / experiment.command[-1]).is_file()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_parameter_is_used_by_the_program_and_no_other_is(name: str) -> None:
    experiment = config.compose(Project(ROOT), [f"experiment={name}"])
    program = (ROOT / experiment.command[-1]).read_text()
    used = set(re.findall(r"\bparams\.(\w+)", program)) | set(re.findall(r"\$\(setting (\w+)\)", program))
    assert used - {"seed"} == experiment.params.keys()


@pytest.mark.parametrize("file", DATA, ids=stem)
def test_a_dataset_has_more_than_one_source_and_only_secure_ones(file: Path) -> None:
    for dataset in datasets(file).values():
        assert len(dataset.sources) >= 2
        assert all(source.startswith("https://") for source in dataset.sources)


def test_the_small_mnist_is_a_part_of_the_large_one() -> None:
    """The same name: the same code finds either."""
    large, small = (datasets(ROOT / "conf" / "data" / f"{name}.yaml") for name in ("mnist", "mnist-t10k"))
    assert large.keys() == small.keys() == {"mnist"}
    assert small["mnist"].files.items() < large["mnist"].files.items()
    assert len(large["mnist"].files) == 4


def test_the_small_mnist_can_be_chosen_for_the_same_experiment() -> None:
    experiment = config.compose(Project(ROOT), ["experiment=mnist", "data=mnist-t10k"])
    assert set(experiment.data["mnist"].files) == {"t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"}


def test_the_real_files_are_those_that_the_configuration_pins(tmp_path: Path) -> None:
    local = os.environ.get("REPRO_DATA_SOURCE")
    if not local:
        pytest.skip("REPRO_DATA_SOURCE names no folder or mirror with MNIST")
    dataset = datasets(ROOT / "conf" / "data" / "mnist-t10k.yaml")["mnist"]
    used = data.fetch("mnist", dataset, cache=tmp_path, local=local, say=print, progress=False)
    assert [(file.path, file.size) for file in used.files] == [
        ("t10k-images-idx3-ubyte.gz", 1648877),
        ("t10k-labels-idx1-ubyte.gz", 4542),
    ]


@pytest.mark.parametrize("file", REQUIREMENTS, ids=stem)
def test_every_requirement_is_pinned(file: Path) -> None:
    for line in file.read_text().splitlines():
        assert re.fullmatch(r"#.*|-r requirements-common\.txt|[a-z-]+(\[[a-z-]+\])?==\d+\.\d+\.\d+", line), line


def test_the_variants_have_the_same_tensorflow() -> None:
    pinned = {
        re.search(r"^tensorflow\S*==(\S+)$", (ROOT / "docker" / name).read_text(), re.MULTILINE)[1]  # type: ignore[index]
        for name in ("requirements.txt", "requirements-cpu.txt")
    }
    assert len(pinned) == 1


# the one in bash -------------------------------------------------------------------------------------------------


def throw_darts(root: Path, **settings: Any) -> tuple[list[tuple[str, float, int]], str]:
    """The metrics and the result of the experiment `shell`."""
    (root / "journal").mkdir(parents=True)
    (root / "config.json").write_text(json.dumps(settings))
    inside = ROOT / "src" / "repro" / "inside" / "bin"
    environment = {
        "PATH": f"{inside}:{os.environ['PATH']}",
        "REPRO_CONFIG": str(root / "config.json"),
        "REPRO_JOURNAL": str(root / "journal"),
        "REPRO_OUTPUTS": str(root),
    }
    subprocess.run(["bash", "experiments/shell.sh"], cwd=ROOT, env=environment, check=True, capture_output=True)
    (file,) = journal.files(root / "journal")
    points = journal.read(file, Position(), run="r", started=0)[0].metrics
    return [(point.key, point.value, point.step) for point in points], (root / "pi.txt").read_text()


def test_the_bash_experiment_logs_each_round_and_writes_its_result(tmp_path: Path) -> None:
    points, result = throw_darts(tmp_path, name="shell", params={"rounds": 3, "darts": 500}, threads=None, seed=1)
    assert [(key, step) for key, _, step in points] == [("pi", 1), ("pi", 2), ("pi", 3)]
    assert points[-1][1] == float(result) == pytest.approx(3.14, abs=0.2)


def test_the_bash_experiment_throws_the_same_darts_for_the_same_seed(tmp_path: Path) -> None:
    first, second, other = (
        throw_darts(tmp_path / str(number), params={"rounds": 2, "darts": 200}, seed=seed)
        for number, seed in enumerate((1, 1, 2))
    )
    assert first == second != other
