"""What MLflow takes only in its own form, or not at all: it arrives as far as it can, and the rest is told once."""

from __future__ import annotations

# ruff: noqa: F811 - fixtures of another file are imported, and then asked for by name
import json
import math
import signal
from pathlib import Path

import pytest

from repro.project import Project
from repro.tracking import journal, tracking
from repro.tracking.delivery import Names
from repro.tracking.tracking import Follower
from tests.test_tracking import Run, client, expected, follower, points, project, sync, the  # noqa: F401
from tests.tracking_servers import until

tracked = pytest.mark.tracking
LONG = "x" * 300
KEYS = {  # the experiment's name -> MLflow's
    "acc@5": "acc_5",
    "a[0]": "a_0_",
    "/lead": "lead",
    "a/../b": "a/__/b",
    "a+b=c": "a_b_c",
    "ключ/é": "ключ/é",
    "": "_",
}


@pytest.fixture(params=["sqlite", "http"])
def uri(request: pytest.FixtureRequest) -> str:
    return f"http://localhost:{request.getfixturevalue('database')}" if request.param == "http" else "default"


def m(key: str, value: float | str, step: int = 1, ts: int = 1000) -> str:
    return json.dumps({"t": "m", "k": key, "v": value, "ts": ts, "s": step}) + "\n"


def p(key: str, value: str) -> str:
    return json.dumps({"t": "p", "k": key, "v": value}) + "\n"


def history(run: Run, key: str) -> list[float]:
    return [value for _step, value, _when in points(run, key)]


@tracked
def test_oddities_arrive_as_far_as_they_can_and_are_told_once(project: Project, follower: Follower, uri: str) -> None:
    run = Run(project, f"20260102-030405-toy-{len(uri):06}", uri=uri)
    for number, key in enumerate(KEYS):
        run.write(m(key, number) + p(key, str(number)))
    run.write(m("acc#5", 55) + m("acc_5", 555) + m(LONG + "1", 1) + m(LONG + "2", 2))
    run.write(m("odd", "nan", 1) + m("odd", "inf", 2) + m("odd", "-inf", 3) + '{"odd": NaN, "step": 4}\n')
    run.write(m("when", 1, ts=9 * 10**15) + m("when", 2, ts=-5) + m("when", 3, step=2**70) + m("when", 4, step=-7))
    run.write('{"friendly": 1, "step": 1e30}\n')
    run.write(p("long", "y" * 8000) + p("changed", "1") + p("changed", "2") + p("changed", "1"))
    run.write("".join(p(f"many.{number}", str(number)) for number in range(3000)))
    run.write(json.dumps({"t": "tag", "k": "note", "v": "z" * 9000}) + "\n")
    with (run.folder.journal / "events-2.jsonl").open("wb") as file:
        file.write(b"\x00\xff\xfe garbage\n[1, 2]\n" + b'{"t":"m","k":"' + b"k" * (2 << 20) + b'","v":1}\n')
        file.write(m("after", 1).encode() + b'{"t":"m","k":"torn","v":')
    run.end()
    reply = sync(follower, run)
    assert reply.ok, reply
    shown = the(run)
    for number, (key, name) in enumerate(KEYS.items()):
        assert history(run, name)[0] == number, key
        assert shown.data.params[name] == str(number), key
    assert len([name for name in shown.data.metrics if name.startswith(("x", "acc_5-"))]) == 4
    assert sorted(value for name in shown.data.metrics if name.startswith("acc_5") for value in history(run, name)) == [
        0,
        55,
        555,
    ]
    largest = 1.7976931348623157e308
    values = history(run, "odd")
    assert values[1:3] == [largest, -largest]
    assert [math.isnan(value) for value in values] == [True, False, False, True]
    assert sorted(points(run, "when")) == [(-7, 4.0, 1000), (1, 1.0, 9 * 10**15)]
    assert len(shown.data.params["long"]) == 6000
    assert shown.data.params["long"].endswith("y … (cut; all of it is in journal/)")
    assert shown.data.params["changed"] == "1"
    assert len([name for name in shown.data.params if name.startswith("many.")]) == 3000
    assert shown.data.tags["note"].endswith("z … (cut; all of it is in journal/)")
    assert history(run, "after") == [1]
    assert "torn" not in shown.data.metrics
    told = "\n".join(reply.remarks)
    for words in (
        "journal lines could not be read",
        "MLflow has stricter names: 'acc@5' is 'acc_5' there; ",
        "too long for MLflow, and whole in the run folder: param long (8,000 characters); tag note (9,000 characters)",
        "MLflow keeps the first value of a parameter, the journal has the others: changed",
        "MLflow keeps ±1.797e308 in the place of an infinite value: odd",
        "a point before the year 1970 stays in the journal: when",
    ):
        assert told.count(words) == 1, told
    assert "refused" not in told
    before = (str(shown.to_dictionary()), points(run, "when"))  # as text: nan is not nan
    (again,) = tracking.sync([run.folder], project, verify=True)
    assert (again.ok, again.repaired, again.remarks) == (True, (), reply.remarks)
    run.folder.tracking.unlink()
    anew = sync(follower, run)
    assert (anew.ok, anew.remarks) == (True, reply.remarks)
    assert (str(the(run).to_dictionary()), points(run, "when")) == before


@tracked
def test_names_keep_apart_over_the_death_of_a_publisher(project: Project) -> None:
    run = Run(project)
    first = Follower.start(project, run.uri)
    first.follow(run.folder)
    run.write(m("acc@5", 1))
    until(lambda: tracking.mlflow_run(run.folder) and history(run, "acc_5"))
    first.process.send_signal(signal.SIGKILL)
    first.wait(10)
    first.close()
    run.write(m("acc#5", 2) + m("acc@5", 3, step=2) + m("acc_5", 4))
    run.end()
    (reply,) = tracking.sync([run.folder], project)
    assert reply.ok
    assert history(run, "acc_5") == [1, 3]
    others = {name: history(run, name) for name in the(run).data.metrics if name != "acc_5"}
    assert sorted(others.values()) == [[2], [4]]


def test_a_name_is_the_same_after_everything_noted_is_lost() -> None:
    names = Names({}, {}, complete=True)
    given = [names.of("metric", raw) for raw in ("b@c", "b#c", "b_c", "plain", "b@c")]
    assert (given[0], given[3], given[4], len(set(given))) == ("b_c", "plain", "b_c", 4)
    after = Names({}, {"metric": given}, complete=False)
    assert [after.of("metric", raw) for raw in ("b#c", "b_c", "b@c", "plain")] == [given[1], given[2], "b_c", "plain"]
    noted = Names(names.renamed, {"metric": given}, complete=True)
    assert noted.of("metric", "b+c") not in given


def test_a_metric_at_no_step_that_there_is_is_not_passed_over_in_silence() -> None:
    lines = [b'{"loss": 1, "step": 1e30}', b'{"loss": 1, "text": "x"}', b'{"loss": 1, "ts": "noon"}']
    events = journal.parse(lines, first=0, run="r", started=5)
    assert (len(events.metrics), events.unread) == (1, 2)


@tracked
def test_a_flood_arrives_whole(project: Project, follower: Follower, uri: str) -> None:
    """50,000 points while the run goes on; how soon and at what cost is in docs/speed.md."""
    run = Run(project, f"20260102-030406-toy-{len(uri):06}", uri=uri)
    follower.follow(run.folder)
    for first in range(0, 50_000, 1000):
        run.log(first, 1000)
    size = (run.folder.journal / "events-1.jsonl").stat().st_size

    def sent() -> bool:
        known = tracking.state(run.folder)
        return known is not None and [position.bytes for position in known.positions.values()] == [size]

    until(sent, 120)
    assert len(points(run)) == 50_000
    run.end()
    (reply,) = follower.wait(60, run.folder)
    assert (reply.ok, reply.remarks) == (True, ())
    assert points(run) == expected(50_000)


def test_old_notes_of_another_version_are_no_reason_to_fail(tmp_path: Path) -> None:
    run = Run(Project(tmp_path))
    run.folder.tracking.write_text('{"uri": "http://server", "run": "abc", "unknown": 1}')
    assert tracking.state(run.folder) is None
