"""What `repro prune` removes is decided by a pure function."""

from __future__ import annotations

from datetime import datetime, timezone

import msgspec
import pytest

from repro.housekeeping import Row, plan_prune
from repro.lockfile import Lock, LockedImage

ROW = Row(
    tag="my-tf:0123456789abcdef",
    id="sha256:1",
    spec="0" * 64,
    size=1 << 30,
    created=datetime(2026, 11, 23, tzinfo=timezone.utc),
    runs=(),
    in_use=False,
)
LOCK = Lock(
    images={"debian": LockedImage(spec="0" * 64, base="b", base_resolved="r", id="sha256:1", platform="linux/amd64")}
)


def row(**changes: object) -> Row:
    return msgspec.structs.replace(ROW, **changes)


def test_an_image_that_nothing_needs_goes() -> None:
    plan = plan_prune([ROW], Lock())
    assert (plan.removed, plan.kept) == ((ROW,), ())


@pytest.mark.parametrize(
    ("kept", "lock", "why"),
    [
        (row(runs=("run-1", "run-2")), Lock(), "2 recorded runs need it, the last run-2"),
        (ROW, LOCK, "repro.lock names it for debian"),
        (row(in_use=True), Lock(), "a container uses it"),
    ],
)
def test_an_image_that_something_needs_stays_and_says_why(kept: Row, lock: Lock, why: str) -> None:
    plan = plan_prune([kept], lock)
    assert plan.removed == ()
    assert [(each.tag, each.why) for each in plan.kept] == [(ROW.tag, why)]


def test_force_takes_what_runs_and_the_lock_need_but_never_what_a_container_uses() -> None:
    needed, locked, busy = row(runs=("r",)), row(tag="my-tf:locked"), row(in_use=True, runs=("r",))
    plan = plan_prune([needed, locked, busy], LOCK, force=True)
    assert plan.removed == (needed, locked)
    assert [each.why for each in plan.kept] == ["a container uses it"]


def test_a_plan_is_json() -> None:
    assert b'"removed":[{"tag":' in msgspec.json.encode(plan_prune([ROW], Lock()))


def test_what_the_lock_names_stays_and_other_builds_of_it_go() -> None:
    older = row(id="sha256:0", tag="sha256:0")
    plan = plan_prune([older, ROW], LOCK)
    assert (plan.removed, [each.tag for each in plan.kept]) == ((older,), [ROW.tag])


def test_where_the_locked_image_is_gone_another_build_of_its_spec_stays() -> None:
    other = row(id="sha256:2")
    assert plan_prune([other], LOCK).removed == ()
