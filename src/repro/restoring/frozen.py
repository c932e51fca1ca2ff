"""The frozen configuration of a record -> Experiment, whichever version wrote it; pure. Nothing is composed anew."""

from __future__ import annotations

from typing import Any

import msgspec

from repro.errors import BadInputError
from repro.experiment import Experiment, Value
from repro.record import Record


class Thawed(Value, frozen=True, kw_only=True):
    """A configuration as far as this version understands it."""

    experiment: Experiment
    unknown: tuple[str, ...]  # settings of another version, by their path: the container sees them, we do not


def thaw(record: Record) -> Thawed:
    """The experiment of a record. Settings that are new since have their defaults, those that are gone are named.

    Raises:
        BadInputError: a setting has a value that this version cannot read.
    """
    unknown: list[str] = []
    known = _known(record.planned.config, Experiment, "", unknown)
    try:
        experiment = msgspec.convert(known, Experiment)
    except msgspec.ValidationError as error:
        raise BadInputError(
            f"the configuration of run {record.planned.run} cannot be read by this version",
            evidence=[str(error), f"recorded by repro {record.planned.repro}"],
            hints=[f"use that version: pip install 'repro=={record.planned.repro}'"],
        ) from error
    return Thawed(experiment=experiment, unknown=tuple(unknown))


def _known(value: Any, of: Any, path: str, unknown: list[str]) -> Any:
    """`value` without the members that its type does not have, all the way down."""
    return _pruned(value, msgspec.inspect.type_info(of), path, unknown)


def _pruned(value: Any, kind: msgspec.inspect.Type, path: str, unknown: list[str]) -> Any:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _pruned(value, kind.type, path, unknown)
    if isinstance(kind, msgspec.inspect.UnionType):
        structs = [each for each in kind.types if isinstance(each, (msgspec.inspect.StructType))]
        return _pruned(value, structs[0], path, unknown) if structs and isinstance(value, dict) else value
    if isinstance(kind, msgspec.inspect.DictType) and isinstance(value, dict):
        return {key: _pruned(each, kind.value_type, f"{path}{key}.", unknown) for key, each in value.items()}
    if isinstance(kind, msgspec.inspect.StructType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in kind.fields}
        unknown += [path + key for key in value if key not in fields]
        return {
            key: _pruned(each, fields[key], f"{path}{key}.", unknown) for key, each in value.items() if key in fields
        }
    return value
