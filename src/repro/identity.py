"""Records -> the names of a run: of its record, of all that went in, of all that came out. Pure.

`docs/run-folder.md` defines the three, for whoever wants to compute them without us. Each definition has a number,
which is part of what is hashed: a digest of one definition is never one of another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
import rfc8785

from repro.record import Ended, Planned, Record
from repro.stabilize.pairing import pairing_names

RUN_KEY, RESULT = 1, 1  # the definitions
SAFE = 2**53  # from here on, JSON's numbers do not tell two integers apart
NAMES_OF_THE_RUN = ("REPRO_RUN",)  # in the environment: they say which run it is, and decide nothing
# of the configuration: what can decide a result and is nowhere else in the record in a truer form
DECIDING = ("name", "params", "seed", "deterministic", "user")
LIMITS = ("cpus", "memory", "shm", "tmp", "pids")  # that a program can see, or run into
PROMISES = ("ignore", "by_products", "by_product_metrics")  # of `outputs`: what of all that comes out is the result


def canonical(value: Any) -> bytes:
    """The one JSON form of a value: RFC 8785, and what JSON cannot hold, told apart.

    Of our values, members with their default are left out, so that a later version, which knows more of them, gives
    the same bytes for a record of today. Integers of 2**53 and more, which RFC 8785 refuses, become
    `{"$integer": "9007199254740993"}`, and numbers that are not finite `{"$float": "nan"}`; a user's own key that
    begins with `$` gets another one.
    """
    return rfc8785.dumps(_plain(value))


def plain(value: Any) -> Any:
    """What a canonical form was made of: the way back of `canonical`, from decoded JSON."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$integer"}:
        return int(value["$integer"])
    if value.keys() == {"$float"}:
        return float(value["$float"])
    return {key.removeprefix("$"): plain(each) for key, each in value.items()}


def record_digest(record: Record) -> str:
    """The sha256 that names a record. Only that of a run which is over stays as it is."""
    return hashlib.sha256(canonical(record)).hexdigest()


def run_key(planned: Planned) -> str:
    """The sha256 over all that goes into a run and decides its result; "" where the image is not known.

    Runs of one key should have one result, on machines of one kind. What only tells of time, place and person is
    not in it, nor is what merely names the image: a commit, a tag, a recipe.
    """
    image, config = planned.image, planned.config
    if not (image.content or image.id):
        return ""
    limits, outputs = config.get("resources") or {}, config.get("outputs") or {}
    secrets = config.get("secrets") or {}
    return _digest(
        {
            "run key": RUN_KEY,
            "code": {"tree": planned.code.tree, "prefix": planned.code_prefix},
            "command": list(planned.command),
            "environment": {name: text for name, text in planned.env.items() if name not in NAMES_OF_THE_RUN},
            "config": {name: _exact(config.get(name)) for name in DECIDING},
            "secrets": {name: secret.get("to", "file") for name, secret in secrets.items()},
            "limits": {name: _exact(limits.get(name)) for name in LIMITS},
            "promises": {name: list(outputs.get(name) or ()) for name in PROMISES},
            "data": {dataset.name: dataset.digest for dataset in planned.data},
            "image": {
                "content": image.content or image.id,
                "settings": image.settings,
                "platform": image.platform,
            },
            "gpus": planned.gpus_asked,
            "network": planned.network,
            "helper": planned.helper,
        }
    )


def result(ended: Ended) -> str:
    """The sha256 over what came out of a run and is no by-product: files, metrics, exit code; "" where that is open.

    Of a file that a stabilizer knows, what is left after it counts. A file that one is meant for and that nobody had
    the time or the memory to read could be the same as another's, or not: then nothing can be said.
    """
    files = [file for file in ended.outputs if file.role == "result"]
    if any(file.unsettled for file in files):
        return ""
    names = pairing_names(file.path for file in files)
    return _digest(
        {
            "result": RESULT,
            "exit code": ended.exit_code,
            "files": {
                names[file.path]: [file.canonical.stabilizer, file.canonical.sha256]
                if file.canonical
                else ["bytes", file.sha256]
                for file in files
            },
            "metrics": {
                series.name: [series.count, series.sha256] for series in ended.metrics if series.role == "result"
            },
        }
    )


def result_of(record: Record) -> str:
    """The result of a run, reckoned where its record is older than results; "" where not all is known that came out."""
    if record.ended is None or record.ended.result or record.planned.run_key:
        return record.ended.result if record.ended else ""
    return result(record.ended)


def contradictions(record: Record) -> Iterator[str]:
    """Where a record is not what its own names say: it was changed after it was written."""
    planned, ended = record.planned, record.ended
    if planned.run_key and run_key(planned) != planned.run_key:
        yield "record.json: what went in is not what its run key says"
    if ended and ended.result and result(ended) != ended.result:
        yield "record.json: what came out is not what its result says"


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def _exact(value: Any) -> Any:
    """With whole floats kept apart from integers: JSON does not, and Python's `range` does."""
    if isinstance(value, float) and value.is_integer():
        return _Apart("$float", repr(value))
    if isinstance(value, dict):
        return {key: _exact(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_exact(each) for each in value]
    return value


class _Apart:
    """What JSON has no number for: a text with the name of its kind."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind, self.text = kind, text


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        found = ((name, getattr(value, name), default) for name, default in _fields(type(value)))
        return {name: _plain(each) for name, each, default in found if each != default}
    if isinstance(value, dict):
        return {f"${key}" if key.startswith("$") else key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, _Apart):
        return {value.kind: value.text}
    return _leaf(value if value is None or isinstance(value, (bool, float)) else msgspec.to_builtins(value))


def _leaf(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, int) and abs(value) >= SAFE:
        return {"$integer": str(value)}
    return value


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[tuple[str, Any], ...]:
    """Names and defaults; the number of a schema is always told."""
    nothing = object()  # equals no value
    found = []
    for field in msgspec.structs.fields(kind):
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        found.append((field.name, nothing if default is msgspec.NODEFAULT or field.name == "schema" else default))
    return tuple(found)
