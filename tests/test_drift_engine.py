"""An image that is built again from the same spec and is another one: said with both identities, never in silence."""

from __future__ import annotations

import io
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repro.engines.engine import Engine
from repro.engines.imagefacts import ImageFacts
from repro.project import Project
from repro.tracking import tracking
from tests.test_builder_engine import tags
from tests.test_run_engine import latest
from tests.test_tracking import client

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
# a package without a version: what there is today, which is the time
FLOATING = (
    "RUN day=$(date +%s%N) && cd /usr/lib/python3/dist-packages && mkdir today-$day.dist-info && echo $day > /content\n"
)
DRIFT = "note: drift: "
OFF = "tracking.enabled=false"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has seen nothing yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("REPRO_CACHE", str(folder))
    return folder


@pytest.fixture
def lab(lab: Project, engine: Engine) -> Iterator[Project]:
    """The project with an image whose content is another one at each build."""
    (lab.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n" + FLOATING)
    name, variant = f"test-drift-{uuid.uuid4().hex[:12]}", lab.conf / "image" / "tensorflow.yaml"
    variant.write_text(f"{variant.read_text()}name: {name}\n")
    yield lab
    for tag in tags(engine, name):
        engine.remove_image(tag, force=True)


def image(lab: Project, engine: Engine, repro: Repro) -> ImageFacts:
    """The image that the tag of the configuration points to."""
    tag = repro("rebuild", "--check").stdout.split()[0]
    found = engine.image(tag)
    assert found is not None
    return found


def test_a_rebuild_that_moves_the_tag_says_so_with_both_ids_and_what_differs(
    lab: Project, repro: Repro, engine: Engine
) -> None:
    first_time = repro("rebuild")
    assert first_time.returncode == 0, first_time.stderr
    assert DRIFT not in first_time.stderr
    first = image(lab, engine, repro)
    done = repro("rebuild", "--no-cache")
    assert done.returncode == 0, done.stderr
    second = image(lab, engine, repro)
    drift = next(line for line in done.stderr.splitlines() if DRIFT in line)
    for identity in (first.id, first.content, second.id, second.content):
        assert identity in drift
    assert drift.split(": ")[-1].startswith("today 1")
    assert " -> " in drift


def test_a_run_says_it_once_and_records_it_as_long_as_it_is_so(
    lab: Project, repro: Repro, engine: Engine, tmp_path: Path
) -> None:
    quiet = repro("run", "experiment=toy", OFF)
    assert quiet.returncode == 0, quiet.stderr
    assert DRIFT not in quiet.stderr
    before = latest(lab)[0].planned.image
    assert before.drift is None
    # somebody else, who has a cache folder of their own, moves the tag
    assert repro("rebuild", "--no-cache", REPRO_CACHE=str(tmp_path / "others")).returncode == 0
    told = repro("run", "experiment=toy", OFF)
    assert told.returncode == 0, told.stderr
    now = latest(lab)[0].planned
    assert now.image.id != before.id
    assert now.image.drift is not None
    assert f"{DRIFT}{now.image.drift}" in told.stderr
    for identity in (before.id, before.content, now.image.id, now.image.content):
        assert identity in now.image.drift
    assert f"drift: {now.image.drift}" in now.notices
    again = repro("run", "experiment=toy", OFF)
    assert DRIFT not in again.stderr
    assert latest(lab)[0].planned.image.drift == now.image.drift
    shown = repro("show").stdout
    assert f"(content {now.image.content[:19]})" in shown
    assert now.image.drift.split(": ")[-1] in shown


def test_a_base_that_moved_is_named_as_the_reason(lab: Project, repro: Repro, engine: Engine, debian_base: str) -> None:
    mine = f"test-drift-base:{uuid.uuid4().hex[:12]}"
    lab_file = lab.conf / "image" / "tensorflow.yaml"
    lab_file.write_text(lab_file.read_text().replace(f"base: {debian_base}", f"base: {mine}"))
    (lab.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n")
    engine.tag(debian_base, mine)
    try:
        assert repro("rebuild").returncode == 0
        first = engine.image(mine)
        text = f"FROM {debian_base}\nRUN touch /moved\n"
        list(engine.client.api.build(fileobj=io.BytesIO(text.encode()), tag=mine, decode=True, rm=True))
        second = engine.image(mine)
        done = repro("rebuild", "--no-cache")
        assert done.returncode == 0, done.stderr
        assert first is not None
        assert second is not None
        assert f"base {first.id} -> {second.id}" in done.stderr
    finally:
        engine.remove_image(mine, force=True)


def test_a_rebuild_with_the_same_content_is_no_drift(lab: Project, repro: Repro, engine: Engine) -> None:
    (lab.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nENV A=b\n")
    assert repro("rebuild").returncode == 0
    first = image(lab, engine, repro)
    done = repro("rebuild", "--no-cache")
    assert done.returncode == 0, done.stderr
    assert DRIFT not in done.stderr
    second = image(lab, engine, repro)
    assert second.content == first.content
    moved = f"was {first.id} and is {second.id} now, with the same content"
    assert (moved in done.stderr) == (first.id != second.id)  # BuildKit sets no time, and gives the same image


@pytest.mark.tracking
def test_two_machines_with_one_store_hear_of_it(lab: Project, repro: Repro, tmp_path: Path) -> None:
    """Two cache folders stand for two machines: neither has seen the other's image."""
    first = repro("run", "experiment=toy", "tracking.wait=60", REPRO_CACHE=str(tmp_path / "one"))
    assert first.returncode == 0, first.stderr
    before = latest(lab)[0].planned
    elsewhere = {"REPRO_CACHE": str(tmp_path / "two")}
    assert repro("rebuild", "--no-cache", **elsewhere).returncode == 0
    told = repro("run", "experiment=toy", "tracking.wait=60", **elsewhere)
    assert told.returncode == 0, told.stderr
    now, folder = latest(lab)
    assert now.planned.image.drift is None  # this machine alone could not know
    said = next(line for line in told.stderr.splitlines() if line.startswith("note: MLflow: drift: "))
    for identity in (before.run, before.image.content, now.planned.image.content):
        assert identity in said
    run = client(now.planned.tracking_uri or "").get_run(tracking.mlflow_run(folder))
    assert run.data.tags["drift"] in said
    assert run.data.tags["image_spec"] == now.planned.image.spec
    assert run.data.tags["image_content"] == now.planned.image.content
    again = repro("run", "experiment=toy", "tracking.wait=60", **elsewhere)
    assert "drift: " not in again.stderr  # said once
    later, folder = latest(lab)
    assert before.run in (later.planned.image.drift or "")
    run = client(now.planned.tracking_uri or "").get_run(tracking.mlflow_run(folder))
    assert run.data.tags["drift"] == later.planned.image.drift
    names = [each.path for each in client(now.planned.tracking_uri or "").list_artifacts(run.info.run_id, "inputs")]
    assert {"inputs/packages.json", "inputs/sbom.cdx.json"} <= set(names)
