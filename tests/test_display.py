"""Steps on a terminal and elsewhere, drawn for real on a pseudo-terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time

import pytest

from repro import display as module
from repro.display import Display
from repro.errors import BadInputError


def test_elsewhere_a_step_is_one_line_with_its_time_and_result() -> None:
    stream = io.StringIO()
    with Display(stream=stream).step("image") as step:
        step.say("Step 1/2")
        step.output(b"half ")
        step.output(b"a line\nand more")
        step.detail = "built"
    assert re.fullmatch(r"image +0\.0 s  built\n", stream.getvalue())


def test_verbose_streams_every_line_also_the_last_without_an_end() -> None:
    stream = io.StringIO()
    with Display(verbose=True, stream=stream).step("run") as step:
        step.output(b"one\ntw\xff")
        step.output(b"o\r\nthree")
    assert [line for line in stream.getvalue().splitlines() if line.startswith("  |")] == [
        "  | one",
        "  | tw�o",
        "  | three",
    ]


def test_a_progress_bar_is_one_line_as_it_was_last_drawn() -> None:
    stream = io.StringIO()
    with Display(verbose=True, stream=stream).step("run") as step:
        for percent in range(101):
            step.output(f"\r{percent} %".encode())
        step.output(b"\r\ndone\n")
        assert step.partial == b""
    assert stream.getvalue().splitlines()[:2] == ["  | 100 %", "  | done"]


def test_a_line_without_end_takes_neither_memory_nor_time() -> None:
    stream = io.StringIO()
    with Display(verbose=True, stream=stream).step("run") as step:
        for _ in range(40_000):
            step.output(b"x" * 100)
        assert len(step.partial) <= module.LINE_LIMIT
    assert stream.getvalue().count("x") == 4_000_000


def test_a_terminal_that_has_gone_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = "from repro.display import Display\nwith Display().step('run') as step: step.say('x')\nprint('went on')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writer, check=False)
    os.close(writer)
    assert done.stdout == b"went on\n"


def test_a_step_that_fails_says_so_and_lets_the_error_pass() -> None:
    stream = io.StringIO()
    with pytest.raises(BadInputError), Display(stream=stream).step("image"):
        raise BadInputError("no")
    assert stream.getvalue().endswith("failed\n")


def test_a_long_step_says_now_and_then_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.0)
    stream = io.StringIO()
    with Display(stream=stream).step("image") as step:
        time.sleep(0.01)
        step.say("Step 7/9")
        step.say("Successfully installed " + "package " * 100)
    first, second, _done = stream.getvalue().splitlines()
    assert first.endswith("Step 7/9")
    assert second.endswith(" …")
    assert len(second) < 130


def test_on_a_terminal_the_last_lines_are_shown_and_go_away() -> None:
    master, slave = pty.openpty()
    seen = bytearray()
    reader = threading.Thread(target=lambda: _read(master, seen), daemon=True)
    reader.start()
    with os.fdopen(slave, "w") as stream:
        display = Display(stream=stream)
        with display.step("run") as step:
            step.say("epoch 1")
            time.sleep(module.APPEAR_SECONDS + 0.5)
            display.notice("look at this")
            step.detail = "finished"
    reader.join(5)
    os.close(master)
    text = seen.decode()
    assert "epoch 1" in text
    assert "note: look at this" in text
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.rpartition("\r")[0].rpartition("\r")[2])
    assert re.search(r"run +\d\.\d s  finished", last)


def _read(master: int, seen: bytearray) -> None:
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            return
        if not chunk:
            return
        seen += chunk


def test_an_error_is_what_failed_the_evidence_and_what_to_try() -> None:
    stream = io.StringIO()
    Display(stream=stream).error(BadInputError("no such thing", evidence=["a\nb"], hints=["another"]))
    assert stream.getvalue() == "repro: no such thing\n  | a\n  | b\n  try  another\n"
