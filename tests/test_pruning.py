"""What `repro prune` finds beside images, what it frees, and what it does on an engine of its own."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import msgspec
import pytest

from repro import guard
from repro.cleaning import leftovers, pins, pruning
from repro.cleaning.housekeeping import Removal
from repro.code import source
from repro.engines.answers import ContainerFacts
from repro.engines.engine import connect
from repro.engines.imagefacts import ImageFacts
from repro.errors import BadInputError, EnvironmentUnfitError
from repro.project import Project, user_name
from repro.recipe import base
from repro.record import RunFolder
from tests.conftest import script
from tests.second_engine import SecondEngine, second_engine
from tests.test_housekeeping import ROW, record

Repro = Callable[..., "subprocess.CompletedProcess[str]"]

NOW = time.time()
DAY = 86400
IMAGE = ImageFacts(
    id="sha256:1",
    tags=("my-tf:1",),
    digests=(),
    labels={"repro.spec": "0" * 64},
    env=(),
    created="2026-11-23T00:00:00Z",
    size=110,
    layers=("a", "b"),
    platform="linux/amd64",
)
BASE = msgspec.structs.replace(
    IMAGE,
    id="sha256:b",
    tags=("repro-base:bookworm-1",),
    labels={base.RECIPE_LABEL: "r"},
    created=base.EPOCH,
    size=100,
    layers=("a",),
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))


# containers -------------------------------------------------------------------------------------------------------


def container(folder: Path, state: str, *, days: float = 0, user: str = "ada") -> ContainerFacts:
    labels = {"repro.run": folder.name, "repro.folder": str(folder), "repro.user": user}
    created = int(NOW - days * DAY)
    return ContainerFacts(id="c", name="repro-x", image="sha256:1", labels=labels, state=state, created=created)


def over(found: ContainerFacts) -> str:
    return "; ".join(each.loses for each in leftovers.containers([found], user="ada", now=NOW))


def test_a_running_container_and_one_that_is_just_starting_stay(tmp_path: Path) -> None:
    assert over(container(tmp_path / "gone", "running", days=99)) == ""
    assert over(container(tmp_path / "gone", "created")) == ""


def test_a_container_that_was_never_started_goes(tmp_path: Path) -> None:
    assert over(container(tmp_path / "gone", "created", days=1)) == "it was never started"


def test_an_ended_container_goes_when_its_run_is_recorded_as_over_and_not_before(tmp_path: Path) -> None:
    record(tmp_path, "run-1", "sha256:1")
    found = container(tmp_path / "run-1", "exited")
    assert over(found) == ""  # `repro` was killed: the container is the only one who knows its end
    folder = RunFolder(tmp_path / "run-1")
    ended = {"at": "2026-11-23T00:00:00Z", "end": "finished", "exit_code": 0, "reason": "exit code 0", "outputs": []}
    content = json.loads(folder.record.read_text()) | {"ended": ended}
    folder.record.write_text(json.dumps(content))
    assert over(found) == "its run is over and recorded"


def test_the_container_of_a_removed_run_goes_and_that_of_an_unseen_place_stays_a_week(tmp_path: Path) -> None:
    assert over(container(tmp_path / "removed", "exited")) == "its run has no record any more"
    elsewhere = tmp_path / "not mounted here" / "run"
    assert over(container(elsewhere, "exited", days=6)) == ""
    assert over(container(elsewhere, "exited", days=8)) == "its run has no record any more"


def test_containers_of_others_and_of_other_programs_stay(tmp_path: Path) -> None:
    assert over(container(tmp_path / "removed", "exited", user="somebody else")) == ""
    foreign = msgspec.structs.replace(container(tmp_path / "removed", "exited"), labels={})
    assert over(foreign) == ""


# images -----------------------------------------------------------------------------------------------------------


def test_a_build_goes_on_while_its_lock_is_held_or_its_image_is_fresh(tmp_path: Path) -> None:
    assert leftovers.building([ROW], now=NOW) == frozenset()
    assert leftovers.building([ROW], now=ROW.created.timestamp() + 5) == {ROW.spec}
    locks = tmp_path / "cache" / "locks"
    locks.mkdir(parents=True)
    with filelock.FileLock(locks / f"image-{ROW.spec[:32]}.lock"):
        assert leftovers.building([ROW], now=NOW) == {ROW.spec}
    assert leftovers.building([ROW], now=NOW) == frozenset()


def names(removals: list[Removal]) -> list[str]:
    return [each.name for each in removals]


def test_a_base_goes_only_when_no_image_stands_on_it_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "can_make", lambda: True)
    assert names(leftovers.base_images([IMAGE, BASE], set(), set())) == []
    assert names(leftovers.base_images([IMAGE, BASE], {IMAGE.id}, set())) == ["repro-base:bookworm-1"]
    assert names(leftovers.base_images([IMAGE, BASE], {IMAGE.id}, {BASE.id})) == []


def test_a_pinned_base_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(base, "can_make", lambda: True)
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path))
    pins.add(BASE)
    assert leftovers.base_images([BASE], set(), set()) == []


def test_a_container_that_looks_into_an_image_goes_when_nobody_waits_for_it(tmp_path: Path) -> None:
    looks = msgspec.structs.replace(container(tmp_path, "running"), labels={"repro.probe": "sha256:1"}, created=0)
    assert names(leftovers.containers([looks], user="me", now=NOW)) == [looks.name]
    assert leftovers.containers([looks], user="me", now=30.0) == []


def test_what_was_built_on_a_base_is_no_base_though_it_has_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "can_make", lambda: True)
    foreign = msgspec.structs.replace(IMAGE, tags=("theirs:1",), labels=BASE.labels)
    assert names(leftovers.base_images([foreign], set(), set())) == []


def test_who_could_not_make_a_base_again_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "can_make", lambda: False)
    assert leftovers.base_images([BASE], set(), set()) == []


def test_a_pin_is_known_by_content_and_goes_by_tag_or_id() -> None:
    pins.add(IMAGE)
    elsewhere = msgspec.structs.replace(IMAGE, id="sha256:" + "2" * 64, tags=())  # in another store, under no name
    assert pins.content(elsewhere) in pins.everything()
    assert pins.content(BASE) not in pins.everything()
    with pytest.raises(BadInputError, match="is not pinned"):
        pins.remove("my-tf:2", None)
    assert pins.remove("my-tf:1", None).id == IMAGE.id  # also when the image is gone
    assert pins.everything() == {}


# files ------------------------------------------------------------------------------------------------------------


def aged(path: Path, days: float) -> Path:
    os.utime(path, (NOW - days * DAY,) * 2)
    return path


class Mounts:
    """The one question that is asked of an engine here."""

    def __init__(self, *paths: Path) -> None:
        self.paths = {str(path) for path in paths}

    def mounted(self, _container: str) -> set[str]:
        return self.paths


def left(project: Project, mounts: Mounts, *running: ContainerFacts) -> list[str]:
    found = leftovers.files(project, mounts, running, now=NOW)  # type: ignore[arg-type]
    return sorted(Path(each.id).name for each in found)


def test_an_old_export_goes_unless_a_container_has_it_and_use_makes_it_young(project: Project) -> None:
    snapshot = source.capture(project.root)
    files = source.export(snapshot, project.root, project.scratch / "code")
    assert left(project, Mounts()) == []
    aged(files.parent, 8)
    assert left(project, Mounts()) == [snapshot.commit]
    running = container(project.runs / "r", "running")
    assert left(project, Mounts(files), running) == []
    source.export(snapshot, project.root, project.scratch / "code")
    assert left(project, Mounts()) == []


def test_an_export_is_removed_whole_and_can_be_made_again(project: Project) -> None:
    snapshot = source.capture(project.root)
    files = source.export(snapshot, project.root, project.scratch / "code")
    aged(files.parent, 8)
    removals = leftovers.files(project, Mounts(), [], now=NOW)  # type: ignore[arg-type]
    assert removals[0].size > 0
    pruning.carry_out(None, removals)  # type: ignore[arg-type]
    assert [each.name for each in (project.scratch / "code").iterdir()] == [".gitignore"]
    assert source.export(snapshot, project.root, project.scratch / "code") == files


def test_old_logs_of_builds_and_halves_of_fetches_go(project: Project, tmp_path: Path) -> None:
    logs, held = project.scratch / "logs", tmp_path / "cache" / "data" / "sha256"
    for folder in (logs, held):
        folder.mkdir(parents=True)
    for name in ("build-1.log", "build-2.log", "follower.log"):
        (logs / name).write_text("said")
    aged(logs / "build-1.log", 31)
    aged(logs / "follower.log", 31)
    whole = "a" * 64
    for name in (whole, f"{whole}.part", f"{whole}.lock", f"{'b' * 64}.0123abcd", f"{'c' * 64}.part"):
        (held / name).write_text("half")
        aged(held / name, 2)
    aged(held / f"{'c' * 64}.part", 0)
    assert left(project, Mounts()) == [f"{whole}.part", f"{'b' * 64}.0123abcd", "build-1.log"]
    with filelock.FileLock(held / f"{whole}.lock"):  # it is being fetched
        assert f"{whole}.part" not in left(project, Mounts())


# runs that start --------------------------------------------------------------------------------------------------


def test_runs_start_together_and_a_prune_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "WAIT_SECONDS", 0.2)
    with guard.starting(), guard.starting(), pytest.raises(EnvironmentUnfitError, match="a run is being started"):
        guard.pruning().__enter__()
    with guard.pruning():
        pass


def test_a_run_waits_until_a_prune_is_over() -> None:
    order: list[str] = []

    def run() -> None:
        with guard.starting():
            order.append("run")

    with guard.pruning():
        starter = threading.Thread(target=run)
        starter.start()
        time.sleep(0.2)
        order.append("pruned")
    starter.join()
    assert order == ["pruned", "run"]


# on an engine -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_engine() -> Iterator[SecondEngine]:
    """An engine on which everything may be removed."""
    with second_engine(gpus=None) as engine:
        yield engine


@pytest.fixture
def alone(own_engine: SecondEngine, debian_base: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SecondEngine]:
    """Only the base is on it, before and after."""
    own_engine.copy_image(debian_base)
    monkeypatch.setenv("DOCKER_HOST", own_engine.url)
    yield own_engine
    engine = connect()
    for container in engine.all_containers():
        engine.remove(container.id)
    for image in engine.images("repro.spec"):
        engine.remove_image(image.id, force=True)


def build(lab: Project, repro: Repro, words: str) -> str:
    """An image of ten megabytes on the base; its tag."""
    fill = "head -c 10000000 /dev/urandom > /filling"
    (lab.docker / "Dockerfile").write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nRUN echo {words}; {fill}\n")
    done = repro("rebuild", "--json")
    assert done.returncode == 0, done.stderr
    lab.lock.unlink()
    return str(json.loads(done.stdout)["tag"])


@pytest.mark.engine
@pytest.mark.gpu_shim
def test_prune_keeps_what_is_needed_and_pinned_and_says_what_the_rest_costs(
    lab: Project, repro: Repro, alone: SecondEngine
) -> None:
    tags = {words: build(lab, repro, words) for words in ("pinned", "loose", "used")}
    assert repro("run", "experiment=toy", "tracking.enabled=false", "gpus=none").returncode == 0
    assert "is pinned" in repro("pin", tags["pinned"]).stdout
    assert "pinned" in next(line for line in repro("images").stdout.splitlines() if tags["pinned"] in line)
    stopped = connect().client.api.create_container(tags["loose"], ["true"], labels={"repro.run": "r"})["Id"]
    connect().client.api.start(stopped)
    connect().client.api.wait(stopped)

    listed = repro("prune", "--dry-run")
    assert listed.returncode == 0, listed.stderr
    assert f"keeps    {tags['pinned']}  it is pinned" in listed.stderr
    assert f"keeps    {tags['used']}  a recorded run needs it" in listed.stderr
    assert f"keeps    {tags['loose']}  a container uses it" in listed.stderr
    assert "nothing to remove" in listed.stderr

    connect().remove(stopped)
    listed = repro("prune", "--dry-run")
    assert f"removes  image {tags['loose']}" in listed.stderr
    assert "and gives another id" in listed.stderr
    assert listed.stdout == "would remove 1 image, 10 MB\n"  # not the base below it, which stays
    assert connect().image(tags["loose"]) is not None

    assert repro("prune").returncode == 4  # nobody there to say yes
    done = repro("prune", "--yes")
    assert (done.returncode, done.stdout) == (0, "removed 1 image, 10 MB\n"), done.stderr
    found = [connect().image(tags[words]) is not None for words in ("pinned", "loose", "used")]
    assert found == [True, False, True]

    forced = repro("prune", "--force", "--dry-run")
    assert "could not be re-executed from this image" in forced.stderr
    assert tags["pinned"] in forced.stderr.partition("removes")[0]
    assert repro("pin", "--remove", tags["pinned"]).returncode == 0


@pytest.mark.engine
@pytest.mark.gpu_shim
def test_prune_removes_leftover_containers_and_then_their_images(
    lab: Project, repro: Repro, alone: SecondEngine
) -> None:
    tag = build(lab, repro, "leftover")
    script(lab, "toy.sh", "echo hello")
    labels = {"repro.run": "r", "repro.folder": str(lab.runs / "r"), "repro.user": user_name()}
    lab.runs.mkdir(exist_ok=True)
    api = connect().client.api
    ended = api.create_container(tag, ["true"], name="repro-r", labels=labels)["Id"]
    api.start(ended)
    api.wait(ended)
    running = api.create_container(tag, ["sleep", "100"], labels=labels)["Id"]
    api.start(running)
    done = repro("prune", "--yes")
    assert done.stdout == "removed 1 container, 0 B\n", done.stderr
    assert [each.id for each in connect().all_containers()] == [running]
    connect().remove(running)
    ended = api.create_container(tag, ["true"], name="repro-r", labels=labels)["Id"]
    api.start(ended)
    api.wait(ended)
    done = repro("prune", "--yes")
    assert done.stdout == "removed 1 container, 1 image, 1 base, 176 MB\n", done.stderr
    assert connect().images() == []


@pytest.mark.engine
@pytest.mark.gpu_shim
def test_layers_that_images_share_are_counted_once(lab: Project, repro: Repro, alone: SecondEngine) -> None:
    first = build(lab, repro, "shared")
    text = (lab.docker / "Dockerfile").read_text()
    (lab.docker / "Dockerfile").write_text(f"{text}RUN head -c 5000000 /dev/urandom > /more\n")
    second = json.loads(repro("rebuild", "--json").stdout)["tag"]
    lab.lock.unlink()
    engine = connect()
    removals = [Removal(kind="image", name=tag, id=tag, size=0, loses="") for tag in (first, second)]
    both = pruning.weigh(engine, removals)
    assert both.exact
    assert 14.9e6 < both.bytes < 15.2e6
    assert pruning.weigh(engine, removals[:1]).bytes == 0  # the second stands on it
