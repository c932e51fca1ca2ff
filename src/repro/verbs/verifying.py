"""`repro verify`: whether a recorded run could be had back today. Nothing is run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from repro import report
from repro.display import Display
from repro.errors import EnvironmentUnfitError, ExitCode
from repro.record import End, Record
from repro.verbs import attesting
from repro.verbs.imaging import Add
from repro.verbs.recorded import WHICH, chosen, host_now, ingredients_text, place

if TYPE_CHECKING:
    from repro.engines.engine import Engine
    from repro.restoring.auditing import Audit


def register(add: Add) -> None:
    """The verb of this module."""
    command = add(verify, "verify", "could a run be had back today? Checks every hash, runs nothing", json=True)
    command.add_argument("run", nargs="?", default="latest", help=WHICH)
    command.add_argument("--online", action="store_true", help="ask git remotes, registries and data sources, too")
    command.add_argument("--quick", action="store_true", help="sizes and ids have to do for code, data and image")
    command.add_argument(
        "--policy", metavar="FILE", help="tell only whether its signed verifications are enough: exit code 4 if not"
    )


def verify(args: argparse.Namespace, display: Display) -> int:
    """Whether a run could be had back today, and what is decaying."""
    from repro.engines.engine import connect
    from repro.restoring import auditing

    project = place(args.run)
    side = chosen(project, args.run, display)
    if args.policy:
        return attesting.judge(side.record, side.folder, Path(args.policy), json=args.json)
    try:
        engine: Engine | None = connect()
    except EnvironmentUnfitError as error:
        engine = None
        display.notice(f"without an engine nothing can be said of the image there: {error.what}")
    host = host_now(engine, side.record) if engine else side.record.planned.host
    with display.step("verify") as step:
        found = auditing.audit(side, project, engine, host, online=args.online, deep=not args.quick)
        step.detail = "by sizes and ids" if args.quick else "every hash"
    print(report.as_json(found) if args.json else "\n".join(audit_text(side.record, found)))
    if found.lost:
        return ExitCode.ENVIRONMENT
    return ExitCode.NO if found.changed else ExitCode.OK


def audit_text(record: Record, found: Audit) -> Iterator[str]:
    """The answer for people."""
    told = [
        (each.verdict.level, f"by {each.by}, {each.witness}", each.at) for each in found.verifications if each.verdict
    ]
    if found.lost:
        yield f"{found.run}: cannot be had back"
    elif record.ended is None or record.ended.end is not End.FINISHED:
        yield f"{found.run}: could be run again, but has no result to compare with ({record.state})"
    elif told and max(told)[0] < found.ceiling.level:
        tried = f"{report.many(len(told), 'attempt')} came to {max(told)[0]} at most"
        yield f"{found.run}: could be run again, {tried}; {found.ceiling.level} is the most that may be expected here"
    else:
        yield f"{found.run}: could be had back, at level {found.ceiling.level}"
    if found.ceiling.reason and not found.lost:
        yield f"  ceiling  {found.ceiling.reason}"
    yield from (f"  {line}" for line in ingredients_text(found.ingredients))
    for word, items in (("LOST", found.lost), ("CHANGED", found.changed), ("decaying", found.decay)):
        yield from (f"  {word:<8} {item}" for item in items)
    for level, whom in dict.fromkeys(one[:2] for one in told):
        days = [at for came, who, at in told if (came, who) == (level, whom)]
        times = f" {len(days)} times, the last time" if days[1:] else ""
        yield f"  verified {level}{times} on {max(days):%Y-%m-%d} {whom}"
    if stopped := len(found.verifications) - len(told):
        yield f"  verified {report.many(stopped, 'attempt')} came to no verdict"
