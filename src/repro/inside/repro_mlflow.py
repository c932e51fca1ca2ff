"""MLflow's stores in a container of `repro`: what is logged goes to the run's journal, which the host reads.

MLflow finds `tracking_store` and `registry_store` by the entry points beside this file, for the address `repro:`.
Nothing is imported that the image may lack: where MLflow is not used, this file is not read.
"""

import functools
import inspect
import os
import re
import sys
import time
import uuid
from pathlib import Path

FALLBACK = "mlflow/store"  # below the outputs
TRACES = re.compile(r"(?!link_|resolve_)[a-z]\w*_(trace|assessment)")  # what would answer who asks for one


def tracking_store(store_uri=None, artifact_uri=None, **_more):
    """MLflow's tracking store; its own kind, in the outputs, where this MLflow and ours do not go together."""
    try:
        return _tracking_store()
    except Exception as error:
        folder = str(Path(os.environ.get("REPRO_OUTPUTS", "."), FALLBACK))
        warn_once(f"this MLflow is none that repro knows ({_words(error)}): what it logs is in {folder} alone")
        return _file_store(folder)


def registry_store(store_uri=None, tracking_uri=None, **_more):
    """MLflow's model registry: that of the host is out of reach, and this one says so."""
    from mlflow.store.model_registry.abstract_store import AbstractStore

    methods = (name for name in dir(AbstractStore) if not name.startswith("_") and not hasattr(Registry, name))
    why = "the model registry is the host's, and out of reach"
    return _complete("Registry", Registry, AbstractStore, **{name: _refused(name, why) for name in methods})()


def _refused(name, why):
    def method(*_arguments, **_named):
        raise refusal(f"{name}: {why}")

    return method


@functools.lru_cache(maxsize=None)
def _tracking_store():
    from mlflow.store.tracking.abstract_store import AbstractStore
    from repro_mlflow_store import Store

    methods = (name for name in dir(AbstractStore) if TRACES.match(name) and not hasattr(Store, name))
    store = _complete(
        "Store", Store, AbstractStore, **{name: _refused(name, "traces are not kept") for name in methods}
    )()
    store.get_run(store.root)  # would fail now in place of later
    return store


def _complete(name, ours, base, **more):
    """A store, also for an MLflow that wants more methods of one: those that it then calls are not implemented."""
    return type(name, (ours, base), {"__abstractmethods__": frozenset(), "__module__": __name__, **more})


def _file_store(folder):
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # else newer ones refuse
    from mlflow.store.tracking.file_store import FileStore

    return FileStore(folder, folder)


_said = set()


def warn_once(text):
    """Tell who reads the log of the run."""
    if text not in _said:
        _said.add(text)
        print(f"repro: mlflow: {text}", file=sys.stderr, flush=True)


def spared(method):
    """A method that records: when it fails for a reason of ours, the experiment hears of it and goes on."""

    @functools.wraps(method)
    def wrapper(*arguments, **named):
        from mlflow.exceptions import MlflowException

        try:
            return method(*arguments, **named)
        except MlflowException:
            raise
        except Exception as error:
            warn_once(f"{method.__name__} failed ({_words(error)}); what it was given is not recorded")
            return None

    return wrapper


def refusal(what, code="INVALID_PARAMETER_VALUE"):
    """The exception that MLflow's users expect."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    return MlflowException(f"{what} (this is a container of repro)", getattr(databricks_pb2, code))


def made(kind, **values):
    """An entity of MLflow's; values that this version of it does not know are left out."""
    return kind(**{name: value for name, value in values.items() if name in _arguments(kind)})


@functools.lru_cache(maxsize=None)
def _arguments(kind):
    return frozenset(inspect.signature(kind.__init__).parameters)


def _words(error):
    return f"{type(error).__name__}: {error}".splitlines()[0]


class Registry:
    """Takes note of what should be registered. Who owns the registry does it, with the line that `repro` shows."""

    def __init__(self, *_arguments, **_named):
        """No store behind it."""

    def create_registered_model(self, name, tags=None, description=None, *_more, **_named):
        from mlflow.entities.model_registry import RegisteredModel

        return made(RegisteredModel, name=name, creation_timestamp=_now(), description=description, tags=tags)

    def create_model_version(self, name, source, run_id=None, *_more, **named):
        from mlflow.entities.model_registry import ModelVersion
        from repro_run import _journal

        warn_once(f"{name}: registering a model is left to the host; the run's page in `repro sync` says how")
        event = {"t": "register", "k": name, "v": source, "m": named.get("model_id")}
        event["r"] = run_id if run_id != root_id() else None
        _journal.append([{key: value for key, value in event.items() if value is not None}])
        values = {"name": name, "version": "0", "source": source, "run_id": run_id, "status": "READY"}
        return made(ModelVersion, **values, creation_timestamp=_now(), status_message="left to the host")

    def _await_model_version_creation(self, *_arguments, **_named):
        """There is nothing to wait for."""


def _now():
    return int(time.time() * 1000)


def root_id():
    """The id of the run that this container is, as MLflow takes it."""
    return re.sub(r"[^\w-]", "_", os.environ["REPRO_RUN"])


def new_id():
    """An id of the container's own invention; the host has another for the same."""
    return uuid.uuid4().hex
