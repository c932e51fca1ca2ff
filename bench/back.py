"""Getting a run back: what keeping everything costs a run, and how long comparing and exporting one take."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from bench.clock import BIN, PYTHON, alternate, call, limit, row, timed

OUTPUTS = 1 << 30  # bytes, of files that no stabilizer knows
POINTS = 50_000
LAYER = 2_000_000_000  # bytes of the image that is exported

MAKE = """
import json, pathlib
import h5py, numpy
from PIL import Image
out = pathlib.Path("outputs")
values = numpy.random.default_rng(1).normal(size=(1000, 500)).astype("float32")
numpy.savez(out / "weights.npz", weights=values)
with h5py.File(out / "weights.h5", "w") as file:
    file["weights"] = values
Image.fromarray((values[:480, :480] * 40 + 128).clip(0, 255).astype("uint8")).save(out / "curve.png")
(out / "results.json").write_text(json.dumps({"history": values[0].tolist()}))
"""

SERIES = """
import random
import repro_run
random.seed(repro_run.config().seed)
for step in range(1000):
    repro_run.log(step=step, loss=random.random(), accuracy=random.random())
with open("/outputs/results.json", "w") as file:
    file.write(str(random.random()))
"""


def bench_back(root: Path, rounds: int) -> list[str]:
    """All of it; `rounds` for what is quick."""
    (root / "series.py").write_text(SERIES)
    (root / "conf" / "experiment" / "series.yaml").write_text(
        "# @package _global_\nname: series\ncommand: [python3, series.py]\n"
    )
    return [*_capture(root.parent / "capture", rounds), *_diff(root, rounds), *_export(root)]


def _capture(folder: Path, rounds: int) -> list[str]:
    """What is done at the end of a run: files, metrics and trace into the record."""
    outputs, journal = folder / "outputs", folder / "journal"
    outputs.mkdir(parents=True)
    journal.mkdir()
    with (outputs / "checkpoint.bin").open("wb") as file:
        for _ in range(OUTPUTS >> 20):
            file.write(os.urandom(1 << 20))
    call([PYTHON, "-c", MAKE], folder)
    lines = [json.dumps({"t": "m", "k": "loss", "v": 1 / (step + 1), "ts": 1, "s": step}) for step in range(POINTS)]
    (journal / "events-1-0.jsonl").write_text("\n".join(lines) + "\n")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom repro import manifest\nfrom repro.record import RunFolder\n"
        "from repro.running import harvest\nfolder = RunFolder(Path(sys.argv[1]))\nbegun = time.perf_counter()\n"
        "found = manifest.of(folder.outputs), harvest.of(folder, 'run')\nprint(time.perf_counter() - begun)\n"
    )
    files = [str(path) for path in sorted(outputs.iterdir())]
    hashing = (
        "import hashlib, sys, time\nbegun = time.perf_counter()\nfor path in sys.argv[1:]:\n"
        "    with open(path, 'rb') as file:\n        digest = hashlib.sha256()\n"
        "        while block := file.read(1 << 20): digest.update(block)\nprint(time.perf_counter() - begun)\n"
    )
    times = alternate(
        rounds,
        repro=lambda: float(call([PYTHON, "-c", code, str(folder)], folder).stdout),
        hashing=lambda: float(call([PYTHON, "-c", hashing, *files], folder).stdout),
        sha256sum=lambda: timed(["sha256sum", *files], folder),
    )
    more = [ours - theirs for ours, theirs in zip(times["repro"], times["hashing"], strict=True)]
    return [
        "Into the record: 1 GiB and four files that stabilizers know, 50,000 points",
        row("files, metrics, trace", times["repro"]),
        row("the same library's sha256 of the files alone", times["hashing"]),
        row("sha256sum of the files", times["sha256sum"]),
        limit("what is added to hashing", more, 0.3),
    ]


def _diff(root: Path, rounds: int) -> list[str]:
    runs = []
    for seed in (1, 2):
        call([PYTHON, "-m", "repro.run", "experiment=series", "gpus=none", f"seed={seed}"], root)
        runs.append(max(root.glob("runs/*-series-*")).name)

    def diff() -> float:
        begun = time.perf_counter()
        done = subprocess.run(
            [str(BIN / "repro"), "diff", *runs], cwd=root, capture_output=True, text=True, check=False
        )
        if done.returncode != 1:  # the answer is that they differ
            raise SystemExit(f"repro diff exited with {done.returncode}\n{done.stdout}{done.stderr}")
        return time.perf_counter() - begun

    return ["Two runs of 2,000 points", limit("repro diff", [diff() for _ in range(rounds)], 1.0)]


def _export(root: Path) -> list[str]:
    """A run of an image of 2 GB, into one file, beside what the engine alone takes to hand out the image."""
    dockerfile = root / "docker" / "Dockerfile"
    kept = dockerfile.read_text()
    dockerfile.write_text(f"{kept}RUN head -c {LAYER} /dev/urandom > /large\n")
    call([PYTHON, "-m", "repro.run", "experiment=trivial", "gpus=none"], root)
    run = max(root.glob("runs/*-trivial-*"))
    image = json.loads((run / "record.json").read_text())["planned"]["image"]["id"]
    bundle = root.parent / "run.crate.zip"
    watched = (
        "import resource, subprocess, sys\nsubprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    begun = time.perf_counter()
    command = [str(BIN / "repro"), "export", run.name, "-o", str(bundle)]
    peak = int(call([PYTHON, "-c", watched, *command], root).stdout) * 1024
    ours = time.perf_counter() - begun
    plain = timed(["docker", "save", "-o", str(root.parent / "image.tar"), image], root)
    size = bundle.stat().st_size
    (root.parent / "image.tar").unlink()
    bundle.unlink()
    dockerfile.write_text(kept)
    call(["docker", "rmi", "-f", image], root)
    return [
        f"A run whose image has 2 GB, exported: {size / 1e9:.2f} GB",
        row("repro export", [ours]),
        row("docker save of the image alone", [plain]),
        f"  {'its memory':<44} at most {peak / 1e6:.0f} MB",
    ]
