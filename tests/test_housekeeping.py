"""What `repro prune` removes is decided by a pure function."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import pytest

from repro import image
from repro.cleaning import housekeeping, pruning
from repro.cleaning.housekeeping import Row, plan_images
from repro.engines.engine import Engine
from repro.errors import EnvironmentUnfitError
from repro.experiment import ImageConfig
from repro.image import Image
from repro.lockfile import Lock, LockedImage
from repro.project import Project, user_name
from repro.recipe.spec import ImageSpec
from repro.record import Code, Host, ImageUsed, Planned, Record, RunFolder

ROW = Row(
    tag="my-tf:0000000000000000",
    id="sha256:1",
    spec="0" * 64,
    size=1 << 30,
    created=datetime(2026, 11, 23, tzinfo=timezone.utc),
    runs=(),
    in_use=False,
    base="debian@sha256:abc",
)
LOCK = Lock(
    images={"debian": LockedImage(spec="0" * 64, base="b", base_resolved="r", id="sha256:1", platform="linux/amd64")}
)


def row(**changes: object) -> Row:
    return msgspec.structs.replace(ROW, **changes)


def test_an_image_that_nothing_needs_goes() -> None:
    plan = plan_images([ROW], Lock(), user=user_name())
    assert ([each.name for each in plan.removed], plan.kept) == ([ROW.tag], ())
    assert plan.removed[0].loses == (
        "no recorded run needs it; a rebuild of spec 0000000000000000 is possible "
        "while its base (debian@sha256:abc) and its packages can be had, and gives another id"
    )


@pytest.mark.parametrize(
    ("kept", "lock", "why"),
    [
        (row(runs=("run-1", "run-2")), Lock(), "2 recorded runs need it, the last run-2"),
        (ROW, LOCK, "repro.lock names it for debian"),
        (row(in_use=True), Lock(), "a container uses it"),
        (row(pinned=True), Lock(), "it is pinned: `repro pin --remove` lets it go"),
    ],
)
def test_an_image_that_something_needs_stays_and_says_why(kept: Row, lock: Lock, why: str) -> None:
    plan = plan_images([kept], lock, user=user_name())
    assert plan.removed == ()
    assert [(each.tag, each.why) for each in plan.kept] == [(ROW.tag, why)]


@pytest.mark.parametrize("tag", ["mine:latest", "mine:0000"])
def test_an_image_of_the_users_own_that_stands_on_one_of_ours_stays(tag: str) -> None:
    """It has our labels: images inherit them."""
    plan = plan_images([row(tag=tag)], Lock(), user=user_name(), force=True)
    assert plan.removed == ()
    assert "its name is not one of ours" in plan.kept[0].why


def test_force_takes_what_runs_and_the_lock_need_but_never_what_a_container_uses() -> None:
    needed, locked, busy = row(runs=("a", "b")), row(tag="other:0000000000000000"), row(in_use=True, runs=("r",))
    plan = plan_images([needed, locked, busy, row(pinned=True)], LOCK, force=True, user=user_name())
    assert [each.name for each in plan.removed] == [needed.tag, locked.tag]
    assert [each.why[:11] for each in plan.kept] == ["a container", "it is pinne"]
    first, second = (each.loses for each in plan.removed)
    assert first.startswith("2 recorded runs (the last b) could not be re-executed from this image; ")
    assert second.startswith("`repro run --locked` refuses image=debian until it is back; a rebuild of spec 0000")


def test_an_image_that_a_registry_has_can_be_pulled_again() -> None:
    plan = plan_images([row(digest="host/my-tf@sha256:1")], Lock(), user=user_name())
    assert plan.removed[0].loses == "no recorded run needs it; it can be pulled again: host/my-tf@sha256:1"


def test_an_image_in_the_making_stays_and_a_build_that_was_broken_off_goes() -> None:
    made = row(tag="my-tf:building-1")
    assert plan_images([made], Lock(), user=user_name(), building=[made.spec]).kept[0].why == "its build goes on"
    assert plan_images([made], Lock(), user=user_name()).removed[0].loses == "nothing: its build was broken off"


def test_a_plan_is_json() -> None:
    assert b'"removed":[{"kind":"image"' in msgspec.json.encode(plan_images([ROW], Lock(), user=user_name()))


def test_what_the_lock_names_stays_and_other_builds_of_it_go() -> None:
    older = row(id="sha256:0", tag="sha256:0")
    plan = plan_images([older, ROW], LOCK, user=user_name())
    assert ([each.name for each in plan.removed], [each.tag for each in plan.kept]) == ([older.tag], [ROW.tag])


def test_where_the_locked_image_is_gone_another_build_of_its_spec_stays() -> None:
    other = row(id="sha256:2")
    assert plan_images([other], LOCK, user=user_name()).removed == ()


# on an engine ----------------------------------------------------------------------------------------------------


def record(runs: Path, run: str, image_id: str) -> None:
    """A run in `runs` that needs an image, as `repro run` would have written it."""
    used = ImageUsed(variant="v", tag="t", id=image_id, spec="0", base="b", base_resolved="b", platform="linux/amd64")
    code = Code(commit="0", tree="0", head="0", branch=None, remote=None, dirty=False)
    planned = Planned(
        run=run,
        name="toy",
        created=datetime(2026, 11, 23, tzinfo=timezone.utc),
        repro="0",
        project=str(runs.parent),
        argv=(),
        overrides=(),
        command=("true",),
        config={},
        code=code,
        image=used,
        data=(),
        host=Host(name="h", user="u", system="s", cpus=1, memory=1, engine="e"),
        user="0:0",
        env={},
        gpus_asked="none",
        network="none",
        tracking_uri=None,
        tracking_experiment="toy",
    )
    (runs / run).mkdir(parents=True)
    RunFolder(runs / run).write(Record(planned=planned))


@pytest.fixture
def built(project: Project, debian_base: str, engine: Engine) -> Iterator[Image]:
    """An image that nobody needs yet."""
    (project.docker / "Dockerfile").write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nRUN echo {project.root}\n")
    config = ImageConfig(variant="v", name="test-prune", base=debian_base, requirements=None)
    made = image.ensure(ImageSpec.read(config, project.root), engine, say=lambda _line: None)
    yield made
    if engine.image(made.id):
        engine.remove_image(made.id, force=True)


def listed(engine: Engine, runs: Path | None = None) -> tuple[Row, ...]:
    return housekeeping.images(engine, runs, engine.all_containers())


def only(made: Image, rows: tuple[Row, ...]) -> Row:
    (found,) = [each for each in rows if each.id == made.id]
    return found


@pytest.mark.engine
def test_an_image_is_listed_with_the_runs_that_need_it(built: Image, project: Project, engine: Engine) -> None:
    record(project.runs, "20261123-000000-toy-1", built.id)
    found = only(built, listed(engine, project.runs))
    assert (found.tag, found.spec, found.runs) == (built.tag, built.spec, ("20261123-000000-toy-1",))
    assert found.size > 100 << 20
    assert (datetime.now(timezone.utc) - found.created).total_seconds() < 600


@pytest.mark.engine
def test_the_runs_of_other_projects_count_too(
    built: Image, project: Project, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    record(tmp_path / "other" / "runs", "20261123-000000-toy-2", built.id)
    assert only(built, listed(engine, project.runs)).runs == ()
    housekeeping.remember(tmp_path / "other" / "runs")
    assert only(built, listed(engine, project.runs)).runs == ("20261123-000000-toy-2",)
    assert only(built, listed(engine)).runs == ("20261123-000000-toy-2",)


@pytest.mark.engine
def test_what_a_container_uses_stays_and_goes_when_it_is_gone(built: Image, engine: Engine) -> None:
    container = engine.client.api.create_container(built.id, ["true"])["Id"]
    row = only(built, listed(engine))
    assert plan_images([row], Lock(), force=True, user=user_name()).removed == ()
    engine.remove(container)
    plan = plan_images([only(built, listed(engine))], Lock(), user=user_name())
    pruning.carry_out(engine, plan.removed)
    assert engine.image(built.id) is None


@pytest.mark.engine
def test_what_the_engine_will_not_give_up_does_not_keep_the_rest(built: Image, engine: Engine) -> None:
    plan = plan_images(
        [row(tag="test-prune:0000000000000000"), only(built, listed(engine))],
        Lock(),
        user=user_name(),
    )
    with pytest.raises(EnvironmentUnfitError) as caught:
        pruning.carry_out(engine, plan.removed)
    assert "1 of 2 could not be removed" in caught.value.what
    assert "test-prune:0000000000000000" in caught.value.evidence[0]
    assert engine.image(built.id) is None


def test_what_another_user_of_the_engine_built_stays() -> None:
    other = msgspec.structs.replace(ROW, user="somebody else")
    assert plan_images([other], Lock(), user="ada").removed == ()
    assert "their runs cannot be seen" in plan_images([other], Lock(), user="ada").kept[0].why
    assert len(plan_images([other], Lock(), user="somebody else").removed) == 1
    forced = plan_images([other], Lock(), user="ada", force=True)
    assert forced.removed[0].loses.startswith("runs of somebody else may need it; ")
