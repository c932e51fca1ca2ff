"""Runs for others: two clones and a bare remote, in real git. What travels, what does not, and what is not believed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from repro import cli, identity
from repro.code import source
from repro.code.repository import open_repository
from repro.project import Project
from repro.record import OutputFile, Record, RunFolder
from repro.sharing import images, pulling
from repro.sharing.remote import Remote, hide, ref_of, runs
from repro.tracking import publisher
from repro.tracking.tracking import State
from tests.conftest import commit
from tests.test_record import record as example

RUN = "20261123-191500-toy-3f9c1a"
SIGNED = "20261124-080000-toy-aa11bb.intoto.jsonl"


class Said(NamedTuple):
    code: int
    out: str
    err: str


Say = Callable[..., Said]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """The command line in a project: `say(alice, "push", RUN)`."""

    def call(project: Project, *arguments: str) -> Said:
        monkeypatch.chdir(project.root)
        capsys.readouterr()
        code = cli.main(arguments)
        return Said(code, *capsys.readouterr())

    return call


def git(where: Path, *arguments: str, stdin: str = "", **environment: str) -> str:
    argv = ["git", "-C", str(where), "-c", "protocol.file.allow=always", *arguments]
    env = {**os.environ, **environment}
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def clone(remote: Path, root: Path) -> Project:
    git(remote.parent, "clone", "-q", str(remote), str(root))
    return Project(root)


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "remote.git")
    return tmp_path / "remote.git"


@pytest.fixture
def alice(project: Project, remote: Path) -> Project:
    """Who has made the run: her branch is on the remote, her uncommitted work is not."""
    (project.root / ".gitignore").write_text("/runs/\n")
    commit(project.root)
    git(project.root, "remote", "add", "origin", str(remote))
    git(project.root, "push", "-q", "origin", "main")
    return project


@pytest.fixture
def bob(alice: Project, remote: Path, tmp_path: Path) -> Project:
    """Who wants to see it."""
    return clone(remote, tmp_path / "bob")


def made(project: Project, run: str = RUN, **planned: Any) -> RunFolder:
    """A run of the working tree as it is now, with all that a run folder has."""
    snapshot = source.capture(project.root)
    before = example()
    assert before.ended is not None
    output = OutputFile(path="deep/x", size=3, sha256=hashlib.sha256(b"42\n").hexdigest())
    folder = RunFolder(project.runs / run)
    files = {"outputs/deep/x": "42\n", "journal/events-1.jsonl": "{}\n", "logs/output.log": "hello\n"}
    files |= {"inputs/Dockerfile": "FROM x\n", "config.yaml": "a: 1\n", f"verifications/{SIGNED}": "line of a\n"}
    for name, content in files.items():
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text(content)
    folder.write(
        msgspec.structs.replace(
            before,
            planned=msgspec.structs.replace(
                before.planned, run=run, code=snapshot.code(), code_prefix=snapshot.prefix, **planned
            ),
            ended=msgspec.structs.replace(before.ended, outputs=(output,)),
        )
    )
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refs(remote: Path) -> list[str]:
    return [ref for ref in git(remote, "for-each-ref", "--format=%(refname)").splitlines() if "/repro/" in ref]


def pulled(project: Project, run: str = RUN) -> RunFolder:
    return RunFolder(project.runs / run)


# there and back -------------------------------------------------------------------------------------------------


def test_a_pushed_run_is_had_in_another_clone_with_the_uncommitted_work_that_ran(
    alice: Project, bob: Project, say: Say
) -> None:
    (alice.root / "toy.sh").write_text("echo changed\n")
    (alice.root / "new.txt").write_text("untracked\n")
    folder = made(alice)
    done = say(alice, "push", RUN)
    assert done.code == 0, done.err
    assert "A new.txt" in done.err
    assert "M toy.sh" in done.err

    done = say(bob, "pull", RUN[:12])
    assert (done.code, done.out) == (0, f"{bob.runs / RUN}\n"), done.err
    ours, theirs = files(folder.path), files(pulled(bob).path)
    assert ours.pop("outputs/deep/x") == b"42\n"
    assert theirs.pop(".elsewhere") == b""
    assert theirs == ours
    record = pulled(bob).read()
    assert record == folder.read()
    code = record.planned.code
    snapshot = source.Snapshot(**msgspec.structs.asdict(code), prefix=record.planned.code_prefix)
    exported = source.export(snapshot, bob.root, bob.scratch / "code")
    assert (exported / "new.txt").read_text() == "untracked\n"
    assert (exported / "toy.sh").read_text() == "echo changed\n"
    assert (bob.root / "toy.sh").read_text() == "echo hello\n"
    assert git(bob.root, "status", "--porcelain") == ""


def test_what_was_shared_before_is_not_shared_again(alice: Project, bob: Project, remote: Path, say: Say) -> None:
    made(alice)
    assert say(alice, "push", "--json", RUN).code == 0
    assert say(bob, "pull", RUN).code == 0
    tip, before = git(remote, "rev-parse", ref_of(RUN)), files(bob.runs / RUN)
    again = json.loads(say(alice, "push", "--json", RUN).out)
    assert (again["sent"], git(remote, "rev-parse", ref_of(RUN))) == (False, tip)
    assert "nothing is new" in say(bob, "pull", RUN).err
    assert files(bob.runs / RUN) == before
    assert json.loads(say(bob, "pull", "--json").out) == [{"run": RUN, "here": True}]


def test_a_dry_run_lists_what_would_be_published_and_sends_nothing(alice: Project, remote: Path, say: Say) -> None:
    commit(alice.root)
    (alice.root / "new.txt").write_text("untracked\n")
    made(alice)
    done = say(alice, "push", "--dry-run", RUN)
    assert done.code == 0, done.err
    assert "1 commit that it does not have:\n" in done.out
    assert "1 uncommitted change:\n           A new.txt\n" in done.out
    assert re.search(r"^files    6 files, .*: record\.json, config\.yaml", done.out, re.MULTILINE)
    assert "not      outputs: 1 files; --outputs sends them, too" in done.out
    assert "image    not sent (no `image.registry`)" in done.out
    listed = json.loads(say(alice, "push", "--dry-run", "--json", RUN).out)
    assert listed["push"]["shown"]["uncommitted"] == ["A new.txt"]
    assert refs(remote) == []


def test_outputs_travel_when_that_is_asked_for(alice: Project, bob: Project, say: Say) -> None:
    made(alice)
    say(alice, "push", RUN)
    say(bob, "pull", RUN)
    assert say(alice, "push", "--outputs", RUN).code == 0
    assert "1 file added" in say(bob, "pull", RUN).err
    assert (pulled(bob).outputs / "deep" / "x").read_bytes() == b"42\n"


def test_links_that_an_experiment_left_give_nothing_of_the_machine_away(
    alice: Project, bob: Project, say: Say, tmp_path: Path
) -> None:
    folder = made(alice)
    (tmp_path / "secret").write_text("mine")
    (folder.journal / "events-2.jsonl").symlink_to(tmp_path / "secret")
    shutil.rmtree(folder.outputs / "deep")
    (tmp_path / "x").write_text("42\n")
    (folder.outputs / "deep").symlink_to(tmp_path)
    shutil.rmtree(folder.logs)
    folder.logs.symlink_to(tmp_path)
    assert say(alice, "push", "--outputs", RUN).code == 0
    say(bob, "pull", RUN)
    assert set(files(pulled(bob).path)) == {
        ".elsewhere",
        "record.json",
        "config.yaml",
        "inputs/Dockerfile",
        "journal/events-1.jsonl",
        f"verifications/{SIGNED}",
    }


SERVER = "https://mlflow.example"


@pytest.mark.parametrize(
    ("uri", "ended", "known"),
    [(SERVER, True, True), (SERVER, False, False), ("sqlite:////a.db", True, False), ("https://evil", True, False)],
    ids=["on the server", "not all of it", "in a file of hers", "on another server"],
)
def test_the_id_in_mlflow_travels_where_both_look_at_the_same_server(
    alice: Project,
    bob: Project,
    say: Say,
    uri: str,
    ended: bool,
    known: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    state = State(uri=uri, experiment_id="1", run="ab" * 16, ended=ended, artifacts=True)
    made(alice).tracking.write_bytes(msgspec.json.encode(state))
    say(alice, "push", RUN)
    say(bob, "pull", RUN)
    assert say(bob, "show", "abab").code == (0 if known else 2)


@pytest.mark.tracking
def test_a_run_of_somebody_else_goes_to_the_projects_own_store_whatever_server_it_names(
    alice: Project, bob: Project, say: Say
) -> None:
    made(alice, tracking_uri="http://127.0.0.1:9")
    say(alice, "push", RUN)
    say(bob, "pull", RUN)
    done = say(bob, "sync", RUN)
    assert (done.code, bob.store.exists()) == (0, True), done.err


def test_what_is_too_long_for_git_stays_and_is_told(alice: Project, say: Say) -> None:
    folder = made(alice)
    with (folder.journal / "events-2.jsonl").open("wb") as file:
        file.truncate(17 << 20)
    assert "not      journal/events-2.jsonl: 18 MB are more than 17" in say(alice, "push", "--dry-run", RUN).out
    with (folder.inputs / "packages.json").open("wb") as file:
        file.truncate(65 << 20)
    done = say(alice, "push", RUN)
    assert (done.code, "inputs/packages.json  68.2 MB" in done.err) == (4, True)


def test_signatures_of_several_people_come_together(alice: Project, bob: Project, say: Say) -> None:
    hers = made(alice).verifications / SIGNED
    say(alice, "push", RUN)
    say(bob, "pull", RUN)
    his = pulled(bob).verifications / SIGNED
    his.write_text(his.read_text() + "line of b\n")
    (his.parent / "another.json").write_text("{}")
    assert say(bob, "push", RUN).code == 0
    hers.write_text(hers.read_text() + "line of a, too\n")
    assert say(alice, "push", RUN).code == 0
    assert "2 files added" in say(alice, "pull", RUN).err
    say(bob, "pull", RUN)
    assert set(hers.read_text().splitlines()) == {"line of a", "line of b", "line of a, too"}
    assert set(his.read_text().splitlines()) == set(hers.read_text().splitlines())
    assert (hers.parent / "another.json").read_text() == "{}"


def test_what_somebody_has_pushed_is_not_replaced_by_another_of_its_name(
    alice: Project, bob: Project, remote: Path, say: Say
) -> None:
    made(alice)
    (pulled(alice).verifications / "one.json").write_text("hers")
    say(alice, "push", RUN)
    say(bob, "pull", RUN)
    (pulled(bob).verifications / "one.json").write_text("his")
    assert say(bob, "push", RUN).code == 0
    assert git(remote, "show", f"{ref_of(RUN)}:verifications/one.json") == "hers"
    say(bob, "pull", RUN)
    assert (pulled(bob).verifications / "one.json").read_text() == "his"


def test_who_pushes_at_the_same_time_loses_nothing(alice: Project, bob: Project, say: Say) -> None:
    """Her own pre-push hook, which is run as with every push, lets him be faster, once."""
    hers = made(alice).verifications / SIGNED
    say(alice, "push", RUN)
    say(bob, "pull", RUN)
    (pulled(bob).verifications / "of-bob.json").write_text("{}")
    hook = alice.root / ".git" / "hooks" / "pre-push"
    hook.write_text(
        f"#!/bin/sh\n[ -e {alice.root}/.git/once ] && exit 0\ntouch {alice.root}/.git/once\ncd {bob.root}\n"
        f"unset $(git rev-parse --local-env-vars)\nexec {sys.executable} -m repro push {RUN} >&2\n"
    )
    hook.chmod(0o755)
    hers.write_text(hers.read_text() + "line of a, too\n")
    done = say(alice, "push", RUN)
    assert done.code == 0, done.err
    assert (alice.root / ".git" / "once").exists()
    assert "1 file added" in say(alice, "pull", RUN).err
    say(bob, "pull", RUN)
    assert "line of a, too" in (pulled(bob).verifications / SIGNED).read_text()


def test_of_two_pulls_at_once_the_slower_one_finds_the_run_there(alice: Project, bob: Project, say: Say) -> None:
    state = State(uri=SERVER, experiment_id="1", run="ab" * 16, ended=True, artifacts=True)
    made(alice).tracking.write_bytes(msgspec.json.encode(state))
    say(alice, "push", RUN)
    remote = Remote(open_repository(bob.root), "origin")

    def meanwhile() -> str:
        assert say(bob, "pull", RUN).code == 0
        return SERVER

    found = pulling.fetch(RUN, bob, remote, remote.refs(lambda _: None), lambda _: None, uri=meanwhile)
    assert (found.folder, found.added) == (str(pulled(bob).path), ())


# submodules, Git LFS --------------------------------------------------------------------------------------------


def test_repositories_inside_the_project_go_to_the_same_remote_and_need_no_checkout(
    alice: Project, remote: Path, tmp_path: Path, say: Say
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "lib.py").write_text("one\n")
    commit(library)
    git(alice.root, "submodule", "add", "-q", str(library), "libs/lib")
    commit(alice.root)
    git(alice.root, "push", "-q", "origin", "main")
    (alice.root / "libs" / "lib" / "lib.py").write_text("changed\n")
    (alice.root / "inner").mkdir()
    (alice.root / "inner" / "a.py").write_text("inner\n")
    commit(alice.root / "inner")
    made(alice)
    done = say(alice, "push", RUN)
    assert done.code == 0, done.err
    assert "M libs/lib/lib.py" in done.err

    bob = clone(remote, tmp_path / "bob")
    assert say(bob, "pull", RUN).code == 0
    code = pulled(bob).read().planned.code
    snapshot = source.Snapshot(**msgspec.structs.asdict(code), prefix="")
    exported = source.export(snapshot, bob.root, bob.scratch / "code")
    assert (exported / "libs" / "lib" / "lib.py").read_text() == "changed\n"
    assert (exported / "inner" / "a.py").read_text() == "inner\n"


def test_secrets_inside_a_repository_of_the_project_are_not_published_either(
    alice: Project, remote: Path, say: Say
) -> None:
    (alice.root / "inner").mkdir()
    commit(alice.root / "inner")
    (alice.root / "inner" / ".env").write_text("TOKEN=1\n")
    made(alice)
    done = say(alice, "push", RUN)
    assert (done.code, "inner/.env: files of this name hold secrets" in done.err) == (4, True)
    assert refs(remote) == []


@pytest.mark.skipif(not shutil.which("git-lfs"), reason="needs git-lfs")
def test_files_of_git_lfs_travel_with_the_code(alice: Project, remote: Path, tmp_path: Path, say: Say) -> None:
    git(alice.root, "lfs", "install", "--local")
    git(alice.root, "lfs", "track", "*.bin")
    (alice.root / "model.bin").write_bytes(b"weights" * 1000)
    made(alice)
    done = say(alice, "push", RUN)
    assert done.code == 0, done.err
    bob = clone(remote, tmp_path / "bob")
    done = say(bob, "pull", RUN)
    assert done.code == 0, done.err
    snapshot = source.Snapshot(**msgspec.structs.asdict(pulled(bob).read().planned.code), prefix="")
    exported = source.export(snapshot, bob.root, bob.scratch / "code")
    assert (exported / "model.bin").read_bytes() == b"weights" * 1000


# what is refused ------------------------------------------------------------------------------------------------


def test_uncommitted_secrets_are_not_published(alice: Project, remote: Path, say: Say) -> None:
    (alice.root / ".env").write_text("TOKEN=1\n")
    made(alice)
    done = say(alice, "push", RUN)
    assert (done.code, ".env: files of this name hold secrets" in done.err) == (4, True)
    assert refs(remote) == []
    assert say(alice, "push", "--force", RUN).code == 0


def test_a_run_that_is_not_over_is_not_pushed(alice: Project, say: Say) -> None:
    folder = made(alice)
    folder.write(msgspec.structs.replace(folder.read(), ended=None))
    done = say(alice, "push", RUN)
    assert (done.code, "is not over" in done.err) == (4, True)


def altered(folder: RunFolder) -> Record:
    """Another record under the same id."""
    record = folder.read()
    changed = msgspec.structs.replace(record.planned, notices=("another",))
    folder.write(msgspec.structs.replace(record, planned=changed))
    return folder.read()


def test_another_record_of_the_same_id_replaces_none(alice: Project, bob: Project, remote: Path, say: Say) -> None:
    folder = made(alice)
    say(alice, "push", RUN)
    say(bob, "pull", RUN)
    kept = altered(pulled(bob))
    done = say(bob, "pull", RUN)
    assert (done.code, "another record of run" in done.err) == (4, True)
    assert pulled(bob).read() == kept
    tip = git(remote, "rev-parse", ref_of(RUN))
    done = say(bob, "push", RUN)
    assert (done.code, identity.record_digest(folder.read()) in done.err) == (4, True)
    assert git(remote, "rev-parse", ref_of(RUN)) == tip


def forged(remote: Path, entries: dict[str, tuple[str, bytes]], message: str | None = None) -> None:
    """Other files, or another message, in the commit of the run."""
    tip = git(remote, "rev-parse", ref_of(RUN))
    index = {"GIT_INDEX_FILE": str(remote / "forged-index")}
    git(remote, "read-tree", tip, **index)
    for path, (mode, content) in entries.items():
        (remote / "forged").write_bytes(content)
        oid = git(remote, "hash-object", "-w", str(remote / "forged"))
        git(remote, "update-index", "--add", "--cacheinfo", f"{mode},{oid},{path}", **index)
    text = git(remote, "log", "-1", "--format=%B", tip) if message is None else message
    made_up = git(remote, "commit-tree", git(remote, "write-tree", **index), stdin=text)
    git(remote, "update-ref", ref_of(RUN), made_up)


def changed_record(folder: RunFolder) -> bytes:
    return folder.record.read_bytes().replace(b'"exit code 0"', b'"exit code 9"')


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (lambda folder: {"record.json": ("100644", changed_record(folder))}, "and its commit tells"),
        (lambda folder: {"record.json": ("100644", b"{}")}, "its record cannot be read"),
        (lambda folder: {"record.json": ("100644", b'{"planned":' * 10**5)}, "its record cannot be read"),
        (lambda folder: {"evil": ("100644", b"x")}, "it holds evil"),
        (lambda folder: {"inputs/x": ("120000", b"/etc/passwd")}, "it holds inputs/x"),
        (lambda folder: {".lease": ("100644", b"x")}, "it holds .lease"),
        (lambda folder: {"journal/run": ("100755", b"x")}, "it holds journal/run"),
        (lambda folder: {"outputs/deep/x": ("100644", b"43\n")}, "is not the one of its record"),
        (lambda folder: {"outputs/other": ("100644", b"43\n")}, "is not the one of its record"),
        (lambda folder: {"logs/big": ("100644", b"0" * (65 << 20))}, "it is larger than 67 MB"),
    ],
    ids=[
        "record",
        "no record",
        "deep record",
        "name",
        "link",
        "lease",
        "executable",
        "output",
        "another output",
        "huge",
    ],
)
def test_what_nobody_has_pushed_so_is_not_taken(
    alice: Project,
    bob: Project,
    remote: Path,
    say: Say,
    forge: Callable[[RunFolder], dict[str, tuple[str, bytes]]],
    said: str,
) -> None:
    folder = made(alice)
    say(alice, "push", "--outputs", RUN)
    forged(remote, forge(folder))
    done = say(bob, "pull", RUN)
    assert (done.code, said in done.err) == (3, True), done.err
    assert not pulled(bob).path.exists()
    assert list(bob.runs.glob(".pulling*")) == []


def test_a_few_trees_that_say_to_be_millions_of_files_are_not_listed(
    alice: Project, bob: Project, remote: Path, say: Say
) -> None:
    made(alice)
    say(alice, "push", RUN)
    oid, kind = git(remote, "hash-object", "-w", "--stdin", stdin="x"), "100644 blob"
    for _ in range(8):
        oid = git(remote, "mktree", stdin="".join(f"{kind} {oid}\t{name}\n" for name in "0123456789"))
        kind = "040000 tree"
    tip = git(remote, "rev-parse", ref_of(RUN))
    logs = git(remote, "mktree", stdin=f"040000 tree {oid}\tlogs\n")
    bomb = git(remote, "commit-tree", logs, stdin=git(remote, "log", "-1", "--format=%B", tip))
    git(remote, "update-ref", ref_of(RUN), bomb)
    began = time.monotonic()
    done = say(bob, "pull", RUN)
    assert (done.code, "more than 100,000 files" in done.err) == (3, True), done.err
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("kind", ["blob", "tree"])
def test_a_ref_that_is_of_no_commit_is_told(alice: Project, bob: Project, remote: Path, say: Say, kind: str) -> None:
    made(alice)
    say(alice, "push", RUN)
    name = {"blob": ":record.json", "tree": "^{tree}"}[kind]
    git(remote, "update-ref", ref_of(RUN), git(remote, "rev-parse", ref_of(RUN) + name))
    done = say(bob, "pull", RUN)
    assert (done.code, "its ref is of no commit" in done.err) == (3, True), done.err


def renamed(folder: RunFolder, run: str, **code: str) -> RunFolder:
    record = folder.read()
    planned = msgspec.structs.replace(
        record.planned, run=run, code=msgspec.structs.replace(record.planned.code, **code)
    )
    folder.write(msgspec.structs.replace(record, planned=planned))
    return folder


def test_a_run_whose_name_is_a_way_out_of_the_project_is_none(
    alice: Project, bob: Project, remote: Path, say: Say
) -> None:
    made(alice)
    say(alice, "push", RUN)
    record = renamed(pulled(alice), "../evil").read()
    content = pulled(alice).record.read_bytes()
    forged(remote, {"record.json": ("100644", content)}, f"x\n\nrecord sha256:{identity.record_digest(record)}\n")
    git(remote, "update-ref", "refs/repro/runs/%2e%2e/evil", ref_of(RUN))
    assert say(bob, "pull", "../evil").code == 2
    assert say(bob, "pull", RUN).code == 3
    assert say(bob, "pull").out == f"{RUN}\n"
    assert not (bob.root / "evil").exists()


@pytest.mark.parametrize("field", ["commit", "tree"])
def test_a_record_whose_commit_is_an_option_of_git_is_not_taken(
    alice: Project, bob: Project, remote: Path, say: Say, field: str
) -> None:
    made(alice)
    say(alice, "push", RUN)
    record = renamed(pulled(alice), RUN, **{field: "--upload-pack=touch evil"}).read()
    content = pulled(alice).record.read_bytes()
    forged(remote, {"record.json": ("100644", content)}, f"x\n\nrecord sha256:{identity.record_digest(record)}\n")
    done = say(bob, "pull", RUN)
    assert (done.code, "its record names no commit" in done.err) == (3, True)


def test_what_is_no_digest_is_nothing_to_pull_an_image_by(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    images.note(folder, "host:1/name@sha256:" + "a" * 64)
    assert images.shared(folder).image == "host:1/name@sha256:" + "a" * 64
    (tmp_path / "shared.json").write_text('{"image": "host:1/name:latest"}')
    assert images.shared(folder).image is None


def test_a_record_that_names_another_run_is_not_taken(alice: Project, bob: Project, remote: Path, say: Say) -> None:
    made(alice)
    say(alice, "push", RUN)
    other = RUN.replace("3f9c1a", "000000")
    git(remote, "update-ref", ref_of(other), ref_of(RUN))
    done = say(bob, "pull", other)
    assert (done.code, f"its record is of run {RUN}" in done.err) == (3, True)


# errors ---------------------------------------------------------------------------------------------------------


def test_a_remote_that_takes_nothing_is_told_with_its_own_words(alice: Project, remote: Path, say: Say) -> None:
    made(alice)
    hook = remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho only branches are allowed here >&2\nexit 1\n")
    hook.chmod(0o755)
    done = say(alice, "push", RUN)
    assert (done.code, "origin does not take what was pushed" in done.err) == (3, True)
    assert "only branches are allowed here" in done.err


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_a_remote_that_does_not_answer_or_exist_is_told(alice: Project, say: Say, verb: str) -> None:
    made(alice)
    done = say(alice, verb, RUN, "--remote", "nobody")
    assert (done.code, "has no remote 'nobody'" in done.err, "it has origin" in done.err) == (2, True, True)
    done = say(alice, verb, RUN, "--remote", "http://me:secret@127.0.0.1:9/x.git")
    assert (done.code, "Failed to connect" in done.err or "Could not connect" in done.err) == (3, True), done.err
    assert "secret" not in done.err
    git(alice.root, "remote", "set-url", "origin", "/nonexistent")
    done = say(alice, verb, RUN)
    assert (done.code, "does not appear to be a git repository" in done.err) == (3, True)


def test_a_run_that_the_remote_does_not_have_or_several_are_told(alice: Project, bob: Project, say: Say) -> None:
    done = say(bob, "pull", "2026")
    assert (done.code, "it has none" in done.err) == (2, True)
    made(alice)
    made(alice, RUN.replace("3f9c1a", "000000"))
    say(alice, "push", RUN)
    say(alice, "push", RUN.replace("3f9c1a", "000000"))
    done = say(bob, "pull", "2026")
    assert (done.code, "the beginning of 2 runs" in done.err) == (2, True)
    assert say(bob, "pull", "latest").out == f"{bob.runs / RUN}\n"


def test_code_that_is_lost_is_told_before_anything_is_sent(alice: Project, remote: Path, say: Say) -> None:
    folder = made(alice)
    record = folder.read()
    code = msgspec.structs.replace(record.planned.code, commit="0" * 40)
    folder.write(msgspec.structs.replace(record, planned=msgspec.structs.replace(record.planned, code=code)))
    done = say(alice, "push", RUN)
    assert (done.code, "the code of this run is lost here" in done.err) == (3, True)
    assert refs(remote) == []


def test_addresses_lose_their_passwords_and_names_of_runs_are_refs() -> None:
    assert hide("fatal: 'https://me:pw@host/x.git' and ssh://git@host") == (
        "fatal: 'https://***@host/x.git' and ssh://***@host"
    )
    odd = "20261123-191500-a...b-3f9c1a"
    git(Path(), "check-ref-format", ref_of(odd))
    assert runs([ref_of(odd), "refs/heads/main"]) == [odd]


# by MLflow's id -------------------------------------------------------------------------------------------------


@pytest.mark.tracking
def test_a_run_is_found_by_its_id_in_mlflow_and_its_record_is_the_one_told_there(
    alice: Project, bob: Project, say: Say, database: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://localhost:{database}")
    folder = made(alice)
    say(alice, "push", RUN)
    client = publisher.connect(f"http://localhost:{database}")
    experiment = client.create_experiment(f"sharing-{os.getpid()}", None, {})

    def tracked(digest: str) -> str:
        tags = {"run": RUN, "record": digest}
        return client.create_run(experiment, name="toy", started=1, tags=tags).id

    done = say(bob, "pull", tracked("0" * 64))
    assert (done.code, "MLflow has another record of run" in done.err) == (4, True), done.err
    done = say(bob, "pull", tracked(identity.record_digest(folder.read())))
    assert (done.code, done.out) == (0, f"{bob.runs / RUN}\n"), done.err
    done = say(bob, "pull", "0" * 32)
    assert (done.code, "MLflow knows no run" in done.err) == (2, True)
