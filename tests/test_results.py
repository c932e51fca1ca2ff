"""One run key, two results: seen across records, and said no more strongly than the machines allow."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from repro import report, results
from repro.record import End, Gpu, Record, RunFolder
from repro.results import Results
from tests.test_record import record

GPU = Gpu(name="H100", uuid="GPU-1", architecture="9.0", memory=1, driver="570.1")


SECRET = {"token": {"env": "TOKEN"}}  # nobody knows whether its value was the same


def made(number: int, result: str, *, key: str = "k" * 64, end: End = End.FINISHED, **changes: Any) -> Record:
    """A run with its own id, on a machine whose processor is known."""
    one = record(end)
    assert one.started is not None
    assert one.ended is not None
    given = changes.pop("given", "none")
    unknown = {"network": changes.pop("network", "none"), "config": {"secrets": changes.pop("secrets", {})}}
    host = msgspec.structs.replace(one.planned.host, **{"cpu": "a CPU", **changes})
    planned = msgspec.structs.replace(
        one.planned,
        run=f"20261123-19150{number}-toy-00000{number}",
        created=one.planned.created + timedelta(seconds=number),
        run_key=key,
        host=host,
        **unknown,
    )
    return Record(
        planned=planned,
        started=msgspec.structs.replace(one.started, gpus=given),
        ended=msgspec.structs.replace(one.ended, result=result),
    )


def of(root: Path, *records: Record) -> dict[str, Results]:
    folders = [RunFolder(root / each.planned.run) for each in records]
    for folder, each in zip(folders, records, strict=True):
        folder.path.mkdir()
        folder.write(each)
    return dict(results.of(folders))


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([made(1, "a"), made(2, "a")], Results(runs=2, results=1, proven=False)),
        ([made(1, "a"), made(2, "b"), made(3, "b")], Results(runs=3, results=2, proven=True)),
        ([made(1, "a"), made(2, "b", cpu="another")], Results(runs=2, results=2, proven=False)),
        ([made(1, "a"), made(2, "b", cpu_flags=("avx",))], Results(runs=2, results=2, proven=False)),
        ([made(1, "a", cpu=""), made(2, "b", cpu="")], Results(runs=2, results=2, proven=False)),
        ([made(1, "a", network="bridge"), made(2, "b", network="bridge")], Results(runs=2, results=2, proven=False)),
        ([made(1, "a", secrets=SECRET), made(2, "b", secrets=SECRET)], Results(runs=2, results=2, proven=False)),
        ([made(1, "a", given="1"), made(2, "b", given="1")], Results(runs=2, results=2, proven=False)),
        (
            [made(1, "a", given="1", gpus=(GPU,)), made(2, "b", given="1", gpus=(GPU,))],
            Results(runs=2, results=2, proven=True),
        ),
        ([made(1, "a"), made(2, "b", given="1", gpus=(GPU,))], Results(runs=2, results=2, proven=False)),
    ],
    ids=["same", "two", "other cpu", "other flags", "no cpus", "net", "secret", "no gpus", "same gpus", "one gpu"],
)  # fmt: skip
def test_two_results_are_proof_where_the_machines_are_of_one_kind(
    tmp_path: Path, records: list[Record], found: Results
) -> None:
    assert of(tmp_path, *records) == {"k" * 64: found}


@pytest.mark.parametrize(
    "other",
    [made(2, "b", key="l" * 64), made(2, "b", end=End.KILLED), made(2, ""), made(2, "b", key="")],
    ids=["another key", "was stopped", "has no result", "of an earlier version"],
)
def test_only_finished_runs_of_one_key_are_compared(tmp_path: Path, other: Record) -> None:
    assert of(tmp_path, made(1, "a"), other) == {}


def test_a_damaged_record_keeps_no_other_from_being_compared(tmp_path: Path) -> None:
    (tmp_path / "torn").mkdir()
    RunFolder(tmp_path / "torn").record.write_text('{"planned"')
    found = of(tmp_path, made(1, "a"), made(2, "b"))
    again = results.of([RunFolder(path) for path in tmp_path.iterdir()])
    assert (again, found["k" * 64].results) == (found, 2)


def test_the_list_marks_what_is_proven_and_says_so_once() -> None:
    records = [made(1, "a" * 64), made(2, "b" * 64), made(3, "c" * 64, key="l" * 64), made(4, "", end=End.KILLED)]
    known = {"k" * 64: Results(runs=2, results=2, proven=True)}
    assert [report.result(each, known) for each in records] == ["a" * 8 + " !", "b" * 8 + " !", "c" * 8, ""]
    assert report.non_determinism(records, known) == [
        "! toy: 2 results in 2 runs of one run key: proven non-determinism"
    ]
    assert report.with_results(records[0], known)["same_run_key"] == known["k" * 64]
    assert report.with_results(records[2], known)["same_run_key"] is None


def test_of_one_run_its_names_its_machine_and_its_trace_are_shown() -> None:
    known = {"k" * 64: Results(runs=3, results=1, proven=False)}
    assert report.identities(made(1, "a" * 64), known).splitlines() == [
        "  run key  kkkkkkkkkkkkkkkk",
        "  result   aaaaaaaaaaaaaaaa  (the same in all 3 runs of this run key)",
        "  host     host, a CPU, 8 cpus, 64 GiB",
    ]
