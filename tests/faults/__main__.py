"""Runs with faults, as many as asked for: `python -m tests.faults --runs 207`. Needs root, dockerd and an engine.

Exit code 1 when anything did not hold. The same seed gives the same faults at the same moments.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from repro.engines.engine import connect
from repro.recipe import base
from tests.engine_fixtures import RECIPE
from tests.faults.cases import FAULTS, cases
from tests.faults.suite import run, summary, table
from tests.faults.trial import Result


def main() -> int:
    """Run the suite; print a line for each run, evidence for what did not hold, and a table."""
    flags = parser().parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what we start must be able to be interrupted
    seed = random.SystemRandom().randrange(10**6) if flags.seed is None else flags.seed
    chosen = cases(seed, flags.runs, flags.only)
    if flags.case is not None:
        chosen = [case for case in chosen if case.index in flags.case]
    print(f"{len(chosen)} runs, seed {seed}, {flags.workers} at a time", flush=True)
    tag = base.ensure(RECIPE, connect(), say=print)
    keep = Path(tempfile.mkdtemp(prefix="faults-kept-"))
    results: list[Result] = []
    begun = time.monotonic()
    for result in run(chosen, tag, flags.workers, keep, lambda text: print(text, flush=True)):
        results.append(result)
        bad = sum(bool(each.violations) for each in results)
        took = "" if result.seconds is None else f" {result.seconds:.1f} s"
        print(
            f"[{len(results)}/{len(chosen)} {time.monotonic() - begun:.0f} s, {bad} bad] {result.case.index:3d} "
            f"{result.case.fault} {result.case.after:.2f} s after {result.case.moment}: {result.end}{took}",
            flush=True,
        )
    print(table(results))
    if flags.json:
        text = json.dumps(
            {"seed": seed, "seconds": round(time.monotonic() - begun), "rows": summary(results)}, indent=2
        )
        flags.json.write_text(text + "\n")
    if not any(keep.iterdir()):
        keep.rmdir()
    return int(any(result.violations for result in results))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    flags = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    flags.add_argument("--runs", type=int, default=9 * len(FAULTS), metavar="N", help="each fault in turn")
    flags.add_argument("--seed", type=int, help="without one, another each time")
    flags.add_argument(
        "--workers", type=int, default=3, metavar="N", help="each with an engine and a server of its own"
    )
    flags.add_argument("--only", nargs="+", choices=sorted(FAULTS), default=(), metavar="FAULT")
    flags.add_argument("--case", nargs="+", type=int, metavar="INDEX", help="of the runs of this seed, only these")
    flags.add_argument("--json", type=Path, metavar="FILE", help="the table, for docs/reliability.md")
    return flags


if __name__ == "__main__":
    sys.exit(main())
