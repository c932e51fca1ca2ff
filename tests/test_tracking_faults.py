"""Tracking that is down, slow, wrong or back: no run waits for it, nothing is lost, and nothing arrives twice."""

from __future__ import annotations

# ruff: noqa: F811 - fixtures of another file are imported, and then asked for by name
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from repro.project import Project
from repro.tracking import tracking
from repro.tracking.publisher import connect
from repro.tracking.tracking import Follower
from tests.test_tracking import Run, artifacts, expected, follower, points, project, runs, sqlite, sync, the  # noqa: F401
from tests.tracking_servers import Door, answering, free_port, server, until

pytestmark = pytest.mark.tracking

BATCH = "/api/2.0/mlflow/runs/log-batch"


@pytest.fixture(params=["database", "folder_of_files"])
def behind(request: pytest.FixtureRequest) -> int:
    """The port of a server; of a kind that takes a point once, and of one that takes it as often as it is sent."""
    port: int = request.getfixturevalue(request.param)
    return port


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


@pytest.fixture
def publisher(project: Project) -> Iterator[Follower]:
    """A publisher that never can import mlflow."""
    code = "import sys; sys.modules['mlflow'] = None; from repro.tracking import publisher; publisher.main()"
    program = [sys.executable, "-c", code, "http://localhost"]
    log = project.root / "publisher.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
    follower = Follower(process, log)
    yield follower
    follower.close()
    follower.process.kill()
    follower.process.wait(30)


def names(number: int) -> str:
    """Each test has numbers of its own: servers are shared, and a run is found again by its name."""
    return f"20260102-030405-toy-{number:06}"


def direct(run: Run, port: int) -> Run:
    """The same run, looked at without the door."""
    run.uri = f"http://localhost:{port}"
    return run


# no answer, late, lost ------------------------------------------------------------------------------------------------


def test_a_server_needs_no_import_of_mlflow_for_a_whole_run(
    project: Project, publisher: Follower, database: int
) -> None:
    run = Run(project, uri=f"http://localhost:{database}")
    publisher.follow(run.folder)
    run.log(0, 1500)
    until(lambda: tracking.mlflow_run(run.folder) and len(points(run)) == 1500)
    run.log(1500, 10)
    run.end()
    (reply,) = publisher.wait(30, run.folder)
    assert (reply.ok, reply.remarks) == (True, ())
    assert (points(run), the(run).info.status) == (expected(1510), "FINISHED")
    assert artifacts(run)["outputs/model/weights.npz"] == b"weights"
    publisher.sync(run.folder, verify=True)
    (again,) = publisher.wait(30, run.folder)
    assert (again.ok, again.repaired) == (True, ())


def test_lost_answers_double_nothing(project: Project, publisher: Follower, behind: int, door: Door) -> None:
    """Each request is lost the first time, after the server has done it."""
    run = Run(project, names(behind), uri=door.uri)
    door.behind = behind
    once: set[bytes] = set()

    def fault(method: str, path: str, body: bytes) -> str | None:
        fresh = (
            method == "POST"
            and path.rsplit("/", maxsplit=1)[-1] in ("log-batch", "create", "update")
            and body not in once
        )
        once.add(body)
        return "lose" if fresh else None

    door.fault = fault
    publisher.follow(run.folder)
    for first in range(0, 3000, 1000):
        run.log(first, 1000)
        until(lambda first=first: len(once) > first / 1000 + 3, 60)
    run.write('{"t":"p","k":"mine","v":"1"}\n{"loss":NaN,"step":7,"ts":5}\n{"other":"inf","step":7,"ts":5}\n')
    run.end()
    (reply,) = publisher.wait(90, run.folder)
    assert reply.ok, reply
    direct(run, behind)
    history = points(run)
    assert [point for point in history if point[1] == point[1]] == expected(3000)
    assert (len(history), len(points(run, "other")), the(run).data.params["mine"]) == (3001, 1, "1")
    found = [each for each in runs(run.uri, "toys & more") if each.data.tags.get("run") == run.id]
    assert [each.info.status for each in found] == ["FINISHED"]


def test_a_publisher_killed_in_the_middle_of_a_batch_doubles_nothing(
    project: Project,
    behind: int,
    door: Door,
) -> None:
    run = Run(project, names(100_000 + behind), uri=door.uri)
    door.behind = behind
    killed = Follower.start(project, run.uri)
    batches: list[bytes] = []

    def fault(method: str, path: str, body: bytes) -> str | None:
        if path != BATCH or b'"metrics"' not in body:
            return None
        batches.append(body)
        if len(batches) != 4:
            return None
        os.kill(killed.process.pid, signal.SIGKILL)  # the server still gets what was on its way
        return "lose"

    door.fault = fault
    killed.follow(run.folder)
    run.log(0, 1000)
    until(lambda: batches)
    run.log(1000, 5000)  # some of it before the fourth batch, some after it
    until(lambda: killed.process.poll() is not None, 60)
    killed.close()
    run.log(6000, 1000)
    run.end()
    (reply,) = tracking.sync([run.folder], project)
    assert reply.ok, reply
    assert points(direct(run, behind)) == expected(7000)


def test_a_server_killed_and_restarted_in_the_middle_is_caught_up_with(
    project: Project,
    publisher: Follower,
    tmp_path: Path,
) -> None:
    port = free_port()
    run = Run(project, uri=f"http://localhost:{port}")
    with server(port, tmp_path) as first:
        until(lambda: answering(port), 60)
        publisher.follow(run.folder)
        run.log(0, 1000)
        until(lambda: tracking.mlflow_run(run.folder))
        for step in range(1000, 3000, 100):
            run.log(step, 100)
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGKILL)
    run.log(3000, 1000)
    until(lambda: "does not answer" in tracking.status(run.folder))
    with server(port, tmp_path):
        run.log(4000, 1000)
        until(lambda: "does not answer" not in tracking.status(run.folder), 60)
        run.end()
        (reply,) = publisher.wait(60, run.folder)
        assert reply.ok, reply
        assert (points(run), the(run).info.status, len(runs(run.uri))) == (expected(5000), "FINISHED", 1)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("hang", "does not answer (timed out)"),
        (503, "answers: HTTP 503: come back later"),
        (401, "refuses us: HTTP 401"),
        (403, "refuses the name localhost:"),
    ],
)
def test_a_run_ends_in_time_and_says_what_it_waits_for(
    project: Project,
    publisher: Follower,
    door: Door,
    database: int,
    fault: int | str,
    says: str,
) -> None:
    door.fault = lambda *_request: fault
    door.answer, door.behind = b"Invalid Host header" if fault == 403 else b"come back later", database
    run = Run(project, names(200 + len(says)), uri=door.uri)
    publisher.follow(run.folder)
    run.log(0, 100)
    until(lambda: says in tracking.status(run.folder))
    run.end()
    before = time.monotonic()
    (reply,) = publisher.wait(None, run.folder)
    assert time.monotonic() - before < 2 * tracking.CATCH_UP_SECONDS
    assert not reply.ok
    assert says in reply.text
    assert reply.text.endswith(f"; `repro sync {run.id}` catches up")
    door.fault = lambda *_request: None
    publisher.sync(run.folder)  # another process, as far as the first knows; it may be it that brings the run there
    until(lambda: (known := tracking.state(run.folder)) and known.artifacts, 60)
    assert points(direct(run, database)) == expected(100)
    assert says not in tracking.status(run.folder)


def test_one_dead_server_is_asked_once_for_all_runs(project: Project, publisher: Follower, door: Door) -> None:
    door.fault = lambda *_request: "hang"
    waiting = [Run(project, names(number), uri=door.uri) for number in range(12)]
    for run in waiting:
        publisher.follow(run.folder)
    until(lambda: all("timed out" in tracking.status(run.folder) for run in waiting), 60)
    assert len(door.seen) < len(waiting)


def test_a_value_that_breaks_the_server_is_singled_out(
    project: Project,
    publisher: Follower,
    door: Door,
    database: int,
) -> None:
    door.behind = database
    door.fault = lambda _method, _path, body: 500 if b'"poison"' in body else None
    door.answer = b'{"error_code": "INTERNAL_ERROR", "message": "the database chokes on it"}'
    run = Run(project, names(500), uri=door.uri)
    run.log(0, 40)
    run.write('{"poison":1,"step":1}\n')
    run.log(40, 60)
    run.end()
    reply = sync(publisher, run)
    assert (reply.ok, reply.remarks) == (True, ("MLflow refused: metric poison (the database chokes on it)",))
    assert points(direct(run, database)) == expected(100)


def test_what_a_server_fails_at_once_is_sent_again(
    project: Project,
    publisher: Follower,
    door: Door,
    database: int,
) -> None:
    door.behind = database
    failed: list[bytes] = []

    def once_or_twice(_method: str, _path: str, body: bytes) -> int | None:
        for word, times in ((b'"alone"', 1), (b'"rate"', 2)):
            if word in body and failed.count(word) < times:
                failed.append(word)
                return 500
        return None

    door.fault = once_or_twice
    door.answer = b'{"error_code": "INTERNAL_ERROR", "message": "the database fails over"}'
    run = Run(project, names(501), uri=door.uri)
    run.write('{"alone":1,"step":1}\n{"t":"p","k":"rate","v":"1"}\n')
    run.end()
    reply = sync(publisher, run)
    assert (reply.ok, reply.remarks, sorted(failed)) == (True, (), [b'"alone"', b'"rate"', b'"rate"'])
    assert [value for _step, value, _when in points(direct(run, database), "alone")] == [1.0]
    assert the(direct(run, database)).data.params["rate"] == "1"


# stores on this machine -----------------------------------------------------------------------------------------------


def test_a_locked_store_is_waited_for_in_the_background(project: Project, follower: Follower) -> None:
    first = Run(project, names(1))
    first.end()
    assert sync(follower, first).ok
    run = Run(project, names(2))
    lock = sqlite3.connect(project.store, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    follower.follow(run.folder)
    run.log(0, 100)
    until(lambda: "database is locked" in tracking.status(run.folder))
    run.end()
    (reply,) = follower.wait(None, run.folder)
    assert (reply.ok, "cannot be used · database is locked" in reply.reason) == (False, True)
    lock.execute("ROLLBACK")
    lock.close()
    until(lambda: (known := tracking.state(run.folder)) and known.artifacts, 60)
    assert points(run) == expected(100)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    """Until not a byte more fits beside it."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as filler:
        while filler.write(bytes(1 << 12)):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_under_the_store_costs_no_run_and_no_point(
    project: Project,
    follower: Follower,
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        uri = f"sqlite:///{disk}/mlflow.db"
        run = Run(project, uri=uri)
        follower.follow(run.folder)
        run.log(0, 100)
        until(lambda: tracking.mlflow_run(run.folder) and points(run) == expected(100))
        fill(disk / "filler")
        run.log(100, 20_000)
        until(lambda: "no space is left for" in tracking.status(run.folder), 60)
        run.end()
        (reply,) = follower.wait(None, run.folder)
        assert (reply.ok, f"no space is left for {disk}/mlflow.db" in reply.reason) == (False, True)
        (disk / "filler").unlink()
        until(lambda: (known := tracking.state(run.folder)) and known.ended and not known.failure, 60)
        assert points(run) == expected(20_100)


# everything again ----------------------------------------------------------------------------------------------------


def test_what_was_lost_in_mlflow_is_found_and_repaired(project: Project, follower: Follower) -> None:
    run = Run(project)
    run.log(0, 2000)
    run.write('{"t":"p","k":"a[0]","v":"1"}\n{"t":"tag","k":"mine","v":"yes"}\n{"a@b":1,"step":1,"ts":1}\n')
    run.end()
    assert sync(follower, run).ok
    before = (the(run).to_dictionary(), points(run), artifacts(run))
    sqlite(project.store, "DELETE FROM metrics WHERE step % 3 = 0 AND key = 'loss'")
    sqlite(project.store, "DELETE FROM params WHERE key IN ('seed', 'a_0_')")
    sqlite(project.store, "DELETE FROM tags WHERE key IN ('mine', 'image')")
    sqlite(project.store, "DELETE FROM inputs")
    sqlite(project.store, "UPDATE runs SET status = 'RUNNING', end_time = NULL")
    kept = next(project.root.glob("mlartifacts/*/*/artifacts/outputs/model/weights.npz"))
    kept.unlink()
    assert sync(follower, run).repaired == ()  # which believes what it once noted
    (reply,) = tracking.sync([run.folder], project, verify=True)
    assert (reply.ok, set(reply.repaired)) == (
        True,
        {"667 metrics", "2 params", "2 tags", "1 datasets", "the status", "1 artifacts"},
    )
    after = (the(run).to_dictionary(), points(run), artifacts(run))
    assert after[1:] == before[1:]
    assert after[0]["data"] == before[0]["data"]
    assert after[0]["info"] == before[0]["info"]
    assert reply.text.endswith("1 artifacts")
    (reply,) = tracking.sync([run.folder], project, verify=True)
    assert (reply.ok, reply.repaired) == (True, ())


def test_last_lines_without_a_newline_and_system_metrics_are_repaired_too(project: Project, follower: Follower) -> None:
    run = Run(project)
    run.write('{"step":1,"loss":1}\n{"step":2,"loss":2}')
    run.write('{"step":3,"lo', "events-2.jsonl")
    run.folder.resources.write_text('{"t":"m","k":"system/cpu","v":1,"ts":1,"s":1}\n')
    run.end()
    for _time in range(2):
        reply = sync(follower, run)
        assert (reply.ok, reply.remarks) == (True, ("1 journal lines could not be read",))
        assert [step for step, _value, _when in points(run)] == [1, 2]
    sqlite(project.store, "DELETE FROM metrics WHERE key = 'system/cpu' OR step = 2")
    (reply,) = tracking.sync([run.folder], project, verify=True)
    assert (reply.ok, reply.repaired) == (True, ("2 metrics",))
    assert [step for step, _value, _when in points(run)] == [1, 2]
    assert len(points(run, "system/cpu")) == 1


def test_what_somebody_wrote_in_mlflow_stays(project: Project, follower: Follower) -> None:
    run = Run(project)
    run.end()
    assert sync(follower, run).ok
    sqlite(project.store, "UPDATE tags SET value = 'my own words' WHERE key = 'mlflow.note.content'")
    (reply,) = tracking.sync([run.folder], project, verify=True)
    assert (reply.ok, reply.repaired) == (True, ())
    assert the(run).data.tags["mlflow.note.content"] == "my own words"


def test_a_store_that_was_thrown_away_is_filled_anew(project: Project, follower: Follower) -> None:
    several = [Run(project, names(number)) for number in range(3)]
    for run in several:
        run.log(0, 200)
        run.end()
    assert [reply.ok for reply in tracking.sync([run.folder for run in several], project)] == [True] * 3
    project.store.unlink()
    assert [reply.ok for reply in tracking.sync([run.folder for run in several], project)] == [True] * 3
    for run in several:
        assert (points(run), the(run).info.status) == (expected(200), "FINISHED")
    assert len(runs(several[0].uri)) == 3


# files on their way ---------------------------------------------------------------------------------------------------


def large(project: Project, uri: str, files: int) -> Run:
    run = Run(project, names(files), uri=uri)
    for number in range(files):
        (run.folder.outputs / f"part{number:02}").write_bytes(os.urandom(100_000))
    run.end()
    (project.root / "conf").mkdir()
    (project.root / "docker").mkdir()
    return run


def test_an_upload_can_be_interrupted_and_is_gone_on_with(project: Project, door: Door, database: int) -> None:
    door.behind = database
    sent: list[str] = []
    stuck = True

    def fault(method: str, path: str, _body: bytes) -> str | None:
        if method != "PUT":
            return None
        sent.append(path.rpartition("/")[2])
        return "hang" if stuck and path.endswith("part12") else None

    door.fault = fault
    run = large(project, door.uri, 20)
    command = [sys.executable, "-c", "from repro.__main__ import entry; entry()", "sync"]
    interrupted = subprocess.Popen(command, cwd=project.root, stderr=subprocess.PIPE, text=True)
    until(lambda: "part12" in sent)
    interrupted.send_signal(signal.SIGINT)
    _out, err = interrupted.communicate(timeout=30)
    assert (interrupted.returncode, "repro: interrupted" in err) == (130, True)
    there = set(sent) - {"part12"}
    sent.clear()
    stuck = False
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {name for name in sent if name.startswith("part")} == {f"part{number:02}" for number in range(12, 20)}
    assert len([name for name in there if name.startswith("part")]) == 12
    uploaded = artifacts(direct(run, database))
    assert {name: (run.folder.path / name).read_bytes() for name in uploaded} == uploaded
    assert len([name for name in uploaded if "part" in name]) == 20


def test_an_upload_says_how_far_it_is(project: Project, door: Door, database: int) -> None:
    door.behind = database

    def slow(method: str, _path: str, _body: bytes) -> None:
        time.sleep(0.1 if method == "PUT" else 0)

    door.fault = slow
    run = large(project, door.uri, 15)
    heard: list[tracking.Progress] = []
    (reply,) = tracking.sync([run.folder], project, say=heard.append)
    assert reply.ok
    assert {(told.of_files, told.run) for told in heard} == {(19, run.id)}
    assert [told.bytes for told in heard] == sorted(told.bytes for told in heard)
    assert 0 < heard[-1].bytes <= heard[-1].of_bytes


def test_a_large_file_needs_no_memory(tmp_path: Path, database: int) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(300 << 20)
    client = connect(f"http://localhost:{database}")
    made = client.create_run(client.create_experiment("large", None, {}), name="r", started=1, tags={})
    code = f"""
import re
from pathlib import Path
from repro.tracking.publisher import connect
client = connect("http://localhost:{database}")
run, count = client.run({made.id!r}), 0
def sent(part):
    global count
    count += part
client.upload(run, Path({str(tmp_path / "large")!r}), "outputs/large", sent)
print(count, int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, megabytes = map(int, done.stdout.split())
    assert (count, megabytes < 100) == (300 << 20, True)
    (found,) = client.artifacts(made, "outputs")
    assert found.size == 300 << 20
