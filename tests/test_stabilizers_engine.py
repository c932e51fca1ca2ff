"""The files of a real TensorFlow and a real Keras, from two processes: other bytes, and the same canonical digests."""

from __future__ import annotations

from pathlib import Path

import pytest

from repro.project import Project
from repro.record import OutputFile
from repro.stabilize.pairing import pairing_names
from tests.conftest import commit, script
from tests.test_experiments_engine import Repro, clone, run_in
from tests.test_run_engine import latest

__all__ = ["clone"]

pytestmark = pytest.mark.engine

SAVE = '''
"""Saves one model in each form, once by itself and once from a process of its own."""
import subprocess, sys, time

if len(sys.argv) == 1:
    for folder in ("one", "two"):
        subprocess.run([sys.executable, __file__, folder], check=True)
        time.sleep(1.1)
    sys.exit()

import repro_run
out = repro_run.outputs() / sys.argv[1]
out.mkdir()
repro_run.seed()
import keras
import tensorflow as tf

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")])
model.compile("adam", "mse")
model.save(out / "model.keras")
model.save_weights(out / "model.weights.h5")

class Module(tf.Module):
    def __init__(self):
        self.state = tf.Variable([1.0, 2.0])

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
    def change(self, given):
        return {"z": self.state + given[0], "y": tf.cond(given[0, 0] > 0, lambda: self.state, lambda: -self.state)}

module = Module()
tf.saved_model.save(module, str(out / "saved"))
writer = tf.summary.create_file_writer(str(out / "board"))
with writer.as_default():
    for step in range(3):
        tf.summary.write("loss", tf.constant(1 / (step + 1)), step=step)
    tf.summary.graph(module.change.get_concrete_function().graph)
model.layers[0].set_weights([weights + 1e-6 for weights in model.layers[0].get_weights()])
model.save(out / "another.keras")
'''


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_a_model_is_saved_as_differs_and_its_canonical_digest_does_not(clone: Path) -> None:
    (clone / "experiments" / "save.py").write_text(SAVE)
    commit(clone)
    record, _folder = run_in(
        clone, "experiment=digits", "command=[python,experiments/save.py]", "tracking.enabled=false"
    )
    assert record.ended is not None
    files = record.ended.outputs

    def of(folder: str) -> dict[str, OutputFile]:
        here = {file.path: file for file in files if file.path.startswith(folder)}
        return {pairing_names(here)[path].removeprefix(folder): file for path, file in here.items()}

    one, two = of("one/"), of("two/")
    assert one.keys() == two.keys()
    labels = {name: file.canonical.stabilizer for name, file in one.items() if file.canonical}
    assert labels == {
        "model.keras": "keras-zip@1",
        "another.keras": "keras-zip@1",
        "model.weights.h5": "h5@1",
        "saved/saved_model.pb": "saved-model@1",
        "saved/fingerprint.pb": "fingerprint@1",
        "board/events.out.tfevents.v2": "tfevents@1",
    }
    assert {name for name in labels if one[name].canonical != two[name].canonical} == set()
    differ = {name for name in one if one[name].sha256 != two[name].sha256}
    assert {"model.keras", "saved/fingerprint.pb", "board/events.out.tfevents.v2"} <= differ <= labels.keys()
    assert one["model.keras"].canonical != one["another.keras"].canonical


def test_a_run_records_the_role_and_the_canonical_digest_of_its_outputs(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "cd $REPRO_OUTPUTS; echo 1.50 > a.csv; mkdir times; date > times/log; echo x > x.txt")
    done = repro("run", "experiment=toy", "tracking.enabled=false", "outputs.by_products=[times/]")
    assert done.returncode == 0, done.stderr
    record, _folder = latest(lab)
    assert record.ended is not None
    files = {file.path: (file.role, file.canonical and file.canonical.stabilizer) for file in record.ended.outputs}
    assert files == {
        "a.csv": ("result", "csv-float@1"),
        "times/log": ("by-product", None),
        "x.txt": ("result", None),
    }


def test_a_wrong_pattern_of_by_products_is_told_before_anything_runs(lab: Project, repro: Repro) -> None:
    done = repro("run", "experiment=toy", "tracking.enabled=false", "outputs.by_products=['!']")
    assert done.returncode == 2
    assert "outputs.by_products holds what is no pattern" in done.stderr
    assert not list(lab.runs.glob("*/record.json"))
