"""What runs write, on a real engine: listed, linked, limited, kept when the disk is full, and the caller's."""

from __future__ import annotations

import grp
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from repro import runner
from repro.project import Project
from repro.record import Record, RunFolder, folders
from repro.running import quota
from tests.conftest import as_nobody, script
from tests.test_ends_engine import planned
from tests.test_run_engine import begun, containers, latest, wait_for

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
OFF = ("experiment=toy", "gpus=none", "tracking.enabled=false")
USER = 1000


def test_ignored_files_stay_on_the_disk_and_are_neither_listed_nor_in_mlflow(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "cd /outputs; mkdir ckpt; echo 1 > ckpt/a; echo 2 > b.tmp; echo 3 > model; ln model twin")
    ignore = "outputs.ignore=['*.tmp',ckpt/]"
    done = repro("run", "experiment=toy", "gpus=none", ignore, "tracking.wait=60")
    assert done.returncode == 0, done.stderr
    assert "(2 files, 4 B, 2 ignored)" in done.stdout
    record, folder = latest(lab)
    assert record.ended is not None
    assert ([file.path for file in record.ended.outputs], record.ended.ignored) == (["model", "twin"], 2)
    assert (folder.outputs / "ckpt" / "a").read_text() == "1\n"
    with sqlite3.connect(lab.store) as store:
        ((uri,),) = store.execute("select artifact_uri from runs")
    artifacts = Path(uri.removeprefix("file://")) / "outputs"
    assert sorted(path.name for path in artifacts.rglob("*")) == ["model", "twin"]
    # no second copy of the bytes
    assert (artifacts / "model").stat().st_ino == (folder.outputs / "model").stat().st_ino
    assert (artifacts / "twin").stat().st_ino == (folder.outputs / "model").stat().st_ino


def test_a_pattern_that_is_none_starts_nothing(lab: Project, repro: Repro) -> None:
    done = repro("run", *OFF, "outputs.ignore=['!']")
    assert (done.returncode, "outputs.ignore" in done.stderr) == (2, True), done.stderr


# the limit ------------------------------------------------------------------------------------------------------

TOO_MUCH = {
    "one large file": "head -c 60000000 /dev/zero > /outputs/big; sleep 60",
    "many files": "cd /outputs; for n in $(seq 60); do head -c 1000000 /dev/zero > $n; done; sleep 60",
    "its own log": "yes $(head -c 2000 /dev/zero | tr '\\0' x)",
    "the journal": "yes '{\"loss\":1}' > /journal/events-flood.jsonl",
    "a removed file": "exec 3> /outputs/x; rm /outputs/x; head -c 60000000 /dev/zero >&3; sleep 60",
    "empty files": "cd /outputs; python3 -c \"for n in range(20000): open(str(n), 'w')\"; sleep 60",
    "at its very end": "head -c 60000000 /dev/zero > /outputs/big",
}


@pytest.mark.parametrize("way", TOO_MUCH)
def test_a_run_that_writes_too_much_is_stopped_and_told_why(lab: Project, repro: Repro, way: str) -> None:
    script(lab, "toy.sh", TOO_MUCH[way])
    done = repro("run", *OFF, "outputs.limit=50MB", "resources.stop_grace=1.0")
    assert done.returncode == 1, done.stderr
    record, folder = latest(lab)
    assert record.ended is not None
    assert record.state == "failed"
    assert "on the disk, and may take 52.4 MB (outputs.limit)" in done.stderr
    assert "raise outputs.limit" in done.stderr
    named = {"one large file": "outputs/big (60 MB)", "its own log": "logs/output.log", "a removed file": "still open"}
    assert named.get(way, "the largest") in done.stderr
    assert containers(lab) == []
    assert quota.measure(folder.path).bytes < 2_000_000_000  # it did not go on for long


def test_whatever_ends_a_run_nobody_goes_on_watching_it(lab: Project) -> None:
    script(lab, "toy.sh", "sleep 100")
    plan, engine = planned(lab, "outputs.limit=1GB")

    def started(_folder: RunFolder, _record: Record) -> None:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError):
        runner.execute(plan, engine, started=started)
    names = {"resources", "limit of the outputs"}
    wait_for(lambda: not names & {thread.name for thread in threading.enumerate()})


def test_sparse_files_and_names_of_one_file_take_no_room(lab: Project, repro: Repro) -> None:
    script(
        lab,
        "toy.sh",
        "cd /outputs; truncate -s 100M sparse; head -c 5000000 /dev/zero > a; for n in 1 2 3 4 5 6; do ln a $n; done",
    )
    done = repro("run", *OFF, "outputs.limit=20MB")
    assert done.returncode == 0, done.stderr
    record, _folder = latest(lab)
    assert record.ended is not None
    assert [file.size for file in record.ended.outputs] == [5_000_000] * 7 + [100 << 20]


def test_room_is_measured_in_blocks_and_what_is_out_of_reach_is_told(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"x" * 10_000)
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("/usr")
    room = quota.measure(tmp_path)
    assert (room.files, room.hidden) == (4, "")
    assert room.bytes == 12_288 + 3 * 4096
    assert room.largest[0] == (12_288, str(tmp_path / "sub" / "file"))


def test_a_folder_that_its_owner_closed_hides_nothing() -> None:
    """With a limit, what cannot be measured ends the run: else closing a folder would be a way round it."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = RunFolder(Path(name, "run"))
        for path in (folder.outputs / "closed", folder.journal, folder.logs):
            path.mkdir(parents=True)
        if os.geteuid() == 0:
            os.chown(folder.outputs / "closed", 65534, 65534)
        Path(name).chmod(0o755)
        (folder.outputs / "closed").chmod(0)
        code = "room = Quota(RunFolder(argument), 'no container', 1 << 30, lambda grace: None)\nprint(room.finish())"
        done = as_nobody("from repro.running.quota import Quota\nfrom repro.record import RunFolder", code, folder.path)
        (folder.outputs / "closed").chmod(0o700)
    assert done.stdout.startswith("part of its outputs cannot be measured, as outputs.limit needs it: "), done.stderr
    assert done.stdout.endswith("/outputs/closed: Permission denied\n")


# a full disk ----------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(tmp_path: Path, size: str) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def only_run(disk: Path) -> tuple[Record, RunFolder]:
    (folder,) = folders(disk / "runs")
    return folder.read(), folder


def test_outputs_that_fill_the_disk_stay_and_the_disk_is_named(lab: Project, repro: Repro, tmp_path: Path) -> None:
    script(lab, "toy.sh", "echo first > /outputs/first; echo begun; head -c 9000000 /dev/zero > /outputs/big")
    with small_disk(tmp_path, "4m") as disk:
        done = repro("run", *OFF, REPRO_RUNS_DIR=str(disk / "runs"))
        assert done.returncode == 1, done.stderr
        record, folder = only_run(disk)
        assert record.ended is not None
        assert record.state == "failed"
        # as the experiment says, or, where even the log found no room, as we do
        assert f": {disk} (0 B free of 4.19 MB); free some space" in record.ended.reason
        assert "REPRO_RUNS_DIR" in done.stderr
        assert (folder.outputs / "first").read_text() == "first\n"
        assert [file.path for file in record.ended.outputs] == ["big", "first"]
        assert "begun" in folder.output_log.read_text().splitlines()  # what came on stderr may stand before it


def test_a_log_that_fills_the_disk_fails_the_run(lab: Project, repro: Repro, tmp_path: Path) -> None:
    flood = "yes $(head -c 2000 /dev/zero | tr '\\0' x) | head -c 9000000"
    script(lab, "toy.sh", f"echo first > /outputs/first; {flood}; echo the last words")
    with small_disk(tmp_path, "4m") as disk:
        done = repro("run", *OFF, REPRO_RUNS_DIR=str(disk / "runs"))
        assert done.returncode == 1, done.stderr
        record, folder = only_run(disk)
        assert record.ended is not None
        assert (record.state, record.ended.exit_code) == ("failed", 0)
        assert "No space left on device" in record.ended.reason
        assert f"{disk} (" in record.ended.reason
        assert [file.path for file in record.ended.outputs] == ["first"]
        assert folder.output_log.read_text().endswith("the last words\n")
        assert "the last words" in done.stderr


def test_a_list_that_the_disk_has_no_room_for_is_left_out_of_the_record(
    lab: Project, repro: Repro, tmp_path: Path
) -> None:
    fill = "cd /outputs; python3 -c \"for n in range(20000): open(f'{n}' + 'x' * 150, 'w')\"; cat /dev/zero > big"
    script(lab, "toy.sh", fill)
    with small_disk(tmp_path, "8m,nr_inodes=100000") as disk:
        done = repro("run", *OFF, REPRO_RUNS_DIR=str(disk / "runs"))
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        record, folder = only_run(disk)
        assert record.ended is not None
        assert (record.state, record.ended.outputs) == ("failed", ())
        assert "the disk has no room for the list of its 20,001 outputs" in record.ended.reason
        assert len(list(folder.outputs.iterdir())) == 20_001


@pytest.mark.parametrize("place", ["/tmp", "/dev/shm"])
def test_a_full_disk_in_memory_is_not_taken_for_the_hosts(lab: Project, repro: Repro, place: str) -> None:
    script(lab, "toy.sh", f"head -c 9000000 /dev/zero > {place}/big")
    done = repro("run", *OFF, "resources.tmp=2m", "resources.shm=2m")
    assert done.returncode == 1
    assert "the disk is full" not in done.stderr
    assert "it may have been /tmp or $HOME (resources.tmp), or /dev/shm (resources.shm)" in done.stderr


# whose they are -------------------------------------------------------------------------------------------------


@pytest.fixture
def person(lab: Project, repro: Repro) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`repro run` as a user who is not root and may use the engine, in a project of theirs; started, not waited for."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: becoming another user needs root")
    home = Path(tempfile.mkdtemp(prefix="ada-"))
    shutil.copytree(lab.root, home / "project")
    for path in (home, *home.rglob("*")):
        os.lchown(path, USER, USER)
    # they may read what only root can, as the interpreter and the library may lie in root's home
    who = [f"--reuid={USER}", f"--regid={USER}", f"--groups={grp.getgrnam('docker').gr_gid}"]
    who += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]

    def call(*overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["setpriv", *who, sys.executable, "-m", "repro.run", *OFF, *overrides],
            cwd=home / "project",
            env={**os.environ, "HOME": str(home), "REPRO_CACHE": str(home / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    call.project = Project(home / "project")  # type: ignore[attr-defined]
    try:
        yield call
    finally:
        shutil.rmtree(home)


def owners(folder: RunFolder) -> set[tuple[int, int]]:
    everything = [folder.path, *folder.path.rglob("*")]
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in everything}


AS_ROOT = """id -u; cd /outputs; echo 1 > a; mkdir -m 700 d; echo 2 > d/b; ln -s /etc/shadow link; mkfifo pipe
chown 33:33 a; repro-log step=1 loss=1; cp /bin/true setuid; chmod 6755 setuid; echo begun"""


@pytest.mark.parametrize("end", ["finished", "failed", "killed", "timeout"])
def test_what_root_wrote_in_the_container_is_the_callers(
    person: Callable[..., subprocess.Popen[str]], end: str
) -> None:
    project: Project = person.project  # type: ignore[attr-defined]
    last = {"finished": "true", "failed": "exit 3"}.get(end, "sleep 100")
    script(project, "toy.sh", f"{AS_ROOT}\n{last}")
    more = ["resources.time_limit=3.0"] if end == "timeout" else []
    process = person("user=root", "resources.stop_grace=1.0", *more)
    if end == "killed":
        wait_for(lambda: begun(project))
        assert stat.S_IMODE(latest(project)[1].path.stat().st_mode) == 0o700  # there is a setuid program of root's
        process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=120)
    record, folder = latest(project)
    assert record.ended is not None
    assert (record.state, record.planned.user) == (end, "0:0"), err
    assert folder.output_log.read_text().startswith("0\n")
    assert owners(folder) == {(USER, USER)}
    assert [file.path for file in record.ended.outputs] == ["a", "d/b", "setuid"]
    assert stat.S_IMODE((folder.outputs / "setuid").stat().st_mode) == 0o755
    assert stat.S_IMODE(folder.path.stat().st_mode) == stat.S_IMODE(folder.logs.stat().st_mode)
    assert containers(project) == []
    assert "not all yours" not in err


def test_a_container_of_root_is_root_over_nothing_else(lab: Project, repro: Repro) -> None:
    script(
        lab,
        "toy.sh",
        "grep CapEff /proc/self/status; cat /proc/1/comm; touch /x; touch /workspace/x; mknod /outputs/d c 1 3;"
        "mount -t tmpfs x /tmp; unshare -m true; echo 1 > /proc/sys/kernel/core_pattern; chroot / true; true",
    )
    assert repro("run", *OFF, "user=root").returncode == 0
    text = latest(lab)[1].output_log.read_text()
    assert text.startswith("CapEff:\t00000000000000eb\n"), text  # chown dac_override fowner kill setgid setuid
    assert text.count("Operation not permitted") + text.count("Read-only file system") + text.count("denied") >= 6, text


def test_without_a_chown_in_the_image_this_machines_gives_them_back(
    person: Callable[..., subprocess.Popen[str]],
) -> None:
    project: Project = person.project  # type: ignore[attr-defined]
    (project.docker / "Dockerfile").write_text(
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN rm -f /bin/chown /usr/bin/chown\n"
    )
    script(project, "toy.sh", "echo 1 > /outputs/a; chown 33 /outputs/a || echo no chown")
    process = person("user=root")
    _out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    record, folder = latest(project)
    assert "no chown\n" in folder.output_log.read_text()
    assert record.ended is not None
    assert record.ended.reason == "exit code 0"
    assert owners(folder) == {(USER, USER)}


def test_root_who_calls_gets_back_what_the_container_gave_to_others(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "cd /outputs; mkdir -m 700 d; echo 1 > d/a; chown -R 33:44 d")
    done = repro("run", *OFF, "user=root")
    assert done.returncode == 0, done.stderr
    assert owners(latest(lab)[1]) == {(os.geteuid(), os.getegid())}
