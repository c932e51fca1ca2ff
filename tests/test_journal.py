"""Journal lines, as experiments write them and as they should not."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import msgspec
import pytest

from repro.project import Project
from repro.tracking import journal
from repro.tracking.journal import Events, Metric, Note, Position
from tests.test_tracking import Run

STARTED = 1_764_000_000_000


def parse(*lines: str, first: int = 0) -> journal.Events:
    return journal.parse([line.encode() for line in lines], first=first, run="me", started=STARTED)


def test_a_metric_line_is_a_point() -> None:
    events = parse('{"t":"m","k":"loss","v":0.5,"ts":1764000000123,"s":3}')
    assert events == journal.Events(metrics=(Metric(key="loss", value=0.5, timestamp=1764000000123, step=3),))


def test_params_and_tags_are_text() -> None:
    events = parse('{"t":"p","k":"lr","v":"0.1"}', '{"t":"tag","k":"x","v":"y"}', '{"t":"p","k":"sizes","v":[1,2]}')
    assert events == journal.Events(
        params=(Note(key="lr", value="0.1"), Note(key="sizes", value="[1, 2]")), tags=(Note(key="x", value="y"),)
    )


def test_a_friendly_line_holds_a_metric_for_each_number() -> None:
    events = parse('{"step":3,"ts":1764000000001,"loss":0.5,"acc":1,"note":"fine"}')
    assert events.metrics == (
        Metric(key="loss", value=0.5, timestamp=1764000000001, step=3),
        Metric(key="acc", value=1.0, timestamp=1764000000001, step=3),
    )


def test_a_friendly_line_without_step_and_time_takes_its_number_and_the_start() -> None:
    assert parse('{"loss":0.5}', first=7).metrics == (Metric(key="loss", value=0.5, timestamp=STARTED, step=7),)


@pytest.mark.parametrize("written", ['"nan"', "NaN"])
def test_not_a_number_is_a_value(written: str) -> None:
    (point,) = parse(f'{{"t":"m","k":"loss","v":{written},"ts":1,"s":1}}').metrics
    assert math.isnan(point.value)


@pytest.mark.parametrize(("written", "value"), [('"inf"', math.inf), ('"-inf"', -math.inf), ("-Infinity", -math.inf)])
def test_infinity_is_a_value(written: str, value: float) -> None:
    assert parse(f'{{"step":1,"loss":{written}}}').metrics[0].value == value


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '{"t":"m","k":"loss","v":0.5',
        "[1, 2]",
        '{"t":"m","k":"loss","v":"high","ts":1,"s":1}',
        '{"t":"m","k":"loss","v":1,"ts":1,"s":1e30}',
        '{"t":"m","k":"loss","v":1' + "0" * 400 + ',"ts":1,"s":1}',
        '{"t":"m","v":1,"ts":1,"s":1}',
        '{"t":"later","k":"x"}',
        "[" * 100_000,
    ],
)
def test_what_cannot_be_read_is_passed_over_and_counted(line: str) -> None:
    events = parse(line, '{"t":"m","k":"a","v":1,"ts":1,"s":1}')
    assert (len(events.metrics), events.unread) == (1, 1)


def test_a_value_however_deep_is_read_or_counted() -> None:
    for kind in ('"t":"p","k":"a","v"', '"t":"input","ds"', '"t":"model","m":"m-' + "0" * 32 + '","k":"a","tags"'):
        for depth in range(100, 1100, 5):  # some are decoded, and too deep to be written again
            for key in ("a", r"a\u0000"):
                events = parse(f'{{{kind}:{{"{key}":{"[" * depth}{"]" * depth}}}}}')
                assert len(events.params) + len(events.parts) + events.unread == 1, depth


@pytest.mark.parametrize("odd", [r"\ud800", r"\u0000"])
@pytest.mark.parametrize(
    "line",
    [
        '{"t":"p","k":"aODD","v":"ODD"}',
        '{"t":"tag","k":"aODD","v":{"ODD":["ODD"]}}',
        '{"t":"input","ds":{"name":"ODD","digest":"x","source_type":"l","source":"s"}}',
        '{"t":"model","m":"m-00000000000000000000000000000000","k":"x","type":"ODD","tags":{"ODD":"ODD"}}',
        '{"t":"register","k":"ODD","v":"x"}',
    ],
)
def test_characters_that_no_store_takes_are_written_another_way(line: str, odd: str) -> None:
    events = parse(line.replace("ODD", odd))
    assert events.unread == 0
    assert b"\\u0000" not in msgspec.json.encode(events)  # which raises for half a surrogate pair


def test_lines_of_nested_runs_are_set_apart() -> None:
    nested = "0" * 32
    theirs = json.dumps({"t": "m", "r": nested, "k": "a", "v": 1, "ts": 1, "s": 1})
    events = parse(theirs, '{"t":"tag","r":"me","k":"a","v":"b"}')
    point = Metric(key="a", value=1, timestamp=1, step=1)
    assert events == Events(tags=(Note(key="a", value="b"),), nested={nested: Events(metrics=(point,))})


def read(path: Path, position: Position) -> tuple[journal.Events, Position]:
    return journal.read(path, position, run="me", started=STARTED)


def test_a_torn_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events-1.jsonl"
    path.write_bytes(b'{"loss":1}\n{"los')
    events, position = read(path, Position())
    assert (len(events.metrics), position) == (1, Position(bytes=11, lines=1))
    assert read(path, position) == (journal.Events(), position)
    path.write_bytes(b'{"loss":1}\n{"loss":2}\n')
    events, position = read(path, position)
    assert events.metrics == (Metric(key="loss", value=2.0, timestamp=STARTED, step=1),)


def test_the_last_line_of_a_run_that_ended_needs_no_newline(tmp_path: Path) -> None:
    run = Run(Project(tmp_path))
    run.write('{"step":1,"loss":1}\n{"step":2,"loss":2}')
    run.write('{"step":1,"los', "events-2.jsonl")
    assert journal.latest(run.folder) == {"loss": 1.0}
    run.end()
    assert journal.latest(run.folder) == {"loss": 2.0}
    assert sum(events.unread for events in journal.everything(run.folder)) == 1
    path, position = journal.files(run.folder.journal)[0], Position()
    steps: list[int] = []
    for _time in range(4):
        events, position = journal.read(path, position, run="me", started=STARTED, ended=True)
        steps += [point.step for point in events.metrics]
    assert (steps, position) == ([1, 2], Position(bytes=path.stat().st_size, lines=2))


def test_a_line_longer_than_a_block_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events-1.jsonl"
    path.write_bytes(b"x" * (journal.BLOCK + 10) + b'\n{"loss":2}\n')
    first, position = read(path, Position())
    second, position = read(path, position)
    assert (first.unread, second.unread, len(second.metrics)) == (1, 1, 1)
    assert position.bytes == path.stat().st_size


def test_neither_links_nor_pipes_in_the_journal_are_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"secret":1}\n')
    (tmp_path / "events-1.jsonl").symlink_to(secret)
    os.mkfifo(tmp_path / "events-2.jsonl")
    assert journal.files(tmp_path) == [tmp_path / "events-2.jsonl"]
    for name in ("events-1.jsonl", "events-2.jsonl", "events-3.jsonl"):
        assert read(tmp_path / name, Position()) == (journal.Events(), Position())


def test_the_latest_value_is_that_of_the_highest_step(tmp_path: Path) -> None:
    folder = Run(Project(tmp_path)).folder
    (folder.journal / "events-1.jsonl").write_text('{"step":2,"loss":0.2,"acc":1}\n{"step":1,"loss":0.9}\n')
    (folder.journal / "events-2.jsonl").write_text('{"step":3,"loss":0.1}\n')
    assert journal.latest(folder) == {"loss": 0.1, "acc": 1.0}
