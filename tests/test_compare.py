"""Comparing what came out of two runs: each level, and what may never be called the same."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy
import pytest

from repro.compare import intervals
from repro.compare.comparing import Side, compare, pairs
from repro.compare.tolerance import Margin, Tolerance
from repro.manifest import Listing
from repro.record import End, Record
from repro.verdict import Compared, Level
from tests.runs_to_compare import canonical, made, output, series, sha256

FILES = {"weights.npz": b"weights", "report.txt": b"report"}
METRICS = {"loss": [0.5, 0.25], "accuracy": [0.5, 0.75]}


def level_of(name: str, compared: tuple[Compared, ...]) -> Level:
    return next(each.level for each in compared if each.name == name)


def npz(**arrays: object) -> bytes:
    content = io.BytesIO()
    numpy.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def test_the_same_bytes_and_metrics_are_level_5(tmp_path: Path) -> None:
    verdict = compare(made(tmp_path / "a", FILES, METRICS), made(tmp_path / "b", FILES, METRICS))
    assert {each.level for each in verdict.compared} == {Level.BYTES}
    assert verdict.level is Level.BYTES
    assert [each.name for each in verdict.compared] == ["end", "accuracy", "loss", "report.txt", "weights.npz"]


def test_the_same_bytes_after_the_same_stabilizer_are_level_4(tmp_path: Path) -> None:
    one = made(tmp_path / "a", outputs=[output("a.zip", b"one", canonical=canonical(b"same"))])
    other = made(tmp_path / "b", outputs=[output("a.zip", b"two", canonical=canonical(b"same"))])
    verdict = compare(one, other)
    assert (verdict.level, verdict.compared[-1].stabilizer) == (Level.STABILIZED, "zip@1")


@pytest.mark.parametrize("after", [canonical(b"same", "zip@2"), canonical(b"other"), None])
def test_another_stabilizer_or_digest_is_another_file(tmp_path: Path, after: object) -> None:
    one = made(tmp_path / "a", outputs=[output("a.zip", b"one", canonical=canonical(b"same"))])
    other = made(tmp_path / "b", outputs=[output("a.zip", b"two", canonical=after)])
    assert compare(one, other).level is Level.DIFFERENT


def zipped(year: int, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a", (year, 1, 1, 0, 0, 0)), content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("after", "level"), [(zipped(2001, b"x"), Level.STABILIZED), (zipped(2001, b"y"), Level.DIFFERENT)]
)
def test_files_are_stabilized_anew_where_the_records_do_not_tell(tmp_path: Path, after: bytes, level: Level) -> None:
    one, other = made(tmp_path / "a", {"a.zip": zipped(2000, b"x")}), made(tmp_path / "b", {"a.zip": after})
    assert compare(one, other).level is level


@pytest.mark.parametrize(
    ("name", "before", "near", "far"),
    [
        ("r.json", b'{"a": [1, 0.5], "b": "x"}', b'{"b": "x", "a": [1, 0.5000001]}', b'{"a": [1, 0.6], "b": "x"}'),
        ("r.jsonl", b'{"a": 1.0}\n{"a": 2.0}\n', b'{"a": 1.0}\n{"a": 2.0000001}\n', b'{"a": 1.0}\n{"a": 3}\n'),
        ("r.csv", b"name,x\na,1.0\n", b"name,x\na,1.0000001\n", b"name,x\nb,1.0\n"),
        ("r.tsv", b"a\t1.0\n", b"a\t1.0000001\n", b"a\t1.1\n"),
        ("r.npz", npz(w=[1.0, 2.0]), npz(w=[1.0, 2.0000001]), npz(w=[1.0, 2.1])),
        ("r.npz", npz(w=[1.0]), npz(w=[1.0000001]), npz(v=[1.0])),
        ("r.npz", npz(w=[1.0]), npz(w=[1.0000001]), npz(w=[[1.0]])),
    ],
)
def test_numbers_inside_a_declared_tolerance_are_level_3(
    tmp_path: Path, name: str, before: bytes, near: bytes, far: bytes
) -> None:
    tolerance = Tolerance(files={"r.*": Margin(rel=1e-6)})
    one = made(tmp_path / "a", {name: before})
    levels = [
        compare(one, made(tmp_path / folder, {name: content}), tolerance).level
        for folder, content in (("b", near), ("c", far))
    ]
    assert levels == [Level.TOLERANCE, Level.DIFFERENT]


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("r.json", b'{"a": 1, "a": 2}', b'{"a": 9, "a": 2}'),
        ("r.json", b'{"a": 1}', b'{"a": true}'),
        ("r.json", b'{"a": "{}"}', b'{"a": {}}'),
        ("r.json", b"[]", b"[[]]"),
        ("r.json", b"[9007199254740993]", b"[9007199254740992]"),
        ("r.json", b"not json", b"not json either"),
        ("r.csv", b"id\n007\n", b"id\n7\n"),
        ("r.csv", b"x\n12345678901234567890\n", b"x\n12345678901234567891\n"),
        ("r.csv", b"x,\n1\n", b"x\n1\n"),
        ("r.npz", npz(w=numpy.array([255], "uint8")), npz(w=numpy.array([0], "uint8"))),
        ("r.npz", npz(w=numpy.array([True])), npz(w=numpy.array([False]))),
        ("r.npz", npz(w=numpy.array(["a"])), npz(w=numpy.array(["b"]))),
        ("r.npz", npz(w=numpy.array([1], "int64")), npz(w=numpy.array([1], "int32"))),
        ("r.npy", b"no array", b"none"),
        ("r.bin", b"1.0", b"1.00"),
    ],
)
def test_what_is_no_close_number_is_outside_every_tolerance(
    tmp_path: Path, name: str, before: bytes, after: bytes
) -> None:
    tolerance = Tolerance(files={name: Margin(abs=0.5)})
    one, other = made(tmp_path / "a", {name: before}), made(tmp_path / "b", {name: after})
    assert compare(one, other, tolerance).level is Level.DIFFERENT


def test_a_file_that_was_changed_after_the_run_is_not_read(tmp_path: Path) -> None:
    one, other = made(tmp_path / "a", {"r.json": b"[1.0]"}), made(tmp_path / "b", {"r.json": b"[5.0]"})
    (other.folder.outputs / "r.json").write_text("[1.00]")
    found = compare(one, other, Tolerance(files={"*": Margin(rel=0.1)})).compared[-1]
    assert (found.level, "not what was recorded any more" in found.remark) == (Level.DIFFERENT, True)


@pytest.mark.parametrize(
    ("after", "margin", "level"),
    [
        ([0.5001, 0.2501], Margin(abs=0.001), Level.TOLERANCE),
        ([0.9, 0.2501], Margin(abs=0.001), Level.DIFFERENT),
        ([0.9, 0.2501], Margin(abs=0.001, last=True), Level.TOLERANCE),
        ([0.9, 0.5, 0.2501], Margin(abs=0.001), Level.DIFFERENT),
        ([0.5, float("nan")], Margin(abs=0.001), Level.DIFFERENT),
        ([0.5, float("inf")], Margin(rel=0.9), Level.DIFFERENT),
    ],
)
def test_every_point_of_a_metric_has_to_be_inside_its_tolerance(
    tmp_path: Path, after: list[float], margin: Margin, level: Level
) -> None:
    one, other = made(tmp_path / "a", {}, {"loss": [0.5, 0.25]}), made(tmp_path / "b", {}, {"loss": after})
    assert compare(one, other, Tolerance(metrics={"loss": margin})).level is level


def test_a_tolerance_needs_the_journal_that_was_recorded(tmp_path: Path) -> None:
    one, other = made(tmp_path / "a", {}, {"loss": [0.5, 0.25]}), made(tmp_path / "b", {}, {"loss": [0.9, 0.25]})
    (other.folder.journal / "events-1.jsonl").write_bytes((one.folder.journal / "events-1.jsonl").read_bytes())
    assert compare(one, other, Tolerance(metrics={"loss": Margin(abs=0.1)})).level is Level.DIFFERENT


def test_other_steps_are_another_curve_whatever_the_tolerance(tmp_path: Path) -> None:
    one = made(tmp_path / "a", {}, {"loss": [0.5, 0.25]})
    lines = f"0 {(0.5).hex()}\n2 {(0.25).hex()}\n"
    told = msgspec.structs.replace(series("loss", [0.5, 0.25]), sha256=sha256(lines.encode()))
    other = made(tmp_path / "b", {}, {"loss": [0.5, 0.25]}, measured=[told])
    journal = other.folder.journal / "events-1.jsonl"
    journal.write_text(journal.read_text().replace('"s": 1', '"s": 2'))
    found = compare(one, other, Tolerance(metrics={"loss": Margin(abs=1)})).compared[-1]
    assert (found.level, found.remark) == (Level.DIFFERENT, "other steps")


CLASSES = 2**60  # that a float cannot tell from the next integer


# repeats ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def repeated(tmp_path: Path) -> list[Side]:
    """Five runs of the same, whose accuracy varies a little, and their weights altogether."""
    return [
        made(
            tmp_path / f"a{number}",
            {
                "weights.npz": bytes([number]),
                "fixed.txt": b"the same",
                "r.json": json.dumps({"accuracy": value, "classes": CLASSES}).encode(),
            },
            {"accuracy": [value]},
        )
        for number, value in enumerate((0.97, 0.971, 0.972, 0.969, 0.97))
    ]


def rerun(folder: Path, accuracy: float, fixed: bytes = b"the same", classes: int = CLASSES) -> Side:
    report = json.dumps({"accuracy": accuracy, "classes": classes}).encode()
    return made(folder, {"weights.npz": b"x", "fixed.txt": fixed, "r.json": report}, {"accuracy": [accuracy]})


def test_inside_the_interval_of_the_originals_repeats_is_level_2(tmp_path: Path, repeated: list[Side]) -> None:
    verdict = compare(repeated[0], rerun(tmp_path / "b", 0.9725), others=repeated[1:])
    levels = {each.name: each.level for each in verdict.compared}
    assert levels == {"end": 5, "accuracy": 2, "weights.npz": 2, "fixed.txt": 5, "r.json": 2}
    assert verdict.level is Level.STATISTICAL


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: rerun(folder, 0.98),
        lambda folder: rerun(folder, 0.9725, fixed=b"changed"),
        lambda folder: rerun(folder, 0.9725, classes=CLASSES + 1),
    ],
    ids=["outside the interval", "a file that never varied", "a number that never varied"],
)
def test_what_the_originals_repeats_never_did_is_level_1(
    tmp_path: Path, repeated: list[Side], other: Callable[[Path], Side]
) -> None:
    assert compare(repeated[0], other(tmp_path / "b"), others=repeated[1:]).level is Level.DIFFERENT


def test_weights_that_vary_need_a_metric_to_speak_for_them(tmp_path: Path) -> None:
    runs = [made(tmp_path / str(number), {"weights.npz": bytes([number])}) for number in range(5)]
    assert compare(runs[0], runs[1], others=runs[2:]).level is Level.DIFFERENT


def test_two_repeats_are_too_few(tmp_path: Path, repeated: list[Side]) -> None:
    assert compare(repeated[0], rerun(tmp_path / "b", 0.97), others=repeated[1:2]).level is Level.DIFFERENT


def test_only_finished_runs_of_exactly_the_same_are_repeats(tmp_path: Path) -> None:
    values = (0.97, 0.5, 0.6, 0.7)
    one, *others = (made(tmp_path / str(n), {}, {"x": [value]}, run_key=str(n)) for n, value in enumerate(values))
    failed = [made(tmp_path / f"f{n}", {}, {"x": [n / 2]}, run_key="0", end=End.FAILED) for n in range(3)]
    again = [one, one, one]
    assert compare(one, made(tmp_path / "b", {}, {"x": [0.6]}), others=[*others, *failed, *again]).level == 1


def test_a_repeat_whose_record_was_changed_widens_no_interval(tmp_path: Path) -> None:
    one, other = (made(tmp_path / name, {}, {"x": [value]}) for name, value in (("c", 0.9), ("d", 0.95)))
    repeats = [made(tmp_path / f"r{n}", {}, {"x": [value]}) for n, value in enumerate((0.9, 0.91))]
    wide = [*repeats, Side(record=_edited(made(tmp_path / "e", {}, {"x": [0.5]}).record), folder=one.folder)]
    assert compare(one, other, others=wide).level is Level.DIFFERENT


def _edited(record: Record) -> Record:
    assert record.ended is not None
    return msgspec.structs.replace(record, ended=msgspec.structs.replace(record.ended, result=sha256(b"another")))


def test_the_interval_is_that_of_a_prediction() -> None:
    """mean 2, deviation 1, t(.975, 2) = 4.302653: 2 ± 4.302653 · sqrt(4/3)."""
    found = intervals.interval([1.0, 2.0, 3.0])
    assert found is not None
    assert (round(found.low, 5), round(found.high, 5)) == (-2.96828, 6.96828)
    assert intervals.interval([1.0, 2.0, float("nan")]) is None


# never the same --------------------------------------------------------------------------------------------------


def test_what_one_side_does_not_have_is_level_0(tmp_path: Path) -> None:
    one = made(tmp_path / "a", FILES, METRICS)
    assert compare(one, made(tmp_path / "b", {"report.txt": b"report"}, METRICS)).level is Level.MISSING
    assert compare(made(tmp_path / "c", FILES, {"loss": [0.5, 0.25]}), one).level is Level.MISSING


@pytest.mark.parametrize("end", [end for end in End if end is not End.FINISHED])
def test_a_run_that_did_not_finish_is_never_the_same(tmp_path: Path, end: End) -> None:
    one, other = made(tmp_path / "a", FILES, METRICS, end=end), made(tmp_path / "b", FILES, METRICS, end=end)
    assert compare(one, other).level is Level.DIFFERENT


def test_a_run_that_is_not_over_has_no_result(tmp_path: Path) -> None:
    one = made(tmp_path / "a", FILES, METRICS)
    other = Side(record=msgspec.structs.replace(one.record, ended=None), folder=one.folder)
    assert [compare(one, other).level, compare(other, other).level] == [Level.MISSING, Level.MISSING]


def test_runs_without_any_result_are_not_the_same(tmp_path: Path) -> None:
    verdict = compare(made(tmp_path / "a"), made(tmp_path / "b"))
    assert (verdict.level, "neither run has a result" in verdict.explanation) == (Level.MISSING, True)


def test_outputs_that_nobody_could_read_are_not_the_same(tmp_path: Path) -> None:
    one = made(tmp_path / "a", FILES)
    assert one.record.ended is not None
    reason = f"exit code 0; {Listing(unread=('locked',)).remark}"
    ended = msgspec.structs.replace(one.record.ended, reason=reason)
    other = Side(record=msgspec.structs.replace(one.record, ended=ended), folder=one.folder)
    assert compare(other, other).level is Level.DIFFERENT


def test_a_record_that_was_changed_after_its_run_is_not_the_same(tmp_path: Path) -> None:
    one, other = made(tmp_path / "a", FILES), made(tmp_path / "b", {**FILES, "x": b"another"})
    assert one.record.ended is not None
    assert other.record.ended is not None
    ended = msgspec.structs.replace(other.record.ended, outputs=one.record.ended.outputs)
    edited = Side(record=msgspec.structs.replace(other.record, ended=ended), folder=other.folder)
    assert [compare(one, edited).level, compare(edited, one).level] == [Level.DIFFERENT] * 2


def test_a_record_that_names_files_elsewhere_and_no_numbers_is_compared_with_care(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("[1.0]")
    one = made(tmp_path / "a", outputs=[output("../../secret.json", b"[1.0]")], measured=[series("x", [1.0])])
    odd = msgspec.structs.replace(series("x", [2.0]), last="no number")
    other = made(tmp_path / "b", outputs=[output("../../secret.json", b"[1]")], measured=[odd])
    found = compare(one, other, Tolerance(files={"*": Margin(rel=0.5)}, metrics={"x": Margin(abs=9, last=True)}))
    assert [each.level for each in found.compared] == [Level.BYTES, Level.DIFFERENT, Level.DIFFERENT]


def test_by_products_are_shown_and_not_counted(tmp_path: Path) -> None:
    same = output("a", b"a")
    one = made(
        tmp_path / "a",
        outputs=[same, output("log", b"1", role="by-product")],
        measured=[series("seconds", [1.0], "by-product")],
    )
    other = made(
        tmp_path / "b",
        outputs=[same, output("log", b"2", role="by-product")],
        measured=[series("seconds", [2.0], "by-product")],
    )
    verdict = compare(one, other)
    assert (verdict.level, level_of("log", verdict.compared), level_of("seconds", verdict.compared)) == (5, 1, 1)


def test_what_one_side_calls_a_result_is_one(tmp_path: Path) -> None:
    one = made(tmp_path / "a", outputs=[output("log", b"1")])
    other = made(tmp_path / "b", outputs=[output("log", b"2", role="by-product")])
    assert compare(one, other).level is Level.DIFFERENT


def test_event_files_are_paired_by_their_time(tmp_path: Path) -> None:
    before = [output(f"tb/events.out.tfevents.{time}.host.{pid}.0.v2", b"x") for time, pid in ((10, 7), (20, 8))]
    after = [output(f"tb/events.out.tfevents.{time}.other.{pid}.0.v2", b"x") for time, pid in ((90, 1), (80, 2))]
    found = [(was and was.path, now and now.path) for was, now in pairs(before, after)]
    assert found == [(before[0].path, after[1].path), (before[1].path, after[0].path)]
    assert [now for _, now in pairs(before, after[:1])] == [after[0], None]


def test_the_metrics_of_an_older_record_are_read_from_the_journal(tmp_path: Path) -> None:
    def older(name: str, value: float) -> Side:
        side = made(tmp_path / name, {}, {"loss": [0.5, value]})
        assert side.record.ended is not None
        ended = msgspec.structs.replace(side.record.ended, metrics=(), result="")
        return Side(record=msgspec.structs.replace(side.record, ended=ended), folder=side.folder)

    assert compare(older("a", 0.25), made(tmp_path / "b", {}, {"loss": [0.5, 0.25]})).level is Level.BYTES
    assert compare(older("c", 0.26), made(tmp_path / "d", {}, {"loss": [0.5, 0.25]})).level is Level.DIFFERENT
