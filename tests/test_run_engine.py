"""Runs on a real engine, through the command line, as a user has them."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from repro.engines.engine import connect
from repro.project import Project
from repro.record import Record, RunFolder, folders
from tests.conftest import commit, script, write_experiment

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]


def latest(project: Project) -> tuple[Record, RunFolder]:
    folder = list(folders(project.runs))[-1]
    return folder.read(), folder


def containers(project: Project) -> list[str]:
    everything = connect().all_containers()
    return [each.name for each in everything if each.labels.get("repro.project") == str(project.root)]


def left(project: Project) -> tuple[list[str], list[Path]]:
    """What a command that failed may not leave behind: containers, run folders."""
    return containers(project), list(folders(project.runs))


def test_a_run_is_recorded_with_its_outputs_code_image_and_end(lab: Project, repro: Repro) -> None:
    done = repro("run", "experiment=toy", "gpus=none", "tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    record, folder = latest(lab)
    assert record.ended is not None
    assert (record.ended.end.value, record.ended.exit_code) == ("finished", 0)
    assert [file.path for file in record.ended.outputs] == ["x"]
    assert (folder.outputs / "x").read_text() == "42\n"
    owner = (folder.outputs / "x").stat()
    assert (owner.st_uid, owner.st_gid) == (os.getuid(), os.getgid())
    assert folder.output_log.read_text() == "hello\n"
    assert record.planned.image.tag in done.stdout
    assert "loss 0.25" in done.stdout
    assert connect().image(record.planned.image.tag).id == record.planned.image.id  # type: ignore[union-attr]
    shown = subprocess.run(
        ["git", "-C", str(lab.root), "show", f"{record.planned.code.commit}:toy.sh"], check=True, capture_output=True
    )
    assert b"repro-log" in shown.stdout
    assert record.planned.code.dirty
    assert record.planned.notices[0].startswith("floating: base")
    assert "repro-log" in folder.diff.read_text()
    assert containers(lab) == []


def test_a_second_run_builds_nothing_and_says_json(lab: Project, repro: Repro) -> None:
    assert repro("run", "experiment=toy", "tracking.enabled=false").returncode == 0
    done = repro("run", "--json", "experiment=toy", "tracking.enabled=false")
    assert "present" in done.stderr
    assert json.loads(done.stdout)["ended"]["end"] == "finished"


def test_the_container_is_locked_down(lab: Project, repro: Repro) -> None:
    script(
        lab,
        "toy.sh",
        """set -u; exec > $REPRO_OUTPUTS/report
grep -E '^(CapEff|NoNewPrivs)' /proc/self/status
id -u; id -g; pwd; ls /sys/class/net; cat /proc/1/comm
touch /x 2>/dev/null && echo root-writable; touch /workspace/x 2>/dev/null && echo workspace-writable
touch /repro/inside/x 2>/dev/null && echo ours-writable
touch /tmp/x $HOME/x && echo scratch-ok; df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d' ' -f2""",
    )
    assert repro("run", "experiment=toy", "tracking.enabled=false", "resources.shm=64m").returncode == 0
    lines = (latest(lab)[1].outputs / "report").read_text().split("\n")
    assert lines[:8] == [
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        str(os.getuid()),
        str(os.getgid()),
        "/workspace",
        "lo",
        "docker-init",
        "scratch-ok",
    ]
    assert lines[8] == str(64 * 1024)


def test_a_failing_experiment_shows_its_last_lines_and_exits_1(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "echo about to fail; exit 7")
    done = repro("run", "experiment=toy", "tracking.enabled=false")
    assert done.returncode == 1
    assert "toy failed: exit code 7" in done.stderr
    assert "  | about to fail" in done.stderr
    assert str(latest(lab)[1].output_log) in done.stderr
    assert latest(lab)[0].state == "failed"


@pytest.mark.parametrize(
    ("overrides", "code", "says"),
    [
        (["command=[nosuchprogram]"], 2, "the image does not hold that program"),
        (["command=[/nosuch/program]"], 2, "the image does not hold that program"),
        (["gpus=all"], 3, "install NVIDIA's driver and the NVIDIA Container Toolkit"),
        (["gpus=1"], 3, "cannot give the container the GPUs"),
        (["gpus=some"], 2, "gpus: 'some' is not understood"),
        (["env.REPRO_RUN=x", "+env.REPRO_RUN=x"], 2, "env.REPRO_RUN"),
        (["network=nosuchnetwork"], 3, "nosuchnetwork"),
        (["seeed=1"], 2, "did you mean seed?"),
        (["tracking.uri=file:///tmp/x"], 2, "file"),
        (["image.base=127.0.0.1:1/nosuch:1"], 3, "cannot be pulled"),
    ],
)
def test_bad_input_leaves_nothing_behind(
    lab: Project, repro: Repro, overrides: list[str], code: int, says: str
) -> None:
    done = repro("run", "experiment=toy", *overrides)
    assert (done.returncode, left(lab)) == (code, ([], [])), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def _no_dockerfile(lab: Project) -> None:
    (lab.docker / "Dockerfile").unlink()


def _no_requirements(lab: Project) -> None:
    (lab.docker / "requirements.txt").unlink()


def _undeclared(lab: Project) -> None:
    (lab.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY toy.sh /toy.sh\n")


def _no_dockerfile_at_all(lab: Project) -> None:
    (lab.docker / "Dockerfile").write_text("FRMO scratch\n")


def _failing_step(lab: Project) -> None:
    (lab.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN echo one && echo two && exit 3\n")


def _no_data(lab: Project) -> None:
    (lab.conf / "data").mkdir()
    (lab.conf / "data" / "lost.yaml").write_text(
        f"lost:\n  files: {{a.gz: {'a' * 64}}}\n  sources: [http://127.0.0.1:9/]\n"
    )
    write_experiment(lab.root, "toy", "[sh]", "defaults: [{override /data: lost}]\n")


def _other_bytes(lab: Project) -> None:
    _no_data(lab)
    (lab.root / "mirror").mkdir()
    (lab.root / "mirror" / "a.gz").write_text("something else")
    file = lab.conf / "data" / "lost.yaml"
    file.write_text(file.read_text().replace("http://127.0.0.1:9/", str(lab.root / "mirror")))


def _no_repository(lab: Project) -> None:
    shutil.rmtree(lab.root / ".git")


def _no_experiment_files(lab: Project) -> None:
    shutil.rmtree(lab.conf)


@pytest.mark.parametrize(
    ("harm", "code", "says"),
    [
        (_no_dockerfile, 2, ["docker/Dockerfile cannot be read", "image.dockerfile"]),
        (_no_requirements, 2, ["docker/requirements.txt cannot be read", "image.requirements"]),
        (_undeclared, 2, ["docker/Dockerfile:3: COPY toy.sh /toy.sh", "`image.context: [toy.sh]`"]),
        (_no_dockerfile_at_all, 2, ["FRMO"]),
        (_failing_step, 2, ["docker/Dockerfile:3 failed", "  | two", "build-"]),
        (_no_data, 3, ["lost", "127.0.0.1:9", "REPRO_DATA_SOURCE"]),
        (_other_bytes, 3, ["a.gz", "sha256"]),
        (_no_repository, 2, ["git"]),
        (_no_experiment_files, 2, ["no project here"]),
    ],
)
def test_harm_done_to_the_project_is_named_and_leaves_nothing(
    lab: Project, repro: Repro, harm: Callable[[Project], None], code: int, says: list[str]
) -> None:
    harm(lab)
    done = repro("run", "experiment=toy", "tracking.enabled=false")
    assert (done.returncode, left(lab)) == (code, ([], [])), done.stderr
    for words in says:
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_no_engine_is_one_clear_error(lab: Project, repro: Repro) -> None:
    done = repro("run", "experiment=toy", DOCKER_HOST="unix:///nosuch.sock")
    assert done.returncode == 3
    assert "no Docker engine answers at unix:///nosuch.sock" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_container_and_records_it(lab: Project, repro: Repro, signal_: signal.Signals) -> None:
    script(lab, "toy.sh", "trap 'echo stopping; exit 0' INT; echo begun; while :; do sleep 0.1; done")
    process = start(lab, "experiment=toy", "tracking.enabled=false")
    wait_for(lambda: begun(lab))
    process.send_signal(signal_)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    record, folder = latest(lab)
    assert record.state == "killed"
    assert folder.output_log.read_text() == "begun\nstopping\n"
    assert containers(lab) == []


def test_a_program_that_ignores_the_stop_is_killed_after_the_grace_time(lab: Project) -> None:
    script(lab, "toy.sh", "trap '' TERM INT; echo begun; while :; do sleep 0.1; done")
    process = start(lab, "experiment=toy", "tracking.enabled=false", "resources.stop_grace=1.0")
    wait_for(lambda: begun(lab))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert latest(lab)[0].ended.exit_code == 137  # type: ignore[union-attr]
    assert containers(lab) == []


def start(project: Project, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "repro.run", *arguments],
        cwd=project.root,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def begun(project: Project) -> bool:
    found = list(folders(project.runs))
    return bool(found) and found[-1].output_log.is_file() and "begun" in found[-1].output_log.read_text()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_limits_end_a_run_with_their_own_names(lab: Project, repro: Repro) -> None:
    write_experiment(lab.root, "greedy", "[python3, -c, \"x = 'a' * (1 << 30)\"]")
    done = repro("run", "experiment=greedy", "tracking.enabled=false", "resources.memory=64m")
    assert done.returncode == 1
    assert latest(lab)[0].state == "oom"
    assert "raise resources.memory" in done.stderr
    write_experiment(lab.root, "slow", "[sleep, '60']")
    done = repro("run", "experiment=slow", "tracking.enabled=false", "resources.time_limit=1.0")
    assert done.returncode == 1
    assert latest(lab)[0].state == "timeout"


def test_edits_during_a_run_change_nothing_in_it(lab: Project) -> None:
    script(lab, "value.txt", "before")
    script(
        lab,
        "toy.sh",
        "echo begun; while [ ! -e /outputs/go ]; do sleep 0.05; done; cat value.txt > $REPRO_OUTPUTS/seen",
    )
    process = start(lab, "experiment=toy", "tracking.enabled=false")
    wait_for(lambda: begun(lab))
    script(lab, "value.txt", "after")
    (latest(lab)[1].outputs / "go").touch()
    process.communicate(timeout=60)
    assert (latest(lab)[1].outputs / "seen").read_text() == "before\n"


def test_a_multirun_is_one_snapshot_and_one_image_for_all_jobs(lab: Project, repro: Repro) -> None:
    done = repro("run", "-m", "experiment=toy", "seed=1,2", "tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    records = [folder.read() for folder in folders(lab.runs)]
    assert [record.planned.config["seed"] for record in records] == [1, 2]
    assert len({record.planned.code.commit for record in records}) == 1
    assert len({record.planned.image.id for record in records}) == 1
    assert done.stderr.count("code  ") == 1


def test_a_job_that_fails_does_not_keep_the_others_of_a_multirun_from_running(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "test $PYTHONHASHSEED != 1")
    done = repro("run", "-m", "experiment=toy", "seed=1,2", "tracking.enabled=false")
    assert done.returncode == 1
    assert [folder.read().state for folder in folders(lab.runs)] == ["failed", "finished"]


def test_hydras_own_folder_for_a_run_is_respected(lab: Project, repro: Repro, tmp_path: Path) -> None:
    done = repro("run", "experiment=toy", f"hydra.run.dir={tmp_path}/mine", "tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "outputs" / "x").exists()
    record, folder = latest(lab)
    assert folder.path.resolve() == tmp_path / "mine"
    again = repro("run", "experiment=toy", f"hydra.run.dir={tmp_path}/mine", "tracking.enabled=false")
    assert (again.returncode, "is not empty" in again.stderr) == (2, True)
    assert repro("show", record.planned.run).returncode == 0


def test_plan_prints_what_would_run_and_runs_nothing(lab: Project, repro: Repro) -> None:
    done = repro("run", "--plan", "experiment=toy")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["container"]["image"].startswith("sha256:")
    assert left(lab) == ([], [])


def test_hydras_flags_work_without_an_engine(lab: Project, repro: Repro) -> None:
    shown = repro("run", "experiment=toy", "--cfg", "job", DOCKER_HOST="unix:///nosuch.sock")
    assert "name: toy" in shown.stdout
    helped = repro("run", "--help", DOCKER_HOST="unix:///nosuch.sock").stdout
    assert "experiment: toy" in helped
    assert "--locked" in helped
    other = lab.root / "other"
    other.mkdir()
    (other / "extra.yaml").write_text("name: extra\n")
    assert repro("run", "--config-dir", str(other), "experiment=toy", "--cfg", "job").returncode == 0


def test_a_full_output_disk_fails_the_run_and_keeps_the_record(lab: Project, repro: Repro, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], check=True)
    try:
        script(lab, "toy.sh", "head -c 4000000 /dev/zero > $REPRO_OUTPUTS/big")
        done = repro("run", "experiment=toy", "tracking.enabled=false", REPRO_RUNS_DIR=str(disk / "runs"))
        assert done.returncode == 1, done.stderr
        assert "No space left on device" in done.stderr
        (run,) = folders(disk / "runs")
        assert run.read().state == "failed"
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = repro("run", "experiment=toy", "tracking.enabled=false", REPRO_RUNS_DIR=str(disk / "runs"))
        assert done.returncode == 3
        assert "Read-only file system" in done.stderr
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_shell_is_in_the_experiments_container(lab: Project) -> None:
    process, master = on_a_terminal(lab, "shell", "experiment=toy")
    os.write(master, b"pwd; cat toy.sh; echo made > /outputs/by-hand; exit 5\n")
    seen = b"".join(read_all(master))
    assert process.wait(60) == 5, seen
    assert b"/workspace" in seen
    assert b"repro-log step=1" in seen
    (made,) = lab.runs.glob("*/outputs/by-hand")
    assert made.read_text() == "made\n"
    assert left(lab) == ([], [])


def on_a_terminal(project: Project, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """`repro` with these arguments on a terminal of its own, and the other end of that."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from repro.__main__ import entry; entry()", *arguments],
        cwd=project.root,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    return process, master


def read_all(master: int) -> Iterator[bytes]:
    """What arrives until the other end is closed."""
    while True:
        assert select.select([master], [], [], 60)[0], "the shell said nothing for a minute"
        try:
            chunk = os.read(master, 1 << 16)
        except OSError:  # the other end is closed: Linux says so with EIO
            return
        if not chunk:
            return
        yield chunk


def test_an_image_label_and_a_lock_decide_what_locked_accepts(lab: Project, repro: Repro) -> None:
    refused = repro("run", "--locked", "experiment=toy", "tracking.enabled=false")
    assert refused.returncode == 4
    assert "repro rebuild" in refused.stderr
    assert repro("rebuild").returncode == 0
    assert repro("run", "--locked", "experiment=toy", "tracking.enabled=false").returncode == 0
    (lab.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nENV CHANGED=1\n")
    refused = repro("run", "--locked", "experiment=toy", "tracking.enabled=false")
    assert refused.returncode == 4
    assert "image.tensorflow.spec" in refused.stderr


def test_rebuild_answers_looks_and_builds(lab: Project, repro: Repro) -> None:
    (lab.docker / "Dockerfile").write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nENV AT={time.time()}\n")
    assert repro("rebuild", "--check").returncode == 1
    built = repro("rebuild", "--if-changed", "--json")
    assert (built.returncode, json.loads(built.stdout)["built"]) == (0, True)
    assert repro("rebuild", "--check").returncode == 0
    assert "up to date" in repro("rebuild", "--if-changed").stdout
    tag = json.loads(built.stdout)["tag"]
    assert tag in repro("images").stdout
    assert tag in repro("prune", "--json").stdout
    assert repro("prune").returncode == 4  # nobody there to say yes
    connect().remove_image(tag)


def test_runs_show_and_logs_read_what_is_recorded(lab: Project, repro: Repro) -> None:
    assert "no runs yet" in repro("runs").stdout
    repro("run", "experiment=toy", "tracking.enabled=false")
    run = latest(lab)[0].planned.run
    assert run in repro("runs").stdout
    assert json.loads(repro("runs", "--json").stdout)[0]["planned"]["run"] == run
    assert "loss 0.25" in repro("show").stdout
    assert repro("logs", run[:-2]).stdout == "hello\n"
    unknown = repro("show", "nosuch")
    assert (unknown.returncode, "`repro runs` lists them" in unknown.stderr) == (2, True)


def test_one_run_key_with_two_results_is_proven_non_determinism(lab: Project, repro: Repro) -> None:
    for _ in range(2):
        assert repro("run", "experiment=toy", "tracking.enabled=false").returncode == 0
    first, second = (folder.read() for folder in folders(lab.runs))
    assert first.ended is not None
    assert second.ended is not None
    assert (first.planned.run_key, first.ended.result) == (second.planned.run_key, second.ended.result)
    assert [(series.name, series.count, series.last) for series in first.ended.metrics] == [("loss", 2, (0.25).hex())]
    assert first.planned.host.cpu_flags  # the engine of these tests is on this machine
    assert " !" not in repro("runs").stdout
    script(lab, "toy.sh", "repro-log step=1 loss=0.$(date +%N); date +%N > $REPRO_OUTPUTS/time")
    for _ in range(2):
        assert repro("run", "experiment=toy", "tracking.enabled=false").returncode == 0
    listed = repro("runs")
    assert listed.stdout.count(" !") == 2
    assert "! toy: 2 results in 2 runs of one run key: proven non-determinism" in listed.stderr
    rows = json.loads(repro("runs", "--json").stdout)
    assert [row["same_run_key"]["proven"] for row in rows] == [True, True, False, False]
    assert "proven non-determinism" in repro("show").stdout
    what = ["outputs.by_products=[time]", "outputs.by_product_metrics=[loss]"]
    for _ in range(2):
        assert repro("run", "experiment=toy", "tracking.enabled=false", *what).returncode == 0
    ended = latest(lab)[0].ended
    assert ended is not None
    assert [series.role for series in ended.metrics] == ["by-product"]


def test_a_repository_from_nothing_runs_with_the_library_installed(tmp_path: Path, debian_base: str) -> None:
    wheels, site, here = tmp_path / "wheels", tmp_path / "site", tmp_path / "with space"
    root = Path(__file__).parents[1]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}  # before the checkout that the tests run from

    def call(*arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=where, env=environment, capture_output=True, text=True, check=False
        )

    here.mkdir()
    assert call("-c", "import repro; print(repro.__file__)", where=here).stdout.startswith(str(site))
    assert call("-c", "from repro.__main__ import entry; entry()", "init", where=here).returncode == 0
    (here / "conf" / "image").mkdir()
    (here / "conf" / "image" / "tensorflow.yaml").write_text(f"variant: tensorflow\nbase: {debian_base}\n")
    commit(here)
    done = call("-m", "repro.run", "experiment=hello", "tracking.enabled=false", where=here / "experiments")
    assert done.returncode == 0, done.stderr
    assert "metrics  value 2." in done.stdout
    shell = "[\"command=[sh,-c,'repro-log step=1 seen=1']\"]"
    done = call("-m", "repro.run", "experiment=hello", *json.loads(shell), "tracking.enabled=false", where=here)
    assert "seen 1" in done.stdout, done.stderr
    status = subprocess.run(["git", "status", "--porcelain"], cwd=here, check=True, capture_output=True, text=True)
    assert status.stdout == ""
