"""A run to compare."""

from __future__ import annotations

from dataclasses import dataclass

from repro.record import Record, RunFolder


@dataclass(frozen=True, kw_only=True)
class Side:
    """A run to compare: what is known of it, and where its files are, or were."""

    record: Record
    folder: RunFolder
