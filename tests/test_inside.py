"""What is mounted into the container, run by a Python that has nothing but its standard library, and by shells."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from repro.tracking import journal
from repro.tracking.journal import Events, Position

INSIDE = Path(__file__).parents[1] / "src" / "repro" / "inside"
REPRO_LOG = INSIDE / "bin" / "repro-log"
CONFIG = {"name": "toy", "seed": 7, "deterministic": True, "params": {"epochs": 3, "optimizer": {"lr": 0.1}}}
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]


class Run:
    """The folders and the environment of a run, without the container."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal, self.outputs, self.data, self.library = (
            root / name for name in ("journal", "outputs", "data", "library")
        )
        for folder in (self.journal, self.data / "mnist", self.data / "cifar", self.library):
            folder.mkdir(parents=True)
        (root / "config.json").write_text(json.dumps(CONFIG))
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{INSIDE}:{self.library}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "REPRO_CONFIG": str(root / "config.json"),
            "REPRO_DATA": str(self.data),
            "REPRO_JOURNAL": str(self.journal),
            "REPRO_OUTPUTS": str(self.outputs),
        }

    def python(self, code: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Without site-packages; `options` may give others."""
        program = "import repro_run\n" + textwrap.dedent(code)
        return subprocess.run(
            [sys.executable, *(options or ("-S",)), "-c", program],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def printed(self, code: str, *options: str) -> str:
        answer = self.python(code, *options)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.strip()

    def error(self, code: str) -> str:
        answer = self.python(code)
        assert answer.returncode == 1, answer.stdout
        return answer.stderr.splitlines()[-1]

    def log(self, *arguments: str, shell: str = "sh") -> subprocess.CompletedProcess[str]:
        command = [*([shell, "sh"] if shell == "busybox" else [shell]), str(REPRO_LOG), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)

    def events(self) -> Events:
        """What the host reads."""
        read = [journal.read(path, Position(), run="r", started=0)[0] for path in journal.files(self.journal)]
        return Events(
            metrics=tuple(point for each in read for point in each.metrics),
            tags=tuple(tag for each in read for tag in each.tags),
            unread=sum(each.unread for each in read),
        )

    def points(self) -> list[tuple[str, float, int]]:
        events = self.events()
        assert events.unread == 0
        return [(point.key, point.value, point.step) for point in events.metrics]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def by_hand(run: Run) -> Run:
    """A program that was started without `repro`."""
    run.environment = {name: value for name, value in run.environment.items() if not name.startswith("REPRO_")}
    return run


# configuration, data, outputs ------------------------------------------------------------------------------------


def test_the_module_is_understood_by_python_3_8() -> None:
    ast.parse((INSIDE / "repro_run.py").read_text(), feature_version=(3, 8))


def test_it_works_where_there_are_no_packages_at_all(run: Run) -> None:
    assert (
        run.printed("""
        import importlib.util
        print(importlib.util.find_spec("numpy"), repro_run.seed())
    """)
        == "None 7"
    )


def test_the_configuration_is_attributes_and_a_dict(run: Run) -> None:
    assert (
        run.printed("""
        config = repro_run.config()
        print(config.params.optimizer.lr, config["params"]["epochs"], dict(**config.params.optimizer))
    """)
        == "0.1 3 {'lr': 0.1}"
    )


def test_a_misspelt_setting_names_the_one_that_was_meant(run: Run) -> None:
    assert run.error("repro_run.config().params.epoch") == (
        "AttributeError: no setting 'epoch' (did you mean 'epochs'?); there are: epochs, optimizer"
    )


def test_the_configuration_is_frozen(run: Run) -> None:
    assert "the configuration is frozen" in run.error("repro_run.config().seed = 3")


def test_a_dataset_is_a_folder(run: Run) -> None:
    assert run.printed("print(repro_run.data('mnist'))") == str(run.data / "mnist")


def test_a_dataset_that_is_not_there_is_an_error_that_lists_what_is(run: Run) -> None:
    assert run.error("repro_run.data('minst')") == (
        "FileNotFoundError: no dataset 'minst' (did you mean 'mnist'?); there are: cifar, mnist. "
        "Declare it under `data` in the configuration"
    )


def test_outputs_is_a_folder_that_exists(run: Run) -> None:
    run.printed("(repro_run.outputs() / 'result.txt').write_text('x')")
    assert (run.outputs / "result.txt").read_text() == "x"


@pytest.mark.parametrize("call", ["config()", "data('mnist')", "outputs()", "seed()"])
def test_outside_of_a_run_the_error_says_what_is_missing(call: str, by_hand: Run) -> None:
    assert "NotInRunError: " in by_hand.error(f"repro_run.{call}")


def test_outside_of_a_run_metrics_are_printed_and_a_seed_can_be_given(by_hand: Run) -> None:
    printed = by_hand.printed("repro_run.log(step=3, loss=0.5, acc=1); print(repro_run.seed(5))")
    assert printed.splitlines() == ["step 3  loss 0.5  acc 1.0", "5"]


# metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_are_read_by_the_host_as_they_were_logged(run: Run) -> None:
    before = int(time.time() * 1000)
    run.printed("""
        repro_run.log(step=3, loss=0.1, **{"val/accuracy": 1})
        repro_run.log(step=4, loss=float("nan"), high=float("inf"), low=float("-inf"))
    """)
    events = run.events()
    assert [(point.key, str(point.value), point.step) for point in events.metrics] == [
        ("loss", "0.1", 3),
        ("val/accuracy", "1.0", 3),
        ("loss", "nan", 4),
        ("high", "inf", 4),
        ("low", "-inf", 4),
    ]
    assert all(before <= point.timestamp <= time.time() * 1000 for point in events.metrics)


def test_without_a_step_the_calls_are_counted(run: Run) -> None:
    run.printed("for loss in (3, 2, 1): repro_run.log(loss=loss)")
    assert run.points() == [("loss", 3.0, 0), ("loss", 2.0, 1), ("loss", 1.0, 2)]


def test_a_metric_that_is_no_number_is_refused_and_nothing_of_the_call_is_written(run: Run) -> None:
    assert run.error("repro_run.log(a=1, loss='low')") == "TypeError: log(): loss is 'low', not a number"
    assert run.points() == []


def test_processes_write_files_of_their_own_and_threads_do_not_mix_their_lines(run: Run) -> None:
    run.printed("""
        import os, threading
        repro_run.log(step=0, parent=1)
        if os.fork() == 0:
            threads = [threading.Thread(target=lambda: [repro_run.log(step=1, a=1, b=2) for _ in range(50)])
                       for _ in range(8)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            os._exit(0)
        os.wait()
    """)
    assert len(journal.files(run.journal)) == 2
    assert sorted(run.points()) == [("a", 1.0, 1)] * 400 + [("b", 2.0, 1)] * 400 + [("parent", 1.0, 0)]


# seeds -----------------------------------------------------------------------------------------------------------

LIBRARIES = {
    "tensorflow": """
        print("tensorflow is imported")
        class random:
            set_seed = staticmethod(lambda n: print("tensorflow seed", n))
        class config:
            list_physical_devices = staticmethod(lambda kind: ["one", "two"])
            class experimental:
                enable_op_determinism = staticmethod(lambda: print("tensorflow is deterministic"))
    """,
    "keras": """
        import tensorflow
        class utils:
            set_random_seed = staticmethod(lambda n: print("keras seed", n))
    """,
}


@pytest.fixture
def frameworks(run: Run) -> Run:
    """Libraries that tell what they are asked; Keras imports TensorFlow, as the real one does."""
    for name, code in LIBRARIES.items():
        (run.library / name).mkdir()
        (run.library / name / "__init__.py").write_text(textwrap.dedent(code))
    return run


SEEDED = ["tensorflow is imported", "tensorflow is deterministic", "tensorflow seed 7", "keras seed 7"]


def test_what_is_imported_later_is_seeded_when_it_is(frameworks: Run) -> None:
    assert frameworks.printed("repro_run.seed(); import keras").splitlines() == SEEDED


def test_what_is_imported_already_is_seeded_at_once(frameworks: Run) -> None:
    assert frameworks.printed("import keras; repro_run.seed()").splitlines() == SEEDED


def test_a_library_that_the_experiment_does_not_use_is_not_imported(frameworks: Run) -> None:
    assert frameworks.printed("repro_run.seed()") == ""


def test_a_library_that_fails_to_import_fails_as_it_would_by_itself(frameworks: Run) -> None:
    (frameworks.library / "tensorflow" / "__init__.py").write_text("raise ImportError('no AVX')")
    assert frameworks.error("repro_run.seed(); import keras") == "ImportError: no AVX"


def test_determinism_is_left_alone_where_the_configuration_says_so(frameworks: Run) -> None:
    (frameworks.root / "config.json").write_text(json.dumps({**CONFIG, "deterministic": False}))
    assert "tensorflow is deterministic" not in frameworks.printed("repro_run.seed(); import tensorflow")


def test_the_run_is_told_how_many_gpus_the_framework_sees(frameworks: Run) -> None:
    frameworks.printed("repro_run.seed(); import tensorflow")
    assert [(tag.key, tag.value) for tag in frameworks.events().tags] == [("framework_gpus", "2")]


def test_the_same_seed_draws_the_same_numbers(run: Run) -> None:
    code = "import random; {}; import numpy; print(repro_run.seed({}), random.random(), numpy.random.rand())"
    first, second, other = (
        run.printed(code.format(early, n), "-P")
        for early, n in (("repro_run.seed()", 7), ("pass", ""), ("repro_run.seed()", 8))
    )
    assert first == second != other


# weights ---------------------------------------------------------------------------------------------------------

SAVE = """
import numpy
weights = {"b/kernel": numpy.arange(6, dtype="float32").reshape(2, 3), "a": numpy.array(1.5), "c": numpy.ones(2, "i8")}
"""


def save(run: Run, code: str) -> str:
    return run.printed(SAVE + textwrap.dedent(code), "-P")


def test_weights_come_back_as_they_were(run: Run) -> None:
    assert (
        save(
            run,
            """
        repro_run.save_weights(weights)
        found = numpy.load(repro_run.outputs() / "weights.npz")
        print(found.files, all((found[k] == v).all() and found[k].dtype == v.dtype for k, v in weights.items()))
    """,
        )
        == "['a', 'b/kernel', 'c'] True"
    )


def test_equal_weights_are_equal_files_whatever_their_order_in_memory(run: Run) -> None:
    first, second = save(
        run,
        """
        print(repro_run.save_weights(weights, "first.npz"))
        big = {name: array.dtype.newbyteorder(">") for name, array in weights.items()}
        other = {name: numpy.array(array, big[name], order="F") for name, array in weights.items()}
        print(repro_run.save_weights(dict(reversed(other.items())), "second.npz"))
    """,
    ).split()
    assert first == second
    assert (run.outputs / "first.npz").read_bytes() == (run.outputs / "second.npz").read_bytes()


def test_the_digest_of_weights_is_a_promise(run: Run) -> None:
    """It is compared between runs that lie years apart: it must not change with versions of ours or of NumPy's."""
    hasher = hashlib.sha256(b"repro weights 1\n")
    for name, dtype, shape, values in (
        (b"a", b"float64", b"", struct.pack("<d", 1.5)),
        (b"b/kernel", b"float32", b"2,3", struct.pack("<6f", 0, 1, 2, 3, 4, 5)),
        (b"c", b"int64", b"2", struct.pack("<2q", 1, 1)),
    ):
        for part in (name, dtype, shape, values):
            hasher.update(struct.pack(">q", len(part)) + part)
    assert save(run, "print(repro_run.save_weights(weights))") == hasher.hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("weights['a'] += 1", id="value"),
        pytest.param("weights['d'] = weights.pop('c')", id="name"),
        pytest.param("weights['c'] = weights['c'].reshape(1, 2)", id="shape"),
        pytest.param("weights['c'] = weights['c'].view('u8')", id="type"),
    ],
)
def test_every_part_of_the_weights_counts(change: str, run: Run) -> None:
    code = f"print(repro_run.save_weights(weights)); {change}; print(repro_run.save_weights(weights))"
    before, after = save(run, code).split()
    assert before != after


def test_the_weights_of_a_keras_model_have_the_names_of_its_layers(run: Run) -> None:
    assert save(
        run,
        """
        class Weight:
            def __init__(self, path): self.path = path
            def numpy(self): return numpy.ones(2)
        class Model: weights = [Weight("hidden/kernel"), Weight("hidden/bias")]
        repro_run.save_weights(Model())
        print(numpy.load(repro_run.outputs() / "weights.npz").files)
        Model.weights *= 2
        try: repro_run.save_weights(Model())
        except ValueError as error: print(error)
    """,
    ).splitlines() == [
        "['hidden/bias', 'hidden/kernel']",
        "save_weights(): two weights are called 'hidden/kernel'; name the layers",
    ]


def test_the_keras_callback_logs_each_epoch_from_one(run: Run) -> None:
    (run.library / "keras").mkdir()
    (run.library / "keras" / "__init__.py").touch()
    (run.library / "keras" / "callbacks.py").write_text("class Callback: pass\n")
    run.printed("""
        callback = repro_run.KerasCallback()
        callback.on_epoch_end(0, {"loss": 0.5, "val_loss": 0.6})
        callback.on_epoch_end(1, {"loss": 0.25})
    """)
    assert run.points() == [("loss", 0.5, 1), ("val_loss", 0.6, 1), ("loss", 0.25, 2)]


# fingerprints ----------------------------------------------------------------------------------------------------


def trace(run: Run, code: str, options: str = "-P") -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """What the host reads of an experiment's fingerprints."""
    assert run.printed("import numpy\n" + textwrap.dedent(code), options) == ""
    read = [journal.read(path, Position(), run="r", started=0)[0] for path in journal.files(run.journal)]
    assert sum(each.unread for each in read) == 0
    found = [moment.fingerprint for each in read for moment in each.trace]
    return [(each.at, each.digests, each.values) for each in found]


def test_a_fingerprint_of_weights_is_the_digest_that_they_are_saved_with(run: Run) -> None:
    digest = save(run, "print(repro_run.save_weights(weights))")
    ((at, digests, values),) = trace(run, SAVE + 'repro_run.fingerprint("init", model=weights, values={"loss": 0.1})')
    assert (at, digests, values) == ("init", {"weights": digest}, {"loss": "0x1.999999999999ap-4"})


def test_arrays_in_any_nesting_and_tensors_of_any_kind_have_a_fingerprint(run: Run) -> None:
    code = """
        class Torch:
            def __init__(self, array): self.array = array
            def detach(self): return self
            def cpu(self): return self
            def numpy(self): return self.array
            def numel(self): return self.array.size
            def element_size(self): return self.array.itemsize
        x, y = numpy.arange(6.0).reshape(2, 3), [1, 2]
        for each in ((x, y), (x.copy(order="F"), [1, 2]), (x + 1e-12, y), (x, [2, 1]), {"x": x}, Torch(x), x, None):
            repro_run.fingerprint("batch", it=each)
    """
    digests = [found["it"] for _, found, _ in trace(run, code.replace(", None)", ")"))]
    assert digests[0] == digests[1]
    assert digests[-1] == digests[-2]
    assert len(set(digests)) == 5


PLAIN = """
    import array
    nested = [[1], 2.5], [1, [2.5]], [True, 2.5], [1, 2.5, None], [], [[]]
    others = "1", b"1", 1, [float("nan")], [10**30], 1j
    same = [0.0], array.array("d", [0.0]), [-0.0], range(3), [0, 1, 2]
    for each in ([1, 2.5], (1, 2.5), [2.5, 1], [1.0, 2.5], *nested, *others, *same):
        repro_run.fingerprint("x", it=each)
"""


def test_plain_python_has_a_fingerprint_with_and_without_numpy(run: Run) -> None:
    hidden = "import sys\nsys.modules['numpy'] = None" + textwrap.dedent(PLAIN)
    digests = [found["it"] for _, found, _ in trace(run, hidden)]
    assert len(digests) == 21
    assert (digests[0], digests[16], digests[19]) == (digests[1], digests[17], digests[20])
    assert len(set(digests)) == 18
    again = [found["it"] for _, found, _ in trace(run, PLAIN)]
    assert again[-21:] == digests


def test_of_long_lists_a_sample_is_read_with_both_ends_in_little_time(run: Run) -> None:
    code = """
        import time
        begun = time.perf_counter()
        for length, at in ((300_000, None), (300_000, 0), (300_000, -1), (300_000, 7), (300_001, None)):
            numbers = [0.5] * length
            if at is not None: numbers[at] = 1.0
            repro_run.fingerprint("flat", it=numbers)
            repro_run.fingerprint("rows", it=[numbers] * 100_000)
        repro_run.fingerprint("mixed", it=[[numpy.zeros(2), 1], 2])
        assert time.perf_counter() - begun < 10
    """
    found = [(at.split(" ")[0], digests["it"]) for at, digests, _ in trace(run, code)]
    for kind in ("flat", "rows"):
        plain, first, last, _skipped, longer = [digest for at, digest in found if at == kind]
        assert len({plain, first, last, longer}) == 4


def test_of_large_arrays_a_sample_is_read_with_both_ends(run: Run) -> None:
    code = """
        import repro_fingerprint
        repro_fingerprint.WHOLE = 1 << 16
        big = {name: numpy.zeros(1 << 18, "u1") for name in ("a", "b")}
        for name, at in (("a", None), ("a", 0), ("b", -1), ("a", 5000), ("b", 1 << 17)):
            changed = {key: array.copy() for key, array in big.items()}
            if at is not None: changed[name][at] = 1
            repro_run.fingerprint("x", model=changed)
    """
    plain, first, last, skipped, _middle = [found["weights"] for _, found, _ in trace(run, code)]
    assert len({plain, first, last}) == 3
    assert skipped == plain  # documented: it is a sample


def test_a_fingerprint_that_cannot_be_taken_is_said_once_and_breaks_nothing(run: Run) -> None:
    answer = run.python(
        "import numpy\n"
        "for _ in range(3): repro_run.fingerprint('x', it=numpy.array([object()]))\n"
        "repro_run.fingerprint('x', values={'loss': 'low'}); print('done')",
        "-P",
    )
    assert (answer.returncode, answer.stdout) == (0, "done\n")
    assert [line.partition(": ")[2].partition(":")[0] for line in answer.stderr.splitlines()] == [
        "fingerprint('x')"
    ] * 2
    del run.environment["REPRO_JOURNAL"]
    assert run.printed("repro_run.fingerprint('x', it=object())") == ""  # outside of a run, nothing happens


def test_of_batches_the_first_of_each_pass_is_fingerprinted_and_they_stay_what_they_are(run: Run) -> None:
    code = """
        class Loader:
            dataset = "mine"
            def __len__(self): return 2
            def __iter__(self): return iter([numpy.zeros(2), numpy.ones(2)])
        loader = repro_run.batches(Loader(), "train")
        assert (len(loader), loader.dataset, bool(loader)) == (2, "mine", True)
        for _ in range(2): assert [batch.sum() for batch in loader] == [0, 2]
        stream = repro_run.batches(n * numpy.ones(2) for n in range(3))
        assert next(stream).sum() == 0 and [batch.sum() for batch in stream] == [2, 4]
        assert list(repro_run.batches([])) == []
    """
    found = trace(run, code)
    assert [at for at, _, _ in found] == ["train pass 1 batch 1", "train pass 2 batch 1", "pass 1 batch 1"]
    assert len({digests["batch"] for _, digests, _ in found}) == 1


KERAS = """
class Weight:
    path = "hidden/kernel"
    def __init__(self): self.value = 0.0
    def numpy(self): return numpy.full(2, self.value)
class Model:
    def __init__(self): self.weights = [Weight()]
    def train_function(self, iterator):
        self.weights[0].value += 1
        return {"loss": numpy.float32(0.5), "note": "none"}
def fit(model, callback, batches=2, epochs=2):
    callback.model = model
    callback.on_train_begin()
    for epoch in range(epochs):
        for _ in range(batches): model.train_function(None)
        callback.on_epoch_end(epoch, {"loss": 0.25})
    callback.on_train_end()
"""


def test_the_keras_callback_fingerprints_the_beginning_the_first_batch_and_each_epoch(run: Run) -> None:
    (run.library / "keras").mkdir()
    (run.library / "keras" / "__init__.py").touch()
    (run.library / "keras" / "callbacks.py").write_text("class Callback: pass\n")
    found = trace(run, KERAS + "fit(Model(), repro_run.KerasCallback())")
    assert [(at, values) for at, _, values in found] == [
        ("init", {}),
        ("batch 1", {"loss": (0.5).hex()}),
        ("epoch 1", {"loss": (0.25).hex()}),
        ("epoch 2", {"loss": (0.25).hex()}),
    ]
    assert len({digests["weights"] for _, digests, _ in found}) == 4


def test_after_the_first_batch_or_without_one_keras_is_as_it_was(run: Run) -> None:
    (run.library / "keras").mkdir()
    (run.library / "keras" / "__init__.py").touch()
    (run.library / "keras" / "callbacks.py").write_text("class Callback: pass\n")
    trace(
        run,
        KERAS
        + """
for batches in (0, 1):
    model = Model()
    fit(model, repro_run.KerasCallback(), batches)
    assert model.train_function == Model.train_function.__get__(model)
class Breaks(Model):
    def train_function(self, iterator): raise KeyError("theirs")
model = Breaks()
try: fit(model, repro_run.KerasCallback())
except KeyError: assert model.train_function == Breaks.train_function.__get__(model)
""",
    )


NO_NUMBERS = ("", "low", "1-2", ".", "-", "1e", "1.2.3", "1e5e5", "0x1", "1 2", "$(id)", "1\n2")

# repro-log -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_logs_what_the_host_reads(shell: str, run: Run) -> None:
    before = int(time.time() * 1000)
    assert run.log("step=3", "loss=0.5", "val/accuracy=.81", shell=shell).returncode == 0
    assert run.points() == [("loss", 0.5, 3), ("val/accuracy", 0.81, 3)]
    assert all(before <= point.timestamp <= time.time() * 1000 for point in run.events().metrics)


@pytest.mark.parametrize("shell", SHELLS)
def test_numbers_may_be_written_in_any_usual_way(shell: str, run: Run) -> None:
    written = ["1", "-1", "+1", "007", "00", ".5", "5.", "-0.25", "1e-3", "1E+05", "1e-400", "1e999", "nan", "-inf"]
    run.log(*(f"m{number}={text}" for number, text in enumerate(written)), shell=shell)
    assert [str(value) for _, value, _ in run.points()] == [str(float(text)) for text in written]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        *((f"loss={text}", f"loss is '{text}', not a number") for text in NO_NUMBERS),
        ("loss", "'loss' is not of the form NAME=NUMBER"),
        ("=1", "'' is not a metric's name"),
        ('a"b=1', "'a\"b' is not a metric's name"),
        ("t=1", "a metric cannot be called 't'"),
        ("step=1.5", "step is '1.5', not a whole number"),
        ("step=1", "no metric given"),
    ],
)
def test_what_is_no_metric_is_refused_and_nothing_is_written(
    shell: str, argument: str, complaint: str, run: Run
) -> None:
    answer = run.log(argument, shell=shell)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"repro-log: {complaint}")
    assert "usage: repro-log [step=N] NAME=NUMBER..." in answer.stderr
    assert run.points() == []


def test_steps_that_are_not_given_are_the_lines_of_the_file(run: Run) -> None:
    for value in (3, 2):
        run.log(f"loss={value}")
    assert run.points() == [("loss", 3.0, 0), ("loss", 2.0, 1)]


def test_nothing_but_coreutils_is_needed(run: Run) -> None:
    tools = run.root / "tools"
    tools.mkdir()
    for name in ("sh", "date"):
        (tools / name).symlink_to(shutil.which(name) or name)
    run.environment["PATH"] = str(tools)
    answer = subprocess.run([REPRO_LOG, "loss=1"], env=run.environment, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert run.points() == [("loss", 1.0, 0)]


def test_processes_that_log_at_once_do_not_mix_their_lines(run: Run) -> None:
    loop = 'for n in 1 2 3 4 5 6 7 8 9 10; do "$0" step=$n loss=0.123456789; done'
    command: list[Any] = ["sh", "-c", loop, REPRO_LOG]
    several = [subprocess.Popen(command, env=run.environment) for _ in range(6)]
    assert [process.wait() for process in several] == [0] * 6
    assert sorted(run.points()) == sorted([("loss", 0.123456789, n) for n in range(1, 11)] * 6)


def test_outside_of_a_run_a_shell_prints_its_metrics(by_hand: Run) -> None:
    assert by_hand.log("step=1", "loss=0.5").stdout == "step=1 loss=0.5\n"


def test_a_journal_that_cannot_be_written_is_an_error(run: Run) -> None:
    run.environment["REPRO_JOURNAL"] = str(run.root / "nowhere")
    assert run.log("loss=1").returncode != 0


def test_a_point_that_a_full_disk_took_half_of_does_not_spoil_the_next_one(run: Run) -> None:
    code = """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        repro_run.log(step=0, loss=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))  # in the middle of the second line
        try:
            repro_run.log(step=1, loss=2)
        except OSError as error:
            print(error.strerror)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        repro_run.log(step=2, loss=3)
    """
    assert run.printed(code) == "File too large"
    events = run.events()
    assert ([(point.step, point.value) for point in events.metrics], events.unread) == ([(0, 1.0), (2, 3.0)], 1)
