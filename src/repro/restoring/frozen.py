"""The frozen configuration of a record -> Experiment, whichever version wrote it; pure. Nothing is composed anew."""

from __future__ import annotations

import msgspec

from repro import tolerant
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
    try:
        experiment, unknown = tolerant.read(record.planned.config, Experiment)
    except msgspec.ValidationError as error:
        raise BadInputError(
            f"the configuration of run {record.planned.run} cannot be read by this version",
            evidence=[str(error), f"recorded by repro {record.planned.repro}"],
            hints=["use the version that recorded it"],
        ) from error
    return Thawed(experiment=experiment, unknown=unknown)
