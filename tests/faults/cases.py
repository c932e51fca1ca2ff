"""Which fault strikes which run, when, and which ends it allows: all of it follows from the seed; pure."""

from __future__ import annotations

import random
from collections.abc import Sequence

from repro.experiment import Value

STEP_SECONDS = 0.02
INTERRUPTED = 7  # exit code of an experiment that handles signals, when it was sent one

# Ends that a fault allows. `own`: as the experiment ends by itself, with its exit code and all of its steps.
OWN, STOPPED, HANDS, FULL = "own", "stopped", "hands", "full"


class Fault(Value, frozen=True, kw_only=True):
    """What strikes, and what may come of it."""

    words: str  # for a table
    ends: str = OWN
    foreground: bool | None = None  # None: either
    store: str = ""  # "": either
    moments: tuple[str, ...] = ("launch", "made", "begun", "done")
    prevents: bool = False  # when it strikes before the start, there may be no run at all


FAULTS = {
    "kill-repro": Fault(words="kill -9 of `repro run`", foreground=True, prevents=True),
    "kill-detaching": Fault(
        words="kill -9 of `repro run -d`", foreground=False, moments=("launch", "made"), prevents=True
    ),
    "kill-keeper": Fault(words="kill -9 of the keeper", foreground=False, moments=("begun", "done")),
    "kill-repro-and-keeper": Fault(
        words="kill -9 of `repro run`, then of the keeper that took over", foreground=True, moments=("begun", "done")
    ),
    "kill-publisher": Fault(words="kill -9 of the publisher", moments=("begun", "done")),
    "kill-both": Fault(words="kill -9 of keeper and publisher", moments=("begun", "done")),
    "kill-engine": Fault(words="kill -9 of dockerd, restart", prevents=True),
    "restart-engine": Fault(words="stop and start of dockerd", prevents=True),
    "freeze-engine": Fault(words="SIGSTOP of dockerd, SIGCONT"),
    "pause-container": Fault(words="docker pause, unpause", moments=("begun",)),
    "sigterm": Fault(words="SIGTERM", ends=STOPPED, foreground=True, prevents=True),
    "ctrl-c": Fault(words="Ctrl-C", ends=STOPPED, foreground=True, prevents=True),
    "ctrl-c-twice": Fault(words="Ctrl-C, twice", ends=STOPPED, foreground=True, prevents=True),
    "hang-up": Fault(words="closed terminal (SIGHUP)", foreground=True, prevents=True),
    "server-restart": Fault(words="tracking server stopped and started", store="http"),
    "server-kill": Fault(words="tracking server: kill -9, start", store="http"),
    "store-locked": Fault(words="sqlite store locked", store="sqlite"),
    "disk-full": Fault(words="disk of the runs full", ends=FULL, prevents=True),
    "stop": Fault(words="`repro stop` from another shell", ends=STOPPED),
    "docker-kill": Fault(words="docker kill by hand", ends=HANDS, moments=("begun",)),
    "docker-rm": Fault(words="docker rm -f by hand", ends=HANDS, moments=("begun", "done")),
    "kill-repro-and-engine": Fault(words="kill -9 of `repro run` and of dockerd", foreground=True, prevents=True),
    "kill-publisher-and-server": Fault(
        words="kill -9 of publisher and server", store="http", moments=("begun", "done")
    ),
}


class Case(Value, frozen=True, kw_only=True):
    """One run and its fault. Times are seconds."""

    seed: int
    index: int
    fault: str
    moment: str  # launch: since the command; made: since its folder was there; begun: its first step; done: its last
    after: float
    lasts: float  # of a fault that is undone
    idle: float  # until the user looks again
    foreground: bool
    store: str  # sqlite, http
    steps: int
    code: int  # that the experiment ends with
    handles: bool  # the experiment: SIGINT and SIGTERM, with a `finally`

    @property
    def before_start(self) -> bool:
        """Whether the fault may come before the container runs."""
        return self.moment in ("launch", "made")

    @property
    def title(self) -> str:
        """One line that says all of it."""
        how = "foreground" if self.foreground else "-d"
        signals = "handles signals" if self.handles else "leaves signals alone"
        return (
            f"{self.fault} {self.after:.2f} s after {self.moment}, for {self.lasts:.2f} s, next look {self.idle:g} s "
            f"later; {how}, {self.store}, {self.steps} steps, exit {self.code}, {signals}"
        )


def cases(seed: int, runs: int, only: Sequence[str] = ()) -> list[Case]:
    """The cases of a seed: every fault in turn, in an order that differs from round to round."""
    names = list(only or FAULTS)
    order: list[str] = []
    for number in range(-(-runs // len(names))):
        order += random.Random(f"{seed} round {number}").sample(names, len(names))
    return [_case(seed, index, name) for index, name in enumerate(order[:runs])]


def _case(seed: int, index: int, name: str) -> Case:
    fault, dice = FAULTS[name], random.Random(f"{seed} case {index} {name}")
    moment = dice.choice(fault.moments)
    steps = dice.randint(100, 200)
    length = steps * STEP_SECONDS
    latest = {"launch": 1.5, "made": 0.6, "begun": length * 0.95, "done": 0.5}[moment]
    return Case(
        seed=seed,
        index=index,
        fault=name,
        moment=moment,
        after=round(dice.uniform(0, latest), 3),
        lasts=round(dice.uniform(0.2, 3.0), 3),
        idle=dice.choice((0.0, 0.0, 0.5, 2.0)),
        foreground=dice.random() < 0.5 if fault.foreground is None else fault.foreground,
        store=fault.store or dice.choice(("sqlite", "http")),
        steps=steps,
        code=dice.choice((0, 3)),
        handles=dice.random() < 0.5,
    )
