"""What an experiment may ask of the run that it is part of: its configuration, data, outputs, metrics, seed.

`repro` mounts this file into the container; it needs nothing but Python's standard library, 3.8 or later. NumPy,
TensorFlow, Keras and PyTorch are used where the experiment has them, and never imported for their own sake.
"""

import difflib
import importlib.abc
import importlib.util
import io
import json
import math
import os
import random
import sys
import threading
import time
import zipfile
from pathlib import Path

import repro_fingerprint


class NotInRunError(RuntimeError):
    """The program was started by hand, and asks for something that only a run has."""


class Settings(dict):
    """A dict whose members are attributes too: `config.params.epochs`."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(_unknown("setting", name, self)) from None

    def __setattr__(self, name, value):
        raise AttributeError(f"{name}: the configuration is frozen")


def config():
    """The frozen configuration of this run; `config().params` are the experiment's own settings."""
    text = Path(_environment("REPRO_CONFIG")).read_text(encoding="utf-8")
    return json.loads(text, object_hook=Settings)


def data(name):
    """The folder of a dataset, read-only."""
    root = Path(_environment("REPRO_DATA"))
    folder = root / name
    if not folder.is_dir():
        there = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        raise FileNotFoundError(f"{_unknown('dataset', name, there)}. Declare it under `data` in the configuration")
    return folder


def outputs():
    """The folder for what the experiment makes; it is the run's `outputs` on the host."""
    folder = Path(_environment("REPRO_OUTPUTS"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def log(step=None, **metrics):
    """Record metrics, visible while the experiment runs: `log(step=3, loss=0.1)`.

    Without a step, the n-th call is step n (from 0). Values are anything that `float` takes. Outside of a run they
    are printed.
    """
    if step is None:
        step = _journal.calls
    _journal.calls += 1
    numbers = {name: _number(name, value) for name, value in metrics.items()}
    now = int(time.time() * 1000)
    lines = [{"t": "m", "k": name, "v": value, "ts": now, "s": int(step)} for name, value in numbers.items()]
    if not _journal.append(lines):
        print(f"step {int(step)}", *(f"{name} {value}" for name, value in numbers.items()), sep="  ", flush=True)


def seed(n=None):
    """Seed every random generator: Python's, and those of NumPy, TensorFlow and PyTorch.

    A library that is not imported yet is seeded when it is. Where the configuration says `deterministic` (and outside
    of a run), TensorFlow and PyTorch are told to use deterministic operations alone. Returns the seed; without `n` it
    is the configuration's.
    """
    in_run = "REPRO_CONFIG" in os.environ
    if n is None and not in_run:
        raise NotInRunError("seed(): not in a run of `repro`, so there is no configured seed; say which: seed(1)")
    settings = config() if in_run else Settings()
    n = settings.seed if n is None else int(n)
    random.seed(n)
    _seeder.start(n, settings.get("deterministic", True))
    return n


def save_weights(model, path="weights.npz"):
    """Write weights as an .npz whose bytes depend on nothing but the weights; returns their sha256.

    `model` is a Keras model, a PyTorch module, or a dict of name -> array. A relative path is below `outputs()`. The
    sha256 is not that of the file but of names, types, shapes and values, and will stay when the file format changes.
    """
    path = Path(path)
    if not path.is_absolute():
        path = outputs() / path
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = repro_fingerprint.weights(model)
    arrays = {name: repro_fingerprint.array(values) for name, values in weights.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, values in sorted(arrays.items()):
            _write_member(archive, name, values)
    return repro_fingerprint.digest(arrays, whole=True)


def fingerprint(at, *, model=None, values=None, **arrays):
    """Note what the experiment is like now, so that two runs can be compared moment by moment.

    `at` names the moment and is best unique: `fingerprint("step 100", model=model, values={"loss": loss})`. `model`
    is as for `save_weights`, `values` are numbers by name; everything else is an array, a number, text or bytes of
    Python's, or tuples, lists and dicts of these: `fingerprint("input", images=x)`. It never raises, and does nothing
    outside of a run.
    """
    if "REPRO_JOURNAL" not in os.environ:
        return
    try:
        digests = {name: repro_fingerprint.digest(repro_fingerprint.leaves(each)) for name, each in arrays.items()}
        if model is not None:
            weights = repro_fingerprint.weights(model, unique=True)
            if weights:  # else it is not built yet
                digests["weights"] = repro_fingerprint.digest(weights)
        numbers = {str(name): float(value).hex() for name, value in (values or {}).items()}
        _journal.append([{"t": "fp", "at": str(at), "d": digests, "v": numbers, "ts": int(time.time() * 1000)}])
    except Exception as error:  # noqa: BLE001 - frameworks raise of everything, and it is worth no run
        _told(f"fingerprint({at!r})", error)


def batches(iterable, name=""):
    """The same batches, with a fingerprint of the first one of each pass: `for x, y in batches(loader, "train")`.

    For loops of one's own: loaders of PyTorch's, data sets of TensorFlow's, lists, generators. With a `name`, several
    of them in one experiment are told apart.
    """
    before = f"{name} pass" if name else "pass"
    return repro_fingerprint.Batches(
        iterable, lambda number, batch: fingerprint(f"{before} {number} batch 1", batch=batch)
    )


def save_model(model, path="model.keras"):
    """Write a Keras model as a .keras file whose bytes depend on nothing but the model; returns its path.

    Keras's own `model.save` puts the time and addresses in memory into it. A relative path is below `outputs()`.
    """
    import repro_keras

    path = Path(path)
    if not path.is_absolute():
        path = outputs() / path
    repro_keras.save(model, path)
    return path


def __getattr__(name):
    """`KerasCallback` is made when it is first asked for: its base class needs Keras."""
    if name == "KerasCallback":
        globals()[name] = _keras_callback()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# the configuration -----------------------------------------------------------------------------------------------


def _environment(name):
    if name not in os.environ:
        raise NotInRunError(f"not in a run of `repro`: {name} is not set. Start with `repro run`, or set it by hand")
    return os.environ[name]


def _unknown(what, name, known):
    near = difflib.get_close_matches(name, list(known), n=1)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    return f"no {what} {name!r}{meant}; there " + (f"are: {', '.join(sorted(known))}" if known else "are none")


# the journal -----------------------------------------------------------------------------------------------------


class _Journal:
    """Event lines in a file that this process alone writes."""

    def __init__(self):
        self.calls = 0
        self.lock = threading.Lock()
        self.file = None  # (process, descriptor): a forked child opens its own
        self.torn = False  # a full disk took a part of a line
        if hasattr(os, "register_at_fork"):  # a fork while another thread writes would leave the lock with nobody
            os.register_at_fork(before=self._hold, after_in_parent=self._let_go, after_in_child=self._forked)

    def _hold(self):
        self.lock.acquire()

    def _let_go(self):
        self.lock.release()

    def _forked(self):
        self.lock = threading.Lock()

    def append(self, events):
        """Write the events at once; False when there is no run to write for."""
        folder = os.environ.get("REPRO_JOURNAL")
        if folder is None:
            return False
        lines = "".join(json.dumps(event) + "\n" for event in events).encode()
        with self.lock:
            lines = b"\n" + lines if self.torn else lines
            if self.file is None or self.file[0] != os.getpid():
                path = Path(folder, f"events-{os.getpid()}-{os.urandom(4).hex()}.jsonl")
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
                self.file = os.getpid(), os.open(str(path), flags, 0o644)
            self.torn = True
            while lines:  # a pipe or a full disk may take a part
                lines = lines[os.write(self.file[1], lines) :]
            self.torn = False
        return True

    def tag(self, name, value):
        self.append([{"t": "tag", "k": name, "v": str(value)}])


_journal = _Journal()
_told = repro_fingerprint.Told()


def _number(name, value):
    """A value as JSON takes it: what is not finite becomes a word."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"log(): {name} is {value!r}, not a number") from None
    if math.isnan(number):
        return "nan"
    return number if math.isfinite(number) else "inf" if number > 0 else "-inf"


# random generators -----------------------------------------------------------------------------------------------


def _seed_numpy(numpy, n, _deterministic):
    numpy.random.seed(n)


def _seed_tensorflow(tensorflow, n, deterministic):
    if deterministic:
        tensorflow.config.experimental.enable_op_determinism()
    tensorflow.random.set_seed(n)
    _journal.tag("framework_gpus", len(tensorflow.config.list_physical_devices("GPU")))


def _seed_keras(keras, n, _deterministic):
    keras.utils.set_random_seed(n)  # Keras's own generator, and once more Python's, NumPy's and the backend's


def _seed_torch(torch, n, deterministic):
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses to be deterministic
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(n)
    _journal.tag("framework_gpus", torch.cuda.device_count())


_SOW = {"numpy": _seed_numpy, "tensorflow": _seed_tensorflow, "keras": _seed_keras, "torch": _seed_torch}


class _Seeder(importlib.abc.MetaPathFinder):
    """Seeds libraries: those that are loaded now, the others as soon as the experiment has imported them.

    Importing TensorFlow takes seconds, so an experiment that does not use it must not pay for its being installed;
    and `repro_run.seed()` has to be right whether it stands above or below `import tensorflow`.
    """

    def __init__(self):
        self.waiting = {}  # library -> seed, deterministic

    def start(self, n, deterministic):
        self.waiting = {}
        for name, sow in _SOW.items():
            if name in sys.modules:
                sow(sys.modules[name], n, deterministic)
            else:
                self.waiting[name] = n, deterministic
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(self, fullname, _path=None, _target=None):
        if fullname not in self.waiting:
            return None
        asked = self.waiting.pop(fullname)
        spec = importlib.util.find_spec(fullname)  # by the others: we do not wait for it any more
        if spec is None or not hasattr(spec.loader, "exec_module"):
            return spec
        execute = spec.loader.exec_module

        def execute_and_seed(module):
            execute(module)
            _SOW[fullname](module, *asked)

        spec.loader.exec_module = execute_and_seed
        return spec


_seeder = _Seeder()


# Keras and weights -----------------------------------------------------------------------------------------------


def _keras_callback():
    try:
        from keras.callbacks import Callback
    except ImportError:
        from tensorflow.keras.callbacks import Callback

    class KerasCallback(Callback):
        """Records what Keras reports at the end of each epoch; the first epoch is step 1.

        Weights and losses are fingerprinted at the beginning, after the first batch, and after each epoch. There is
        no hook for batches: Keras would wait for the numbers of each one, which costs a GPU more than it trains.
        """

        _undo = None

        def on_train_begin(self, logs=None):  # noqa: ARG002 - Keras calls it by name
            model = getattr(self, "model", None)
            fingerprint("init", model=model)
            self._undo = _after_first_batch(model)

        def on_train_end(self, logs=None):  # noqa: ARG002
            if self._undo:
                self._undo()

        def on_epoch_end(self, epoch, logs=None):
            log(step=epoch + 1, **(logs or {}))
            fingerprint(f"epoch {epoch + 1}", model=getattr(self, "model", None), values=_numbers(logs))

    return KerasCallback


def _after_first_batch(model):
    """Fingerprint a model when its next batch is done; returns what calls that off."""
    train = getattr(model, "train_function", None)
    if not callable(train) or "REPRO_JOURNAL" not in os.environ:
        return None

    def call_off():
        if model.train_function is first:
            model.train_function = train

    def first(*arguments, **options):
        call_off()
        logs = train(*arguments, **options)
        if isinstance(logs, dict):  # else the weights are not in the model yet: JAX
            fingerprint(f"batch {_batches_in_a_step(model)}", model=model, values=_numbers(logs))
        return logs

    try:
        model.train_function = first
    except Exception as error:  # noqa: BLE001
        _told("KerasCallback", error)
    return call_off


def _batches_in_a_step(model):
    try:
        return int(getattr(model, "steps_per_execution", 1))
    except (TypeError, ValueError):
        return 1


def _numbers(logs):
    """What of Keras's logs are numbers."""
    found = {}
    for name, value in (logs or {}).items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            continue
    return found


def _write_member(archive, name, array):
    from numpy.lib import format as npy

    content = io.BytesIO()
    npy.write_array(content, array, version=(1, 0), allow_pickle=False)
    member = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3  # else the bytes would tell where they were written
    member.external_attr = 0o644 << 16
    archive.writestr(member, content.getvalue())
