"""How a run ended, from what its engine and its users say."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from repro.engines.answers import Exit, exit_of, found
from repro.record import End
from repro.running.ending import Circumstance, StopRequest, verdict

BEGAN = datetime(2026, 11, 23, 19, 15, tzinfo=timezone.utc)


def exited(code: int, *, oom: bool | None = False, seconds: float = 10.0, error: str = "") -> Exit:
    return Exit(code=code, oom=oom, error=error, started=BEGAN, finished=BEGAN + timedelta(seconds=seconds))


def asked(seconds: float) -> StopRequest:
    return StopRequest(at=BEGAN + timedelta(seconds=seconds), by="ada", how="`repro stop`")


@pytest.mark.parametrize(
    ("exited", "known", "end", "says"),
    [
        (exited(0), Circumstance(), End.FINISHED, "exit code 0"),
        (exited(3), Circumstance(), End.FAILED, "exit code 3"),
        (exited(127, error="no such file"), Circumstance(), End.FAILED, "exit code 127: no such file"),
        (exited(137, oom=True), Circumstance(memory=4 << 30), End.OOM, "at 4 GiB: raise resources.memory"),
        (exited(137, oom=True), Circumstance(), End.OOM, "out of memory: raise"),
        (exited(1, oom=True), Circumstance(memory=64 << 20), End.OOM, "at 64 MiB (a process in it was killed"),
        (exited(0, oom=True), Circumstance(), End.OOM, "the command ended with exit code 0"),
        (exited(137), Circumstance(), End.KILLED, "SIGKILL from outside, not through its engine"),
        (exited(137), Circumstance(signals=("9",)), End.KILLED, "SIGKILL that came through its engine"),
        (exited(143), Circumstance(signals=None), End.KILLED, "the engine does not remember"),
        (exited(143), Circumstance(signals=("15",)), End.KILLED, "SIGTERM that came through its engine"),
        (exited(130), Circumstance(signals=("SIGINT",)), End.KILLED, "SIGINT that came through its engine"),
        (exited(143), Circumstance(engine_lost=True), End.KILLED, "when its engine was stopped or restarted"),
        (exited(137, oom=None), Circumstance(memory=1 << 30), End.KILLED, "does not tell which"),
        (exited(139), Circumstance(), End.FAILED, "segmentation fault"),
        (exited(135), Circumstance(), End.FAILED, "raise resources.shm"),
        (exited(132), Circumstance(), End.FAILED, "compiled for another CPU"),
        (exited(143), Circumstance(stop=asked(5)), End.KILLED, "stopped by ada (`repro stop`)"),
        (exited(0), Circumstance(stop=asked(5)), End.KILLED, "stopped by ada"),
        (exited(0), Circumstance(stop=asked(15)), End.FINISHED, "exit code 0"),
        (exited(137, oom=True), Circumstance(stop=asked(5)), End.KILLED, "stopped by ada"),
        (exited(130), Circumstance(time_limit=10.0), End.TIMEOUT, "time limit of 10 s"),
        (exited(0), Circumstance(time_limit=10.0), End.TIMEOUT, "time limit of 10 s"),
        (exited(0, seconds=9), Circumstance(time_limit=10.0), End.FINISHED, "exit code 0"),
        (exited(255), Circumstance(restarted=True), End.LOST, "machine was restarted"),
        (exited(255), Circumstance(unheard=True), End.LOST, "cannot tell how it did"),
        (exited(255), Circumstance(engine_lost=True), End.FAILED, "exit code 255"),
        (exited(3), Circumstance(unheard=True), End.FAILED, "exit code 3"),
        (exited(200), Circumstance(), End.FAILED, "exit code 200"),
    ],
)
def test_each_end_is_told_apart(exited: Exit, known: Circumstance, end: End, says: str) -> None:
    kind, reason = verdict(exited, known)
    assert kind is end
    assert says in reason


def test_an_end_is_read_from_the_state_that_an_engine_tells() -> None:
    state = {
        "Running": False,
        "ExitCode": 137,
        "OOMKilled": True,
        "Error": "",
        "StartedAt": "2026-11-23T19:15:00.123456789Z",
        "FinishedAt": "2026-11-23T19:15:10.5Z",
    }
    ended = exit_of(state, podman=False)
    assert ended is not None
    assert (ended.code, ended.oom) == (137, True)
    assert ended.lasted is not None
    assert ended.lasted.total_seconds() == pytest.approx(10.376543, abs=1e-5)
    assert exit_of({**state, "Running": True}, podman=False) is None
    assert exit_of({**state, "OOMKilled": False}, podman=True).oom is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("requests", "gpus"),
    [
        (None, ()),
        ([{"Count": -1, "Capabilities": [["gpu"]]}], -1),
        ([{"Count": 2}], 2),
        ([{"DeviceIDs": ["0", "GPU-7"]}], ("0", "GPU-7")),
        ([{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}], -1),
        ([{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=1"]}], ("1",)),
    ],
)
def test_a_container_tells_which_gpus_it_was_given(requests: object, gpus: object) -> None:
    state = {"Status": "running", "Running": True, "StartedAt": "2026-11-23T19:15:00Z"}
    answer = {"Id": "c", "State": state, "HostConfig": {"DeviceRequests": requests}}
    assert found(answer).gpus == gpus
    assert found({**answer, "State": {"Status": "created", "StartedAt": "0001-01-01T00:00:00Z"}}).started is None
