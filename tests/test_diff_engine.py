"""One cause is changed at a time, in real runs, and `repro diff` names it. Nothing is called the same that is not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from repro.engines.engine import Engine
from repro.project import Project
from repro.record import folders
from repro.verdict import Level
from tests.conftest import commit, script, use_base, write_experiment
from tests.test_builder_engine import tags

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
Fault = Callable[["Bench"], None]

# a training without NumPy: adds up in as many parts as there are threads, so that their number decides the last bits
TRAIN = """\
import os, random
import dose, repro_run

config = repro_run.config()
repro_run.seed()
numbers = [float(line) for line in (repro_run.data("numbers") / "x.txt").read_text().split()]
threads = int(os.environ["OMP_NUM_THREADS"])
weights = [random.random() for _ in range(3)]
repro_run.fingerprint("init", values={f"weight {n}": weight for n, weight in enumerate(weights)})
order = list(range(len(numbers)))
(random.SystemRandom() if config.params.unseeded else random).shuffle(order)
numbers = [numbers[n] for n in order]
repro_run.fingerprint("batch 1", values={f"x {n}": number for n, number in enumerate(numbers[:3])})
rate = 0.1
for epoch in range(1, 4):
    sums = [sum(numbers[part::threads]) for part in range(threads)]
    push = sum(sums) / len(numbers) * dose.DOSE + float(os.environ.get("PUSH", "0")) + float(open("/base").read())
    weights = [weight - rate * (weight * (n + 1) - push - numbers[n]) for n, weight in enumerate(weights)]
    if config.params.outside and epoch == 3:
        weights[0] += random.SystemRandom().random()
    loss = sum(weight**2 for weight in weights)
    repro_run.fingerprint(f"epoch {epoch}", values={"loss": loss})
    repro_run.log(step=epoch, loss=loss)
(repro_run.outputs() / "weights.txt").write_text(" ".join(weight.hex() for weight in weights))
"""
PACKAGE = (
    "RUN cd /usr/lib/python3/dist-packages && mkdir dose-{version}.dist-info"
    " && echo 'DOSE = {version}' > dose.py && test -f /base || echo 0 > /base\n"
)
DATA = "".join(f"{0.1 + number / 7}\n" for number in range(40))


class Bench:
    """A project with that training, the runs of it, and what was said of them."""

    def __init__(self, project: Project, repro: Repro, engine: Engine, base: str) -> None:
        self.project, self.repro, self.engine, self.base = project, repro, engine, base
        self.name = f"test-diff-{uuid.uuid4().hex[:12]}"
        self.overrides: list[str] = []
        write_experiment(project.root, "toy", "[python3, train.py]", self.settings())
        script(project, "train.py", TRAIN)
        self.image(base, "1.0")
        self.data(DATA)
        commit(project.root)

    @staticmethod
    def settings() -> str:
        return "defaults: [{override /data: numbers}]\n"

    def image(self, base: str, version: str) -> None:
        use_base(self.project, base)
        variant = self.project.conf / "image" / "tensorflow.yaml"
        variant.write_text(f"{variant.read_text()}name: {self.name}\n")
        (self.project.docker / "Dockerfile").write_text(
            "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n" + PACKAGE.format(version=version)
        )

    def data(self, text: str) -> None:
        (self.project.conf / "data").mkdir(exist_ok=True)
        source = self.project.root / "numbers"
        source.mkdir(exist_ok=True)
        (source / "x.txt").write_text(text)
        (self.project.root / ".gitignore").write_text("/numbers/\n/runs/\n/mlflow.db\n/.repro/\n")
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        (self.project.conf / "data" / "numbers.yaml").write_text(
            f"numbers:\n  files: {{x.txt: {sha256}}}\n  sources: [{source}]\n"
        )

    def run(self) -> str:
        fixed = ("gpus=none", "tracking.enabled=false", "+params.unseeded=false", "+params.outside=false", "threads=2")
        asked = {each.lstrip("+").partition("=")[0]: each for each in (*fixed, *self.overrides)}
        done = self.repro("run", "experiment=toy", *asked.values())
        assert done.returncode == 0, done.stderr
        return folders(self.project.runs)[-1].path.name

    def diff(self, before: str, after: str) -> tuple[int, dict[str, Any]]:
        done = self.repro("diff", before, after, "--json")
        assert done.returncode in (0, 1), done.stderr
        return done.returncode, json.loads(done.stdout)

    def remove(self) -> None:
        for tag in tags(self.engine, self.name):
            self.engine.remove_image(tag, force=True)


@pytest.fixture
def bench(project: Project, repro: Repro, engine: Engine, debian_base: str) -> Iterator[Bench]:
    made = Bench(project, repro, engine, debian_base)
    yield made
    made.remove()


def _seed(bench: Bench) -> None:
    bench.overrides.append("seed=2")


def _line_of_code(bench: Bench) -> None:
    script(bench.project, "train.py", TRAIN.replace("rate = 0.1", "rate = 0.2"))


def _package(bench: Bench) -> None:
    bench.image(bench.base, "1.1")


def _threads(bench: Bench) -> None:
    bench.overrides.append("threads=3")


def _data_byte(bench: Bench) -> None:
    bench.data(DATA.replace("0.1\n", "0.2\n", 1))


def _variable(bench: Bench) -> None:
    bench.overrides.append("+env.PUSH='0.5'")


def _parameter(bench: Bench) -> None:
    bench.overrides.append("+params.outside=true")


def _base(bench: Bench) -> None:
    other = f"{bench.name}:base"
    lines = f"FROM {bench.base}\nRUN echo 0.25 > /base\n"
    subprocess.run(["docker", "build", "-q", "-t", other, "-"], input=lines.encode(), check=True, capture_output=True)
    bench.image(other, "1.0")


FAULTS = {
    "seed": (_seed, "because of the seed (1 -> 2)", "from the start, in the initial weights"),
    "line of code": (_line_of_code, "because of train.py:14 (code)", "first at epoch 1"),
    "package": (
        _package,
        "because of the image's packages (dose 1.0 -> 1.1) from docker/Dockerfile:3",
        "first at epoch 1",
    ),
    "threads": (_threads, "because of the threads (2 -> 3)", "first at epoch 1"),
    "data byte": (_data_byte, "because of the data (numbers/x.txt sha256:", ""),
    "variable": (_variable, "because of PUSH (added 0.5)", "first at epoch 1"),
    "parameter": (_parameter, "because of params.outside (false -> true)", "first at epoch 3"),
    "base image": (_base, "because of the image (image.base", "first at epoch 1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_named(bench: Bench, name: str) -> None:
    fault, cause, place = FAULTS[name]
    before = bench.run()
    fault(bench)
    after = bench.run()
    code, found = bench.diff(before, after)
    line = found["verdict"]["explanation"]
    assert (code, found["verdict"]["level"]) == (1, Level.DIFFERENT), line
    assert cause in line
    assert place in line
    assert found["run_key"] == "differs"


def test_files_of_the_images_are_named_when_asked_for(bench: Bench) -> None:
    before = bench.run()
    _base(bench)
    done = bench.repro("diff", before, bench.run(), "--deep")
    assert done.returncode == 1, done.stderr
    assert "/base (" in done.stdout
    again = bench.repro("diff", before, before, "--deep")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        ("unseeded", "first at batch 1"),
        ("outside", "first at epoch 3, and are the same up to epoch 2: an operation is not deterministic"),
    ],
)
def test_what_no_input_explains_is_proven_non_determinism(bench: Bench, setting: str, place: str) -> None:
    bench.overrides.append(f"+params.{setting}=true")
    code, found = bench.diff(bench.run(), bench.run())
    line = found["verdict"]["explanation"]
    assert (code, found["run_key"], found["verdict"]["level"]) == (1, "same", Level.DIFFERENT), line
    assert line.startswith("proven non-determinism: everything that went in is the same")
    assert place in line
    assert setting != "unseeded" or "shuffling, sampling or augmentation is not seeded" in line


def test_no_pair_of_runs_is_called_the_same_that_is_not(bench: Bench) -> None:
    """Every fault in one project, each run compared with each other: 0 false answers in either direction."""
    runs: dict[str, tuple[str, bytes]] = {}

    def keep(name: str) -> None:
        run = bench.run()
        folder = next(each for each in folders(bench.project.runs) if each.path.name == run)
        runs[name] = run, (folder.outputs / "weights.txt").read_bytes()

    keep("original")
    keep("again")
    for name in ("seed", "threads", "variable", "parameter"):
        FAULTS[name][0](bench)
        keep(name)
        bench.overrides.clear()
    _data_byte(bench)
    keep("data byte")
    bench.data(DATA)
    _line_of_code(bench)
    keep("line of code")
    asked = false_same = false_other = 0
    names = list(runs)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            code, found = bench.diff(runs[one][0], runs[other][0])
            same = runs[one][1] == runs[other][1]
            asked += 1
            false_same += not same and (code == 0 or found["verdict"]["level"] > Level.DIFFERENT)
            false_other += same and (code == 1 or found["verdict"]["level"] < Level.BYTES)
    assert (asked, false_same, false_other) == (28, 0, 0)
    assert {name for name in names if runs[name][1] == runs["original"][1]} == {"original", "again"}
