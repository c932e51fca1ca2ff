"""What only an engine of the test's own can show: GPUs, and an engine that dies in the middle."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from repro.project import Project
from repro.record import folders
from tests.conftest import script
from tests.second_engine import SecondEngine, second_engine
from tests.test_run_engine import begun, latest, start, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.gpu_shim]

Repro = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def gpu_engine(debian_base: str) -> Iterator[SecondEngine]:
    """An engine that offers two GPUs, with the base image on it."""
    with second_engine(gpus=2) as engine:
        engine.copy_image(debian_base)
        yield engine


@pytest.fixture
def lab(lab: Project) -> Project:
    """The project, with an experiment that tells which GPUs it was given."""
    script(lab, "toy.sh", "echo gpus=${NVIDIA_VISIBLE_DEVICES-unset}")
    return lab


@pytest.mark.parametrize(
    ("asked", "given", "requests"),
    [
        ("auto", "all", [{"Count": -1, "DeviceIDs": None}]),
        ("all", "all", [{"Count": -1, "DeviceIDs": None}]),
        ("2", "0,1", [{"Count": 2, "DeviceIDs": None}]),
        ("[1]", "1", [{"Count": 0, "DeviceIDs": ["1"]}]),
        ("[0,1]", "0,1", [{"Count": 0, "DeviceIDs": ["0", "1"]}]),
        ("none", "unset", None),
    ],
)
def test_the_engine_gets_exactly_the_device_request_that_was_asked_for(
    lab: Project,
    repro: Repro,
    gpu_engine: SecondEngine,
    asked: str,
    given: str,
    requests: list[dict[str, object]] | None,
) -> None:
    done = repro("run", "experiment=toy", f"gpus={asked}", "tracking.enabled=false", DOCKER_HOST=gpu_engine.url)
    assert done.returncode == 0, done.stderr
    record, folder = latest(lab)
    assert folder.output_log.read_text() == f"gpus={given}\n"
    assert "NO GPU" not in done.stderr
    assert record.started is not None
    assert record.started.gpus == {"auto": "all", "[1]": "1", "[0,1]": "0,1"}.get(asked, asked)


@pytest.mark.parametrize("asked", ["3", "[7]"])
def test_more_gpus_than_there_are_is_an_error_that_leaves_nothing(
    lab: Project, repro: Repro, gpu_engine: SecondEngine, asked: str
) -> None:
    done = repro("run", "experiment=toy", f"gpus={asked}", "tracking.enabled=false", DOCKER_HOST=gpu_engine.url)
    assert done.returncode == 3
    assert "unknown device" in done.stderr
    assert "NVIDIA Container Toolkit" in done.stderr
    assert list(folders(lab.runs)) == []
    assert gpu_engine.client().containers.list(all=True) == []


def test_auto_without_gpus_runs_on_the_cpu_and_says_so(lab: Project, repro: Repro) -> None:
    done = repro("run", "experiment=toy", "tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    assert "note: NO GPU" in done.stderr
    record, _folder = latest(lab)
    assert record.started is not None
    assert record.started.gpus == "none"
    assert record.planned.gpus_asked == "all or none"
    assert any("NO GPU" in notice for notice in record.started.notices)


def test_an_engine_that_dies_is_waited_for_and_the_run_gets_its_true_end_when_it_is_back(
    lab: Project, repro: Repro, debian_base: str
) -> None:
    with second_engine(gpus=None) as engine:
        engine.copy_image(debian_base)
        script(lab, "toy.sh", "echo begun; sleep 100")
        process = start(lab, "experiment=toy", "gpus=none", "tracking.enabled=false", DOCKER_HOST=engine.url)
        wait_for(lambda: begun(lab))
        engine.kill()
        _out, err = process.communicate(timeout=120)
        assert process.returncode == 3, err
        assert "the engine went away" in err
        assert "Traceback" not in err
        assert latest(lab)[0].state == "running"  # as far as anybody can know
        engine.start()  # which ends what it finds running
        done = repro("wait", latest(lab)[0].planned.run)
        assert done.returncode == 1, done.stderr
        record, _folder = latest(lab)
        assert record.state == "killed"
        assert "killed" in done.stderr


def test_an_engine_that_keeps_its_containers_may_restart_during_a_run(lab: Project, debian_base: str) -> None:
    with second_engine(gpus=None, options={"live-restore": True}) as engine:
        engine.copy_image(debian_base)
        script(lab, "toy.sh", "echo begun; for n in $(seq 40); do echo line $n; sleep 0.1; done; exit 4")
        process = start(lab, "experiment=toy", "gpus=none", "tracking.enabled=false", DOCKER_HOST=engine.url)
        wait_for(lambda: begun(lab))
        engine.kill()
        time.sleep(1)
        engine.start()
        _out, err = process.communicate(timeout=90)
        assert process.returncode == 1, err
        record, folder = latest(lab)
        assert (record.state, record.ended.exit_code) == ("failed", 4)  # type: ignore[union-attr]
        assert folder.output_log.read_text().splitlines() == ["begun", *(f"line {n}" for n in range(1, 41))]


def test_an_engine_that_dies_during_a_build_is_told_and_leaves_no_run(
    lab: Project, repro: Repro, debian_base: str
) -> None:
    with second_engine(gpus=None) as engine:
        engine.copy_image(debian_base)
        (lab.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN echo building; sleep 60\n")

        def kill_when_building() -> None:
            wait_for(lambda: any((lab.scratch / "logs").glob("*.log")) if lab.scratch.exists() else False)
            time.sleep(2)
            engine.kill()

        killer = threading.Thread(target=kill_when_building)
        killer.start()
        done = repro("run", "experiment=toy", "tracking.enabled=false", DOCKER_HOST=engine.url)
        killer.join()
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr
        assert list(folders(lab.runs)) == []
        engine.start()
        assert engine.client().images.list(filters={"label": "repro.spec"}) == []


def test_gpus_that_the_framework_does_not_see_are_said(lab: Project, repro: Repro, gpu_engine: SecondEngine) -> None:
    tag = '{"t":"tag","k":"framework_gpus","v":"0"}'
    script(lab, "toy.sh", f"echo '{tag}' >> $REPRO_JOURNAL/events-1.jsonl")
    done = repro("run", "experiment=toy", "tracking.enabled=false", DOCKER_HOST=gpu_engine.url)
    assert done.returncode == 0, done.stderr
    assert "the experiment's framework saw none" in done.stderr
