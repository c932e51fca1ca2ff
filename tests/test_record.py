"""The record on disk: whole or not at all, readable again, and honest about what it cannot read."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import msgspec
import pytest

from repro import report
from repro.errors import BadInputError
from repro.record import End, Ended, OutputFile, Record, RunFolder, Started, folders, write_atomic
from tests.test_plan import decided

T0 = datetime(2026, 11, 23, 19, 15, tzinfo=timezone.utc)
T1 = datetime(2026, 11, 23, 19, 15, 12, 500_000, tzinfo=timezone.utc)


def record(end: End = End.FINISHED, code: int | None = 0, reason: str = "exit code 0") -> Record:
    return Record(
        planned=decided().planned,
        started=Started(at=T0, container="c" * 64, gpus="none"),
        ended=Ended(at=T1, end=end, exit_code=code, reason=reason, outputs=(OutputFile(path="a", size=3, sha256="0"),)),
    )


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write(record())
    assert folder.read() == record()
    assert [each.path for each in folders(tmp_path)] == [folder.path]
    assert oct(folder.record.stat().st_mode)[-3:] == "644"


def test_runs_of_one_second_are_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    def add(name: str, created: datetime) -> None:
        (tmp_path / name).mkdir()
        planned = msgspec.structs.replace(record().planned, run=name, created=created)
        RunFolder(tmp_path / name).write(Record(planned=planned))

    add("20261123-191512-mnist-ffffff", T1)
    add("20261123-191512-mnist-000000", T1.replace(microsecond=600_000))
    add("20261123-191512-digits-777777", T1.replace(microsecond=700_000))
    add("20261123-191500-mnist-aaaaaa", T0)
    assert [folder.path.name[9:] for folder in folders(tmp_path)] == [
        "191500-mnist-aaaaaa",
        "191512-mnist-ffffff",
        "191512-mnist-000000",
        "191512-digits-777777",
    ]
    (tmp_path / "20261123-191512-mnist-000000" / "record.json").write_text("{}")  # of another version
    assert len(folders(tmp_path)) == 4


def test_a_folder_without_a_record_and_a_record_of_another_kind_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(BadInputError, match="holds no run"):
        folder.read()
    folder.record.write_text('{"planned": {"run": 1}}')
    with pytest.raises(BadInputError, match="cannot be read"):
        folder.read()


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    write_atomic(file, b"old")
    with pytest.raises(TypeError):
        write_atomic(file, "not bytes")  # type: ignore[arg-type]
    assert file.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["record.json"]


def test_the_summary_tells_what_was_run_and_what_came_out() -> None:
    text = report.summary(record(), RunFolder(Path("/r")), {"accuracy": 0.95}, "repro ui")
    assert text.splitlines() == [
        "toy: finished after 12.5 s (exit code 0)",
        "  run      20261123-191500-toy-3f9c1a",
        "  image    my-tf:0123456789abcdef  sha256:111111111111",
        "  commit   cccccccccccc  (with uncommitted changes)",
        "  gpus     none",
        "  metrics  accuracy 0.95",
        "  outputs  /r/outputs  (1 file, 3 B)",
        "  mlflow   repro ui",
    ]


def test_a_failure_shows_the_last_lines_and_where_the_log_is(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.logs.mkdir()
    folder.output_log.write_bytes(b"".join(b"line %d\n" % n for n in range(100)) + b"\xff last")
    text = report.failure(record(End.FAILED, 3, "exit code 3"), folder)
    assert text.splitlines()[0] == "toy failed: exit code 3"
    assert "line 80\n" not in text
    assert "  | line 99\n  | � last\n" in text
    assert text.endswith(f"  log  {folder.output_log}")


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1_820_000_000, "1.82 GB"), (2500, "2.5 kB")])
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert report.size(count) == text


def test_a_table_keeps_long_cells_whole() -> None:
    text = report.table(("A", "B"), [("x" * 80, "1"), ("y", "2")])
    assert "x" * 80 in text
    assert len(text.splitlines()) == 3


def test_a_table_shows_brackets_as_they_are() -> None:
    assert "[[gpu]] [/usr/bin] [bold]" in report.table(("A",), [("[[gpu]] [/usr/bin] [bold]",)])
