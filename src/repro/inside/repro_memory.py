"""The journal of a run, read back: what the run, its nested runs and its models are as far as all processes wrote.

Nothing is kept that is not in the journal: whoever asks gets what any process of the container has logged.
"""

import json
import os
import threading
from pathlib import Path


class Run:
    """A run as it is known; `metrics` has the last value of each: value, time (ms), step."""

    def __init__(self, name, start, parent=None):
        self.name, self.start, self.parent = name, start, parent
        self.status, self.end = "RUNNING", None
        self.tags, self.params, self.metrics = {}, {}, {}
        self.inputs, self.used, self.outputs = [], [], []


class Model:
    """A logged model as it is known."""

    def __init__(self, event):
        self.name, self.kind, self.run = event["k"], event.get("type"), event.get("r")
        self.start = self.end = event["ts"]
        self.status = "PENDING"
        self.tags, self.params, self.metrics = event.get("tags") or {}, event.get("params") or {}, []


class Memory:
    """Reads what is new in the journal whenever it is asked."""

    def __init__(self, folder, root, start):
        self.folder, self.root = Path(folder), root
        self.runs, self.models = {root: Run(root, start)}, {}
        self.read = {}  # bytes, by file
        self.lock = threading.RLock()
        os.register_at_fork(before=self._hold, after_in_parent=self._let_go, after_in_child=self._forked)

    def _hold(self):
        self.lock.acquire()

    def _let_go(self):
        self.lock.release()

    def _forked(self):
        self.lock = threading.RLock()  # the thread that held the old one is not here to release it

    def refresh(self):
        """Take in whole lines that any process wrote since the last time."""
        with self.lock:
            for path in sorted(self.folder.glob("events-*.jsonl")):
                for event in self._news(path):
                    self._apply(event)

    def history(self, run, key):
        """Every point of a metric: value, time (ms), step."""
        points = []
        for path in sorted(self.folder.glob("events-*.jsonl")):
            events = map(_event, path.read_bytes().split(b"\n"))
            wanted = (event for event in events if (event.get("t"), event.get("k")) == ("m", key) and "v" in event)
            points += [_point(event) for event in wanted if event.get("r", self.root) == run]
        return sorted(points, key=lambda point: point[1:])

    def _news(self, path):
        done = self.read.get(path.name, 0)
        if path.stat().st_size <= done:
            return
        with path.open("rb") as file:
            file.seek(done)
            block = file.read()
        end = block.rfind(b"\n") + 1
        self.read[path.name] = done + end
        for line in block[:end].splitlines():
            yield _event(line)

    def _apply(self, event):
        try:
            kind = event.get("t")
            if kind == "run":
                new = self.runs.setdefault(event["r"], Run(event["k"], event["ts"], event.get("parent")))
                new.tags.update(event.get("tags") or {})
            elif kind == "model":
                self.models.setdefault(event["m"], Model(event))
            elif kind in ("m", "p", "tag", "end"):
                self._note(kind, event)
            elif kind in ("input", "used", "output"):
                self._link(kind, event)
        except (KeyError, TypeError, ValueError):  # no line of ours
            pass

    def _note(self, kind, event):
        model = self.models.get(event.get("m"))
        run = self.runs[event.get("r", self.root)]
        if kind == "m":
            point = _point(event)
            last = run.metrics.get(event["k"])
            if last is None or (point[2], point[1]) >= (last[2], last[1]):
                run.metrics[event["k"]] = point
            if model:
                model.metrics.append((event["k"], point, event.get("r", self.root)))
            return
        about = model or run
        if kind == "end":
            about.status, about.end = event["v"], event.get("ts")
        else:
            (about.params if kind == "p" else about.tags)[event["k"]] = str(event["v"])

    def _link(self, kind, event):
        run = self.runs[event.get("r", self.root)]
        if kind == "input":
            run.inputs.append((event["ds"], event.get("tags") or {}))
        elif kind == "used":
            run.used.append(event["m"])
        else:
            run.outputs.append((event["m"], int(event.get("s", 0))))


def _event(line):
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _point(event):
    return float(event["v"]), int(event.get("ts", 0)), int(event.get("s", 0))
