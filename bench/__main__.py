"""Times whole commands beside the plain tool in the same run, and prints ratios. Needs a Docker Engine.

python -m bench [--rounds N] [--only run|live|host|many|rebuild|wheels|snapshot|back]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path

from bench.back import bench_back
from bench.clock import BIN, ENV, GIT, PYTHON, alternate, call, limit, ratio, row, timed

LIVE = """
import time
import repro_run
for step in range(50):
    repro_run.log(step=step, live=step)
    time.sleep(0.5)
"""


STEADY = """
import time
import repro_run
begun = time.perf_counter()
for step in range(200):
    repro_run.log(step=step, call=step)
print(f"calls {time.perf_counter() - begun:.6f}", flush=True)
begun = time.time()
for step in range(SECONDS * 10):
    time.sleep(max(0.0, begun + step / 10 - time.time()))
    repro_run.log(step=step, steady=step)
"""
STEADY_SECONDS, FROM, UNTIL = 70, 15, 65  # of a run that logs ten points a second; in between its host is measured


def base_image() -> str:
    """An image that is on the engine: the project's own Debian base, made when it is missing."""
    from repro import config
    from repro.engines.engine import connect
    from repro.project import Project
    from repro.recipe import base

    project = Project.find(Path(__file__).parent)
    image, _build = config.compose_image(project, ["image=debian"])
    if image.bootstrap is None:
        raise SystemExit("image=debian has no bootstrap recipe")
    return base.ensure(image.bootstrap, connect(), say=print)


def make_project(root: Path, base: str) -> None:
    (root / "conf" / "experiment").mkdir(parents=True)
    (root / "conf" / "image").mkdir()
    (root / "docker").mkdir()
    (root / "conf" / "image" / "tensorflow.yaml").write_text(f"variant: tensorflow\nbase: {base}\nrequirements: null\n")
    (root / "conf" / "experiment" / "trivial.yaml").write_text(
        "# @package _global_\nname: trivial\ncommand: ['true']\n"
    )
    (root / "live.py").write_text(LIVE)
    (root / "conf" / "experiment" / "live.yaml").write_text(
        "# @package _global_\nname: live\ncommand: [python3, live.py]\n"
    )
    (root / "docker" / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nENV BENCH=1\n")
    (root / "MLproject").write_text(
        f"name: trivial\ndocker_env:\n  image: {base}\nentry_points:\n  main:\n    command: 'true'\n"
    )
    call(["git", "init", "-q", "-b", "main"], root)
    call(["git", "add", "-A"], root)
    call(["git", "commit", "-qm", "bench"], root)


def bench_run(root: Path, rounds: int) -> list[str]:
    ours = [PYTHON, "-m", "repro.run", "experiment=trivial", "gpus=none"]
    starts: list[float] = []
    arrivals: list[float] = []

    def repro() -> float:
        begun = time.time()
        seconds = timed(ours, root)
        folder = max(root.glob("runs/*/record.json")).parent
        started = json.loads((folder / "record.json").read_text())["started"]["at"]
        starts.append(datetime.fromisoformat(started.replace("Z", "+00:00")).timestamp() - begun)
        while not _arrived(folder):  # nor would it be fair to let what it does in the background slow the next one
            time.sleep(0.02)
        arrivals.append(time.time() - begun)
        time.sleep(0.5)  # the process behind it ends
        return seconds

    plain = ["docker", "run", "--rm", "--network=none", json.loads((root / "image.json").read_text()), "true"]
    repro()
    timed([str(BIN / "mlflow"), "run", "."], root)
    starts.clear()
    arrivals.clear()
    times = alternate(
        rounds,
        repro=repro,
        mlflow=lambda: timed([str(BIN / "mlflow"), "run", "."], root),
        docker=lambda: timed(plain, root),
    )
    return [
        "A run of `true`, start to end, sqlite store",
        row("python -m repro.run experiment=trivial", times["repro"]),
        row("mlflow run . (docker_env)", times["mlflow"]),
        row("docker run --rm --network=none", times["docker"]),
        ratio("repro / mlflow run", times["repro"], times["mlflow"], 0.5),
        limit("from the command to the running container", starts, 1.0),
        row("repro, until all of it is in MLflow", arrivals),
        ratio("the same / mlflow run", arrivals, times["mlflow"], 1.0),
    ]


def _arrived(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "tracking.json").read_text())["artifacts"])
    except (OSError, ValueError):
        return False


def bench_live(root: Path, rounds: int) -> list[str]:
    """Two points a second from a container; how old each is when MLflow's own API first gives it back."""
    from mlflow import MlflowClient

    from repro.tracking import store

    uri = f"sqlite:///{root / 'mlflow.db'}"
    store.prepare(uri)
    client = MlflowClient(uri)
    process = subprocess.Popen(
        [PYTHON, "-m", "repro.run", "experiment=live", "gpus=none", "tracking.wait=30"],
        cwd=root,
        env={**ENV, **GIT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ages: dict[int, float] = {}
    since = 0.0  # before that, MLflow was being imported
    while process.poll() is None:
        for run in client.search_runs([each.experiment_id for each in client.search_experiments()]):
            for point in client.get_metric_history(run.info.run_id, "live"):
                since = since or time.time()
                if point.timestamp / 1000 > since:
                    ages.setdefault(point.step, time.time() - point.timestamp / 1000)
        time.sleep(0.02)
    seen = list(ages.values())[: 5 * rounds]
    return ["A point that an experiment logs", limit("until MLflow's API gives it back", seen, 1.0), row("all", seen)]


def bench_host(root: Path, _rounds: int) -> list[str]:
    """What the processes behind a detached run cost: the one that keeps it and the one that feeds MLflow."""
    from repro.record import RunFolder
    from repro.tracking import journal

    (root / "steady.py").write_text(STEADY.replace("SECONDS", str(STEADY_SECONDS)))
    (root / "conf" / "experiment" / "steady.yaml").write_text(
        "# @package _global_\nname: steady\ncommand: [python3, steady.py]\n"
    )
    run = call([PYTHON, "-m", "repro.run", "-d", "experiment=steady", "gpus=none"], root).stdout.strip()
    folder = RunFolder(root / "runs" / run)
    time.sleep(FROM)
    before = _cpu(root)
    time.sleep(UNTIL - FROM)
    after = _cpu(root)
    cost = {name: (after[name] - before[name]) / (UNTIL - FROM) for name in before}
    call([str(BIN / "repro"), "wait", run], root)
    points = sum(point.key == "steady" for events in journal.everything(folder) for point in events.metrics)
    calls = float(folder.output_log.read_text().partition("calls ")[2].split()[0])
    total = sum(cost.values())
    return [
        f"A run that logs ten points a second ({points} of them), and its host",
        *(f"  {name:<44} {share:7.2%} of one core" for name, share in sorted(cost.items())),
        f"  {'all of it':<44} {total:7.2%}     bound 2%: {'held' if total <= 0.02 else 'MISSED'}",
        limit("200 calls of repro_run.log(), in the container", [calls], 0.02),
    ]


def _cpu(root: Path) -> dict[str, float]:
    """Seconds of processor time so far, of each process of this project's in the background, by its module."""
    found: dict[str, float] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if (
                "-m" in words
                and words[words.index("-m") + 1].startswith("repro.")
                and any(str(root) in w for w in words)
            ):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                found[words[words.index("-m") + 1]] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:  # it has ended
            continue
    return found


def bench_many(root: Path, rounds: int) -> list[str]:
    """A thousand recorded runs, each a copy of a real one, and the commands that read them."""
    call([PYTHON, "-m", "repro.run", "experiment=trivial", "gpus=none"], root)
    template = max(root.glob("runs/*-trivial-*"))
    many = root.parent / "many"
    shutil.copytree(root, many, ignore=shutil.ignore_patterns("runs", ".repro", "mlflow.db"))
    for number in range(1000):
        folder = (
            many
            / "runs"
            / f"20261001-{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}-trivial-{number:06x}"
        )
        shutil.copytree(template, folder)
        record = (folder / "record.json").read_text().replace(template.name, folder.name)
        (folder / "record.json").write_text(record)
    times = {
        verb: [timed([str(BIN / "repro"), verb], many) for _ in range(rounds)] for verb in ("runs", "show", "logs")
    }
    return ["A thousand recorded runs", *(limit(f"repro {verb}", times[verb], 0.3) for verb in times)]


def in_process(rounds: int) -> list[float]:
    """What `--if-changed` does inside the process, for the image of this repository: read, hash, ask the engine."""
    from repro import config, image, lockfile
    from repro.engines import glance
    from repro.project import Project

    project = Project.find(Path(__file__).parent)
    wanted, build = config.compose_image(project, ["image=debian"])

    def look() -> float:
        begun = time.perf_counter()
        spec, _stale = lockfile.read_spec(project, wanted, build)
        image.present(spec, glance.image)
        return time.perf_counter() - begun

    return [look() for _ in range(rounds)]


def bench_rebuild(root: Path, rounds: int) -> list[str]:
    repro = [str(BIN / "repro"), "rebuild", "--if-changed"]
    call(repro, root)
    context = root / "context"
    context.mkdir()
    shutil.copy(root / "docker" / "Dockerfile", context)
    base = json.loads((root / "image.json").read_text())
    docker = ["docker", "build", "-q", "--build-arg", f"BASE_IMAGE={base}", "-t", "repro-bench:1", "."]
    call(docker, context)
    times = alternate(rounds, repro=lambda: timed(repro, root), docker=lambda: timed(docker, context))
    with (root / "big.bin").open("wb") as file:
        for _ in range(1024):
            file.write(os.urandom(1 << 20))
    large = [timed(repro, root) for _ in range(rounds)]
    (root / "big.bin").unlink()
    call(["docker", "rmi", "repro-bench:1"], root)
    return [
        "An image that is there already",
        row("repro rebuild --if-changed", times["repro"]),
        row("docker build, all steps cached", times["docker"]),
        ratio("repro / docker build", times["repro"], times["docker"], 3.0),
        row("repro, with a 1 GB file in the project", large),
        ratio("with / without the file", large, times["repro"], 1.25),
        limit("hash and presence, in process", in_process(rounds), 0.02),
    ]


ADDED = ("tabulate==0.9.0", "humanize==4.12.1", "tqdm==4.67.1")  # one line more for each round
PLAIN = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN python3 -m venv /opt/venv
COPY requirements*.txt /tmp/
RUN /opt/venv/bin/pip install --no-cache-dir -r /tmp/requirements-cpu.txt
"""


def bench_wheels(root: Path, _rounds: int) -> list[str]:
    """The shipped TensorFlow image after a changed line of its requirements, beside a `docker build` of the same."""
    ours, plain = root.parent / "wheels", root.parent / "plain"
    shipped = Path(__file__).parents[1]
    shutil.copytree(shipped / "docker", ours / "docker")
    (ours / "conf" / "image").mkdir(parents=True)
    variant = (shipped / "conf" / "image" / "debian.yaml").read_text()
    (ours / "conf" / "image" / "debian.yaml").write_text(f"{variant}name: repro-bench\n")
    plain.mkdir()
    (plain / "Dockerfile").write_text(PLAIN)
    base = json.loads((root / "image.json").read_text())

    def changed(old: str, new: str) -> None:
        file = ours / "docker" / "requirements-common.txt"
        file.write_text(file.read_text().replace(old, new))

    def repro() -> float:
        lock = timed([str(BIN / "repro"), "lock", "image=debian"], ours)
        return lock + timed([str(BIN / "repro"), "rebuild", "image=debian"], ours)

    def docker() -> float:
        for file in (ours / "docker").glob("requirements*.txt"):
            shutil.copy(file, plain)
        with (plain / "requirements-cpu.txt").open("a") as file:
            file.write(f"# {time.time()}\n")  # the builder has the result of an earlier benchmark in its cache
        return timed(
            ["docker", "build", "-q", "--build-arg", f"BASE_IMAGE={base}", "-t", "repro-bench:plain", "."], plain
        )

    def told(times: dict[str, list[float]], first: dict[str, float]) -> list[str]:
        return [
            "The TensorFlow image after a changed line of its requirements (repro: lock and rebuild)",
            row("repro, a small package more", times["repro"]),
            row("docker build, the same", times["docker"]),
            ratio("repro / docker build", times["repro"], times["docker"], 0.7),
            row("repro, from the base and the cached wheels", [first["repro"]]),
            row("docker build, from the base", [first["docker"]]),
        ]

    first = {"repro": repro(), "docker": docker()}
    times: dict[str, list[float]] = {"repro": [], "docker": []}
    for line in ADDED:
        changed("numpy==", f"{line}\nnumpy==")
        times["repro"].append(repro())
        times["docker"].append(docker())
    print("\n".join(told(times, first)), flush=True)
    changed("numpy==2.4.6", "numpy==2.4.5")
    large = {"repro": repro(), "docker": docker()}
    for tag in call(["docker", "images", "-q", "repro-bench"], root).stdout.split():
        call(["docker", "rmi", "-f", tag], root)
    return [
        row("repro, another numpy (17 MB: a large one)", [large["repro"]]),
        row("docker build, the same", [large["docker"]]),
    ]


def bench_snapshot(root: Path, rounds: int) -> list[str]:
    from repro.code import source

    many = root / "many"
    for number in range(5000):
        folder = many / f"d{number % 50}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number}.py").write_text(f"value = {number}\n" * 20)
    call(["git", "init", "-q", "-b", "main"], many)
    call(["git", "add", "-A"], many)
    call(["git", "commit", "-qm", "many"], many)
    source.capture(many)

    def capture() -> float:
        begun = time.perf_counter()
        source.capture(many)
        return time.perf_counter() - begun

    clean = [capture() for _ in range(rounds)]
    for number in range(3):
        (many / f"new{number}.py").write_text("x = 1\n")
    dirty = [capture() for _ in range(rounds)]
    return [
        "A snapshot of a repository with 5,000 files",
        limit("nothing changed", clean, 0.5),
        row("three files changed", dirty),
    ]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--only", choices=["run", "live", "host", "many", "rebuild", "wheels", "snapshot", "back"])
    chosen = arguments.parse_args()
    parts = {"run": bench_run, "live": bench_live, "host": bench_host, "many": bench_many}
    parts |= {"rebuild": bench_rebuild, "wheels": bench_wheels, "snapshot": bench_snapshot, "back": bench_back}
    with tempfile.TemporaryDirectory(prefix="repro-bench-", ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "project"
        root.mkdir()
        base = base_image()
        make_project(root, base)
        (root / "image.json").write_text(json.dumps(base))
        for name, part in parts.items():
            if chosen.only in (None, name):
                print("\n".join(part(root, chosen.rounds)), flush=True)


if __name__ == "__main__":
    main()
