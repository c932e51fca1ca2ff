"""What a run uses, seen on a real engine: in the record, in the summary, in MLflow, and whatever the engine does."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from repro import runner
from repro.project import Project
from repro.record import Record, RunFolder
from tests.conftest import script
from tests.second_engine import second_engine
from tests.test_ends_engine import planned
from tests.test_run_engine import begun, latest, start, wait_for

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]

BUSY = """python3 -c "
import time
held = bytearray(150_000_000)
end = time.time() + 4
while time.time() < end: pass
"
"""


def samples(folder: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in folder.resources.read_text().splitlines()]


def test_memory_and_cpu_of_a_run_are_in_its_summary_record_and_mlflow(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", BUSY)
    done = repro("run", "experiment=toy", "gpus=none", "resources.memory=1g", "tracking.wait=60")
    assert done.returncode == 0, done.stderr
    record, folder = latest(lab)
    assert record.ended is not None
    peaks = record.ended.peaks
    assert peaks is not None
    assert 150_000_000 < peaks.memory < 400_000_000
    assert peaks.cpu is not None
    assert 10 < peaks.cpu < 130  # one core, or what a busy machine left of it
    assert peaks.gpu_memory is None
    assert " of 1 GiB, cpu " in done.stdout
    assert "system/" not in done.stdout
    assert [sample["step"] for sample in samples(folder)] == list(range(len(samples(folder))))
    with sqlite3.connect(lab.store) as store:
        logged = dict(store.execute("select key, max(value) from metrics where key like 'system/%' group by key"))
    assert logged["system/system_memory_usage_megabytes"] == pytest.approx(peaks.memory / 1e6, abs=0.01)
    assert logged["system/cpu_utilization_percentage"] == pytest.approx(peaks.cpu)
    assert {"system/system_memory_usage_percentage", "system/disk_available_megabytes"} < set(logged)
    assert not any("network" in key or "gpu" in key for key in logged)  # it had neither


def test_a_network_of_its_own_is_counted(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "sleep 2")
    assert repro("run", "experiment=toy", "gpus=none", "network=bridge", "tracking.enabled=false").returncode == 0
    assert "system/network_receive_megabytes" in samples(latest(lab)[1])[-1]


def test_a_run_that_is_over_at_once_may_have_no_peaks_and_ends_well(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "true")
    done = repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false")
    assert (done.returncode, latest(lab)[0].state) == (0, "finished"), done.stderr


def test_an_engine_that_restarts_or_holds_its_breath_costs_a_few_samples(lab: Project) -> None:
    script(lab, "toy.sh", "echo begun; while [ ! -e /outputs/go ]; do sleep 0.1; done")
    plan, _engine = planned(lab)
    with second_engine(gpus=None, options={"live-restore": True}) as second:
        image = second.copy_image(plan.planned.image.tag)
        assert image == plan.planned.image.id
        process = start(lab, "experiment=toy", "gpus=none", "tracking.enabled=false", DOCKER_HOST=second.url)
        wait_for(lambda: begun(lab))
        folder = latest(lab)[1]
        wait_for(lambda: folder.resources.is_file() and len(samples(folder)) > 1)
        second.kill()
        before = len(samples(folder))
        second.start()
        wait_for(lambda: len(samples(folder)) > before + 1)
        daemon = second._daemon
        assert daemon is not None
        daemon.send_signal(signal.SIGSTOP)
        time.sleep(7)  # longer than two looks are apart
        daemon.send_signal(signal.SIGCONT)
        before = len(samples(folder))
        wait_for(lambda: len(samples(folder)) > before)
        (folder.outputs / "go").touch()
        _out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert latest(lab)[0].ended.peaks is not None  # type: ignore[union-attr]


@pytest.mark.gpu_shim
def test_gpus_are_seen_from_the_driver_to_the_summary(
    lab: Project,
    repro: Repro,
    nvml: Path,
) -> None:
    script(lab, "toy.sh", "sleep 1.5")
    plan, _engine = planned(lab)
    with second_engine(gpus=2) as second:
        second.copy_image(plan.planned.image.tag)
        environment = {"DOCKER_HOST": second.url, "LD_LIBRARY_PATH": str(nvml)}
        both = repro("run", "experiment=toy", "gpus=all", "tracking.enabled=false", **environment)
        assert both.returncode == 0, both.stderr
        last = samples(latest(lab)[1])[-1]
        assert (last["system/gpu_0_utilization_percentage"], last["system/gpu_0_power_usage_watts"]) == (87, 350)
        assert "gpu memory 19.6 GiB" in both.stdout  # 20 GB and 1 GB
        one = repro("run", "experiment=toy", "gpus=[1]", "tracking.enabled=false", **environment)
        assert "gpu memory 954 MiB" in one.stdout, one.stderr
        assert not any("gpu_0" in name for name in samples(latest(lab)[1])[-1])
        none = repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false", **environment)
        assert "gpu memory" not in none.stdout


def test_looking_costs_less_than_a_hundredth_of_a_core(lab: Project) -> None:
    """Counted in the thread's own processor time, which a busy machine does not make longer."""
    from repro.running.resources import Sampler

    script(lab, "toy.sh", "sleep 300")
    plan, engine = planned(lab)
    seen: list[float] = []

    def started(folder: RunFolder, record: Record) -> None:
        assert record.started is not None
        sampler = Sampler(engine, record.started.container, folder, record)
        sampler._look(())  # connections are made and modules are imported
        begun = time.thread_time()
        for _look in range(12):  # those of a minute
            sampler._look(())
        seen.append((time.thread_time() - begun) / 60)
        raise KeyboardInterrupt

    record = runner.execute(plan, engine, started=started)
    assert record.ended is not None
    print(f"{seen[0]:.3%} of a core")
    assert seen[0] < 0.01
    assert RunFolder(Path(plan.folder)).resources.stat().st_size < 20_000
