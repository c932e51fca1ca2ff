"""What a record keeps of a journal: every point in one digest, the trace, and never more than there is room for."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from repro.record import Fingerprint, RunFolder, Series
from repro.running import harvest

PARENT, CHILD = "a" * 32, "b" * 32


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.journal.mkdir()
    return folder


def write(folder: RunFolder, name: str, *events: dict[str, Any], end: str = "\n") -> None:
    text = "\n".join(json.dumps(event) for event in events)
    (folder.journal / f"events-{name}.jsonl").write_text(text + end)


def point(key: str, value: Any, step: int, **more: Any) -> dict[str, Any]:
    return {"t": "m", "k": key, "v": value, "ts": 1, "s": step, **more}


def moment(at: str, ts: int = 1, **digests: str) -> dict[str, Any]:
    return {"t": "fp", "at": at, "ts": ts, "d": digests, "v": {"loss": "0x1p-1"}}


def metrics(folder: RunFolder, *by_products: str) -> dict[str, Series]:
    return {series.name: series for series in harvest.of(folder, "run", by_products).metrics}


def test_a_series_is_all_its_points_in_the_order_of_their_steps(folder: RunFolder) -> None:
    write(folder, "1", point("loss", 0.5, 2), point("loss", 1, 1), point("loss", "nan", 3), point("loss", 0.1, 3))
    lines = b"1 0x1.0000000000000p+0\n2 0x1.0000000000000p-1\n3 nan\n3 0x1.999999999999ap-4\n"
    assert metrics(folder) == {
        "loss": Series(
            name="loss", count=4, last="0x1.999999999999ap-4", sha256=hashlib.sha256(lines).hexdigest(), role="result"
        )
    }
    assert float.fromhex(metrics(folder)["loss"].last) == 0.1


def test_a_torn_last_line_counts_as_far_as_it_is_whole(folder: RunFolder) -> None:
    write(folder, "1", point("loss", 0.5, 1), point("loss", 0.25, 2), end="")
    write(folder, "2", point("loss", 0.5, 3), end='\n{"t":"m","k":"lo')
    assert metrics(folder)["loss"].count == 3


def test_which_of_several_writers_was_faster_tells_nothing_of_the_result(folder: RunFolder) -> None:
    def read(first: tuple[float, ...], second: tuple[float, ...]) -> Series:
        for name, values in (("1", first), ("2", second)):
            write(folder, name, *(point("loss", value, 1) for value in values), point("loss", 0, 2))
        return metrics(folder)["loss"]

    assert read((1, 2), (3, 4)) == read((3, 4), (1, 2))
    assert read((1, 2), (3, 4)) != read((2, 1), (3, 4))


def test_metrics_that_may_differ_are_by_products_and_so_is_all_that_tells_of_the_machine(folder: RunFolder) -> None:
    write(folder, "1", *(point(name, 1, 1) for name in ("loss", "epoch_seconds", "system/cpu", "nested/1/x")))
    folder.resources.write_text('{"step":0,"ts":1,"system/gpu_0_power_usage_watts":350}\n')
    roles = {name: series.role for name, series in metrics(folder, "*_seconds", "nested/*").items()}
    assert roles == {
        "epoch_seconds": "by-product",
        "loss": "result",
        "nested/1/x": "by-product",
        "system/cpu": "by-product",
    }


def test_nested_runs_whose_ids_are_random_are_known_by_the_order_of_their_beginning(folder: RunFolder) -> None:
    def read(first: str, second: str) -> dict[str, Series]:
        begins = [{"t": "run", "r": run, "k": "fold", "ts": at, "tags": {}} for at, run in ((5, first), (6, second))]
        write(folder, "1", *begins, point("loss", 1, 1, r=second), point("loss", 2, 1, r=first), point("loss", 3, 1))
        return metrics(folder)

    assert read(PARENT, CHILD) == read(CHILD, PARENT)
    assert {name: series.last for name, series in read(PARENT, CHILD).items()} == {
        "loss": (3.0).hex(),
        "nested/1/loss": (2.0).hex(),
        "nested/2/loss": (1.0).hex(),
    }


@pytest.mark.parametrize(("limit", "why"), [("POINTS", "more than 3 points"), ("NAMES", "more than 3 names")])
def test_of_too_many_metrics_none_is_kept_and_it_is_said(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, limit: str, why: str
) -> None:
    monkeypatch.setattr(harvest, limit, 3)
    write(folder, "1", *(point(f"m{number}", 1, 1) for number in range(3)))
    assert (len(metrics(folder)), harvest.of(folder, "run").remark) == (3, "")
    write(folder, "1", *(point(f"m{number}", 1, 1) for number in range(4)))
    found = harvest.of(folder, "run")
    assert (found.metrics, why in found.remark) == ((), True)


def test_a_long_journal_is_read_with_little_memory(folder: RunFolder) -> None:
    with (folder.journal / "events-1.jsonl").open("w") as file:
        file.writelines(
            f'{{"t":"m","k":"loss","v":{1 / (n + 1)},"ts":1764000000000,"s":{n}}}\n' for n in range(200_000)
        )
    tracemalloc.start()
    found = metrics(folder)["loss"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.count, found.last) == (200_000, (1 / 200_000).hex())
    assert peak < 32e6


def test_a_trace_is_in_the_order_of_its_happening_and_its_names_are_unique(folder: RunFolder) -> None:
    write(folder, "1", moment("init", 1, weights="1"), moment("epoch 1", 5, weights="2"), moment("init", 7))
    write(folder, "2", moment("pass 1 batch 1", 3, batch="3"), {"t": "fp", "at": 3}, moment("x" * 20_000))
    trace = harvest.of(folder, "run").trace
    assert [each.at for each in trace] == ["init", "pass 1 batch 1", "epoch 1", "init (2)"]
    assert trace[0] == Fingerprint(at="init", digests={"weights": "1"}, values={"loss": "0x1p-1"})


def test_of_a_long_trace_the_beginning_is_kept_and_ever_less_of_the_rest_and_the_end(folder: RunFolder) -> None:
    write(folder, "1", *(moment(f"step {number}", number) for number in range(1, 5_001)))
    steps = [int(each.at.removeprefix("step ")) for each in harvest.of(folder, "run").trace]
    assert steps == [*range(1, 501), *range(516, 5_001, 16), 5_000]


def test_a_run_that_logged_nothing_has_neither(folder: RunFolder) -> None:
    assert harvest.of(folder, "run") == harvest.Harvest()
