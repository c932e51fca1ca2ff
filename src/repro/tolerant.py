"""What another version wrote -> our values: members that we do not know are named and left out; pure."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import inspect

Read = TypeVar("Read")


def read(value: Any, of: type[Read]) -> tuple[Read, tuple[str, ...]]:
    """Plain JSON as a value of ours, and the paths of what is not in it.

    Raises:
        msgspec.ValidationError: a member that we know has a value that cannot be.
    """
    unknown: list[str] = []
    return msgspec.convert(_known(value, inspect.type_info(of), "", unknown), of), tuple(unknown)


def _known(value: Any, kind: inspect.Type, path: str, unknown: list[str]) -> Any:
    """`value` without the members that its type does not have, all the way down."""
    if isinstance(kind, inspect.Metadata):
        return _known(value, kind.type, path, unknown)
    if isinstance(kind, inspect.UnionType):
        inner = [each for each in kind.types if isinstance(each, (inspect.StructType, inspect.Metadata))]
        return _known(value, inner[0], path, unknown) if inner and isinstance(value, dict) else value
    if isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        return [_known(each, kind.item_type, path, unknown) for each in value]
    if isinstance(kind, inspect.DictType) and isinstance(value, dict):
        return {key: _known(each, kind.value_type, f"{path}{key}.", unknown) for key, each in value.items()}
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        types = {field.encode_name: field.type for field in kind.fields}
        unknown += [path + key for key in value if key not in types]
        return {key: _known(each, types[key], f"{path}{key}.", unknown) for key, each in value.items() if key in types}
    return value
