"""What an engine and a person say of a container's end -> how the run ended and why, in words; pure."""

from __future__ import annotations

import signal
from datetime import datetime, timedelta

from repro.engines.answers import Exit
from repro.experiment import Value
from repro.record import End

UNKNOWN_CODE = 255  # what Docker says of a container that ended while its daemon was away, when it learns no more
SIGNALS = 128  # above it, an exit code names the signal that ended the command
FROM_OUTSIDE = {signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGQUIT}
CLOCK = timedelta(seconds=0.1)  # an engine's clock and a sleep's differ by less

# signals that a program brings upon itself, and what is usually behind them
CRASHES = {
    signal.SIGSEGV: "segmentation fault: often a compiled library that does not fit the others or the driver",
    signal.SIGABRT: "aborted itself: its last lines tell why",
    signal.SIGBUS: "bus error: often /dev/shm is full; raise resources.shm",
    signal.SIGILL: "illegal instruction: it was compiled for another CPU than this one",
    signal.SIGFPE: "arithmetic error in compiled code",
}


class StopRequest(Value, frozen=True, kw_only=True):
    """Somebody wants the run to stop. On disk before it is done, so that the reason is known whoever dies then."""

    at: datetime
    by: str  # a person
    how: str  # the command, or the key
    grace: float = 0.0  # seconds that the container was given to end by itself


class Circumstance(Value, frozen=True, kw_only=True):
    """What the container's own state does not tell."""

    stop: StopRequest | None = None
    time_limit: float | None = None  # seconds
    memory: int | None = None  # bytes
    restarted: bool = False  # the machine, since the container was started
    engine_lost: bool = False  # the engine was away while it ran
    unheard: bool = False  # the engine was away when it ended
    signals: tuple[str, ...] | None = ()  # that its engine was asked to send; None: it does not remember


def verdict(exited: Exit, known: Circumstance) -> tuple[End, str]:
    """How the run ended, and why in one sentence."""
    if known.stop and (exited.code != 0 or exited.finished is None or exited.finished >= known.stop.at):
        return End.KILLED, f"stopped by {known.stop.by} ({known.stop.how})"
    if (
        known.time_limit is not None
        and exited.lasted is not None
        and exited.lasted + CLOCK >= timedelta(seconds=known.time_limit)
    ):
        return End.TIMEOUT, f"stopped at its time limit of {known.time_limit:g} s (resources.time_limit)"
    if why := _unknown(exited, known):
        return End.LOST, why
    if exited.oom:
        return End.OOM, _out_of_memory(exited, known.memory)
    if exited.code == 0:
        return End.FINISHED, "exit code 0"
    return _by_code(exited, known)


def _unknown(exited: Exit, known: Circumstance) -> str:
    """Why nobody can tell how it ended; "" when the exit code is its own."""
    if known.restarted:
        return "the machine was restarted while it ran"
    if known.unheard and exited.code == UNKNOWN_CODE:
        return "its engine was away when it ended, and cannot tell how it did"
    return ""


def _out_of_memory(exited: Exit, memory: int | None) -> str:
    limit = f" at {size(memory)}" if memory else ""
    if exited.code != SIGNALS + signal.SIGKILL:  # the command itself went on
        limit += f" (a process in it was killed; the command ended with exit code {exited.code})"
    return f"out of memory{limit}: raise resources.memory, or use less"


def size(memory: int) -> str:
    """Bytes as people set limits."""
    return f"{memory / 2**30:.3g} GiB" if memory >= 2**30 else f"{memory / 2**20:.3g} MiB"


def _by_code(exited: Exit, known: Circumstance) -> tuple[End, str]:
    sent = _signal(exited.code)
    if sent in CRASHES:
        return End.FAILED, f"exit code {exited.code}: {CRASHES[sent]}"
    if sent in FROM_OUTSIDE:
        return End.KILLED, f"ended by {sent.name} {_whom(exited, sent, known)}"
    return End.FAILED, f"exit code {exited.code}" + (f": {exited.error}" if exited.error else "")


def _signal(code: int) -> signal.Signals | None:
    try:
        return signal.Signals(code - SIGNALS) if code > SIGNALS else None
    except ValueError:
        return None


def _whom(exited: Exit, sent: signal.Signals, known: Circumstance) -> str:
    if known.engine_lost:
        return "when its engine was stopped or restarted (with `live-restore` containers go on)"
    if {str(int(sent)), sent.name, sent.name.removeprefix("SIG")} & set(known.signals or ()):
        return "that came through its engine: `docker stop`, `docker kill`, or the engine was shut down"
    if sent is signal.SIGKILL and exited.oom is None and known.memory:
        limit = f"its limit of {size(known.memory)} (resources.memory)"
        return f"from outside, or at {limit}: the engine does not tell which"
    if known.signals is None:
        return "through its engine or from outside: the engine does not remember, as after its own restart"
    return "from outside, not through its engine: a person on that machine, a batch system, or the machine's kernel"
