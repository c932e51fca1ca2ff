"""The experiment: logs a point and prints a line every 20 ms, and keeps a truth of its own of both."""

import os
import signal
import sys
import time

import repro_run

params = repro_run.config().params
truth = os.open(str(repro_run.outputs() / "truth"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def note(text):
    os.write(truth, text.encode() + b"\n")


def interrupt(number, _frame):
    note(f"signal {number}")
    raise KeyboardInterrupt


def work():
    for step in range(params.steps):
        os.write(1, f"line {step}\n".encode())
        repro_run.log(step=step, value=step * 0.25 + 1)
        note(f"step {step}")
        time.sleep(0.02)


if not params.handles:
    work()
else:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)
    try:
        work()
    except KeyboardInterrupt:
        params = {**params, "code": 7}
    finally:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        repro_run.log(step=0, checkpoint=1)
        note("checkpoint")
note("done")
sys.exit(params["code"])
