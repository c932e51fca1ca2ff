"""Many records -> which run keys have had more than one result. Only what is of interest is read of each record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from repro.experiment import Value
from repro.record import End, RunFolder


class Results(Value, frozen=True, kw_only=True):
    """The finished runs of one run key."""

    runs: int
    results: int  # how many different ones
    proven: bool  # two of them came from machines of one kind, so it is not the machine

    @property
    def mark(self) -> str:
        """Behind a result in a list."""
        if self.results < 2:
            return ""
        return " !" if self.proven else " ~"


class _Host(msgspec.Struct, frozen=True):
    cpu: str = ""
    cpu_flags: tuple[str, ...] = ()
    gpus: tuple[dict[str, Any], ...] = ()


class _Config(msgspec.Struct, frozen=True):
    secrets: Any = None


class _Planned(msgspec.Struct, frozen=True):
    run_key: str = ""
    network: str = "none"
    config: _Config = _Config()
    host: _Host = _Host()


class _Started(msgspec.Struct, frozen=True):
    gpus: str = ""


class _Ended(msgspec.Struct, frozen=True):
    end: str = ""
    result: str = ""


class _Record(msgspec.Struct, frozen=True):
    """What of a record, of any version, tells its key, its result and its kind of machine."""

    planned: _Planned
    started: _Started | None = None
    ended: _Ended | None = None

    @property
    def kind(self) -> object:
        """What can make results differ of machines; None where nothing is known of it, or of more that went in."""
        if self.planned.network != "none" or self.planned.config.secrets:
            return None
        host = self.planned.host
        gpus = tuple((gpu.get("name"), gpu.get("driver")) for gpu in host.gpus)
        given = self.started.gpus if self.started else ""
        if not host.cpu or (given != "none" and not gpus):
            return None
        return host.cpu, host.cpu_flags, given, gpus


def of(folders: Iterable[RunFolder]) -> Mapping[str, Results]:
    """The run keys that more than one finished run has."""
    found: dict[str, list[tuple[str, object]]] = {}
    for folder in folders:
        try:
            record = _read(folder)
        except (OSError, msgspec.MsgspecError):  # damaged, or gone: other commands tell
            continue
        if record.ended and record.ended.end == End.FINISHED.value and record.ended.result and record.planned.run_key:
            found.setdefault(record.planned.run_key, []).append((record.ended.result, record.kind))
    return {key: _results(each) for key, each in found.items() if len(each) > 1}


def _read(folder: RunFolder) -> _Record:
    return _DECODER.decode(folder.record.read_bytes())


_DECODER = msgspec.json.Decoder(_Record)


def _results(runs: list[tuple[str, object]]) -> Results:
    kinds: dict[object, set[str]] = {}
    for result, kind in runs:
        kinds.setdefault(kind, set()).add(result)
    proven = any(len(results) > 1 for kind, results in kinds.items() if kind is not None)
    return Results(runs=len(runs), results=len({result for result, _kind in runs}), proven=proven)
