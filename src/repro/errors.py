"""Every failure that a user can act on, with its exit code."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command answers to the shell; the same for every verb."""

    OK = 0  # done
    NO = 1  # it ran and the answer is no: experiment failed, results differ, image out of date
    BAD_INPUT = 2  # an argument, a configuration or a file of the user's has to change
    ENVIRONMENT = 3  # engine, registry, GPU, disk or data: this machine cannot do it now
    REFUSED = 4  # possible, but a policy that the user set forbids it
    INTERRUPTED = 130


class ReproError(Exception):
    """What failed, the evidence for it, and what to try; only the command line prints it."""

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, what: str, *, evidence: Iterable[str] = (), hints: Iterable[str] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.evidence = (evidence,) if isinstance(evidence, str) else tuple(evidence)
        self.hints = (hints,) if isinstance(hints, str) else tuple(hints)

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  | {line}" for text in self.evidence for line in text.splitlines()]
        lines += [f"  try  {hint}" for hint in self.hints]
        return "\n".join(lines)


class BadInputError(ReproError):
    """Something that the user wrote has to change."""

    exit_code = ExitCode.BAD_INPUT


class EnvironmentUnfitError(ReproError):
    """This machine, its engine, its network or its disk cannot do what was asked."""

    exit_code = ExitCode.ENVIRONMENT


class EngineUnreachableError(EnvironmentUnfitError):
    """No engine answers, or it went away in the middle."""


class RefusedError(ReproError):
    """A policy of the user's (`--locked`, a kept image) forbids it."""

    exit_code = ExitCode.REFUSED
