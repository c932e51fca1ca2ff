"""What a run uses, from an engine's answer to MLflow's names and the peaks; no engine needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from repro.engines.answers import Use, container_use
from repro.record import End, Ended, Peaks, RunFolder
from repro.report import summary
from repro.running import resources
from repro.tracking import journal
from tests.test_record import T1, record

AT = 1_764_240_194.5

# what engines answered to GET /containers/ID/stats?stream=false&one-shot=true, without what nobody reads
DOCKER_CGROUP_1 = {
    "read": "2025-11-27T10:43:14.5Z",
    "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}, "online_cpus": 2},
    "memory_stats": {
        "usage": 300_000_000,
        "max_usage": 400_000_000,
        "stats": {"cache": 120_000_000, "inactive_file": 1, "total_inactive_file": 100_000_000},
        "limit": 1 << 30,
    },
    "networks": {"eth0": {"rx_bytes": 5_000_000, "tx_bytes": 1}, "eth1": {"rx_bytes": 1_000_000, "tx_bytes": 1}},
}
DOCKER_CGROUP_2 = {
    "read": "2025-11-27T10:43:14.500000000Z",
    "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}},
    "memory_stats": {
        "usage": 300_000_000,
        "stats": {"anon": 150_000_000, "file": 150_000_000, "inactive_file": 100_000_000},
        "limit": 1 << 30,
    },
}
PODMAN = {
    "read": "2025-11-27T11:43:14.500000000+01:00",
    "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}},
    "memory_stats": {"usage": 200_000_000, "limit": (1 << 63) - 4096, "stats": None},
    "networks": None,
}
STOPPED = {"read": "0001-01-01T00:00:00Z", "cpu_stats": {"cpu_usage": {"total_usage": 0}}, "memory_stats": {}}


@pytest.mark.parametrize(
    ("answer", "limit", "received"),
    [(DOCKER_CGROUP_1, 1 << 30, 6_000_000), (DOCKER_CGROUP_2, 1 << 30, None), (PODMAN, None, None)],
    ids=["cgroup 1", "cgroup 2", "podman"],
)
def test_every_engines_answer_means_the_same(answer: dict[str, Any], limit: int | None, received: int | None) -> None:
    use = container_use(answer)
    assert use is not None
    assert (use.at, use.cpu, use.memory, use.memory_limit) == (AT, 2.5, 200_000_000, limit)
    assert (use.received, use.sent is None) == (received, received is None)


@pytest.mark.parametrize("answer", [STOPPED, {}, {"read": "yesterday", "memory_stats": {"usage": 1}}])
def test_a_container_that_does_not_run_uses_nothing(answer: dict[str, Any]) -> None:
    assert container_use(answer) is None


def use(at: float, cpu: float, memory: int) -> Use:
    return Use(at=at, cpu=cpu, memory=memory, memory_limit=1 << 30, received=2_000_000, sent=1_000_000)


def test_the_names_are_mlflows_and_one_busy_core_is_100_percent() -> None:
    first = resources.metrics(use(10.0, 1.0, 100 << 20), None)
    assert "system/cpu_utilization_percentage" not in first  # of one look alone, nobody knows
    assert resources.metrics(use(12.0, 4.6, 512 << 20), use(10.0, 1.0, 100 << 20)) == pytest.approx(
        {
            "system/cpu_utilization_percentage": 180.0,
            "system/system_memory_usage_megabytes": 536.870912,
            "system/system_memory_usage_percentage": 50.0,
            "system/network_receive_megabytes": 2.0,
            "system/network_transmit_megabytes": 1.0,
        }
    )
    restarted = resources.metrics(use(12.0, 0.5, 1), use(10.0, 1.0, 1))
    assert restarted["system/cpu_utilization_percentage"] == 0.0


def test_peaks_are_the_highest_of_each_and_of_all_gpus_at_one_moment() -> None:
    def sample(memory: float, cpu: float, *gpus: float) -> dict[str, float]:
        found = {resources.MEMORY: memory, resources.CPU: cpu}
        return found | {f"system/gpu_{n}_memory_usage_megabytes": used for n, used in enumerate(gpus)}

    found = None
    for each in (sample(1, 50, 10, 20), sample(3, 20, 25, 1), {"something": 1.0}, sample(2, 180)):
        found = resources.higher(found, each)
    assert found == Peaks(memory=3_000_000, cpu=180, gpu_memory=30_000_000)


def test_what_another_process_wrote_before_counts_and_a_torn_line_does_not(tmp_path: Path) -> None:
    file = tmp_path / "resources.jsonl"
    assert resources.recorded(file) == (0, None)
    whole = json.dumps({"step": 0, "ts": 1, resources.MEMORY: 7.0, resources.CPU: 12.5})
    file.write_text(whole + "\n" + whole[:20])
    assert resources.recorded(file) == (2, Peaks(memory=7_000_000, cpu=12.5))


@pytest.mark.parametrize(("elapsed", "seconds"), [(0, 0.5), (2, 2), (60, 5), (1200, 10), (86400, 30)])
def test_an_older_run_is_looked_at_less_often(elapsed: float, seconds: float) -> None:
    assert resources.between(elapsed) == seconds


def test_the_summary_shows_the_peaks() -> None:
    done = record()
    assert done.ended is not None
    ended = msgspec.structs.replace(done.ended, peaks=Peaks(memory=1_288_490_189, cpu=179.6, gpu_memory=10 << 30))
    config = {**done.planned.config, "resources": {"memory": 4 << 30}}
    done = msgspec.structs.replace(done, ended=ended, planned=msgspec.structs.replace(done.planned, config=config))
    text = summary(done, RunFolder(Path("/r")), {}, "")
    assert "  peak     memory 1.2 GiB of 4 GiB, cpu 180 %, gpu memory 10 GiB" in text.splitlines()


def test_records_of_earlier_versions_have_no_peaks_and_are_read() -> None:
    ended = Ended(at=T1, end=End.FINISHED, exit_code=0, reason="", outputs=())
    old = {key: value for key, value in msgspec.to_builtins(ended).items() if key not in ("peaks", "ignored")}
    assert msgspec.convert(old, Ended) == ended


def test_names_that_an_experiment_gave_its_metrics_do_nothing_to_a_terminal_and_fill_no_page() -> None:
    metrics = {"\x1b[2Jevil\n": 1.0} | {f"m{n}": 1.0 for n in range(500)}
    (line,) = [line for line in summary(record(), RunFolder(Path("/r")), metrics, "").splitlines() if "metrics" in line]
    assert line.startswith("  metrics  \\x1b[2Jevil\\n 1  m0 1")
    assert line.endswith("  and 481 more")


def test_the_journal_of_the_experiment_and_what_we_saw_are_read_alike_and_kept_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.journal.mkdir()
    folder.write(record())
    (folder.journal / "events-1.jsonl").write_text('{"step":1,"loss":0.5}\n')
    (folder.journal / os.fsdecode(b"events-\xff.jsonl")).write_text('{"step":1,"loss":9}\n')  # no state can name it
    folder.resources.write_text('{"step":0,"ts":1764240194500,"system/cpu_utilization_percentage":12.5}\n')
    assert journal.sources(folder) == [folder.journal / "events-1.jsonl", folder.resources]
    events, _position = journal.read(folder.resources, journal.Position(), run="r", started=0)
    assert events.metrics == (
        journal.Metric(key="system/cpu_utilization_percentage", value=12.5, timestamp=1764240194500, step=0),
    )
    assert journal.latest(folder) == {"loss": 0.5}


def gpu_metrics(asked: str, **environment: str) -> list[dict[str, float]]:
    """What a process of its own sees: the library is loaded once in each."""
    code = (
        "import json, sys\nfrom repro.running import nvidia\nwith nvidia.opened(sys.argv[1]) as gpus:\n"
        "    print(json.dumps([nvidia.metrics(gpu) for gpu in gpus]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, asked],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    found: list[dict[str, float]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ("all", [0, 1]),
        ("1", [0]),
        ("2", [0, 1]),
        ("id 1", [1]),
        ("id GPU-bbbb,id 0", [1, 0]),
        ("id nvidia.com/gpu=1", [1]),
        ("id 7", []),
        ("id GPU-nosuch", []),
        ("none", []),
    ],
)
def test_the_gpus_that_a_run_was_given_are_asked(nvml: Path, asked: str, seen: list[int]) -> None:
    found = gpu_metrics(asked, LD_LIBRARY_PATH=str(nvml))
    assert [min(metrics).split("_")[1] for metrics in found] == [str(index) for index in seen]


def test_a_gpu_tells_memory_use_and_power_in_mlflows_words(nvml: Path) -> None:
    first, second = gpu_metrics("all", LD_LIBRARY_PATH=str(nvml))
    assert first == pytest.approx(
        {
            "system/gpu_0_memory_usage_megabytes": 20_000.0,
            "system/gpu_0_memory_usage_percentage": 25.0,
            "system/gpu_0_utilization_percentage": 87,
            "system/gpu_0_power_usage_watts": 350.0,
            "system/gpu_0_power_usage_percentage": 50.0,
        }
    )
    assert list(second) == ["system/gpu_1_memory_usage_megabytes", "system/gpu_1_memory_usage_percentage"]


def test_without_a_driver_or_with_a_broken_one_there_are_no_gpus_and_no_noise(nvml: Path, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library at all")
    assert gpu_metrics("all", LD_LIBRARY_PATH=str(tmp_path)) == []
    assert gpu_metrics("all", LD_LIBRARY_PATH=str(nvml), FAKE_NVML_INIT="9") == []  # NVML_ERROR_DRIVER_NOT_LOADED


def test_the_driver_is_not_asked_for_a_run_without_gpus() -> None:
    code = (
        "import sys\nfrom repro.running import nvidia\nwith nvidia.opened('none'):\n    print('pynvml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_names_are_those_of_the_installed_mlflow() -> None:
    from importlib.util import find_spec

    (place,) = find_spec("mlflow").submodule_search_locations  # type: ignore[union-attr, misc]
    source = "".join(file.read_text() for file in (Path(place) / "system_metrics" / "metrics").glob("*_monitor.py"))
    ours = [*resources.metrics(use(2, 2, 1), use(1, 1, 1)), *resources.disk(Path(__file__))]
    ours += [f"gpu_{{i}}_{name}" for name in ("memory_usage_megabytes", "memory_usage_percentage")]
    ours += [f"gpu_{{i}}_{name}" for name in ("utilization_percentage", "power_usage_watts", "power_usage_percentage")]
    assert [name for name in ours if name.removeprefix("system/") not in source] == []
