"""Real git repositories: what a capture takes, what it leaves alone, and what an export gives back."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repro.code import source
from repro.errors import BadInputError, EnvironmentUnfitError
from tests.conftest import as_nobody

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


@pytest.fixture(autouse=True)
def own_git_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "gitconfig"
    config.write_text(
        '[user]\nname = A\nemail = a@example.org\n[init]\ndefaultBranch = main\n[protocol "file"]\nallow = always\n'
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.delenv("REPRO_SNAPSHOT_MAX_FILE", raising=False)


def git(where: Path, *arguments: str, fails: bool = False) -> str:
    done = subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, check=False)
    assert fails or done.returncode == 0, done.stderr.decode()
    return os.fsdecode(done.stdout)


def put(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode())


def committed(root: Path, files: dict[str, str] | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q")
    put(root, files or {"a.py": "print(1)\n", "sub/b.py": "b\n"})
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def state(root: Path) -> dict[str, Any]:
    """All that a capture must leave as it is."""
    git_dir = Path(git(root, "rev-parse", "--absolute-git-dir").strip())
    index = git_dir / "index"
    refs = git(root, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    return {
        "HEAD": (git_dir / "HEAD").read_bytes(),
        "index": (index.read_bytes(), index.stat().st_mtime_ns) if index.exists() else None,
        "refs": [line for line in refs if not line.startswith("refs/repro/")],
        "files": sorted(str(path) for path in root.rglob("*") if ".git" not in path.parts),
        "git": sorted(path.name for path in git_dir.iterdir() if path.name != "objects"),
    }


def content(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder: its bytes, or where it points to."""
    found: dict[str, bytes | str] = {}
    for parent, folders, files in os.walk(folder):
        for name in files + [each for each in folders if (Path(parent) / each).is_symlink()]:
            path = Path(parent) / name
            found[str(path.relative_to(folder))] = str(path.readlink()) if path.is_symlink() else path.read_bytes()
    return found


def exported(root: Path, out: Path) -> dict[str, bytes | str]:
    return content(source.export(source.capture(root), root, out))


# --- capture ------------------------------------------------------------------------------------------------------


def test_a_clean_tree_is_its_own_commit_and_outlives_a_rewritten_history(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    snapshot = source.capture(root)
    assert snapshot.commit == snapshot.head == git(root, "rev-parse", "HEAD").strip()
    assert (snapshot.dirty, snapshot.branch, snapshot.prefix, snapshot.remote) == (False, "main", "", None)
    assert source.diff_text(snapshot, root) == ""
    git(root, "commit", "-q", "--amend", "-m", "other")
    git(root, "reflog", "expire", "--expire=now", "--all")
    git(root, "gc", "-q", "--prune=now")
    assert content(source.export(snapshot, root, tmp_path / "out")) == {"a.py": b"print(1)\n", "sub/b.py": b"b\n"}


def test_uncommitted_untracked_and_deleted_files_are_captured_and_nothing_of_the_users_changes(tmp_path: Path) -> None:
    root = committed(tmp_path / "p", {"a.py": "1\n", "gone.py": "x\n", ".gitignore": "*.log\n", "staged.py": "s\n"})
    git(root, "branch", "other")
    put(root, {"a.py": "2\n", "new/n.py": "n\n", "noise.log": "l\n", "staged.py": "index\n"})
    git(root, "add", "staged.py")
    put(root, {"staged.py": "working tree\n"})
    (root / "gone.py").unlink()
    before, status = state(root), git(root, "--no-optional-locks", "status", "--porcelain")
    snapshot = source.capture(root)
    source.export(snapshot, root, tmp_path / "out")
    assert state(root) == before
    assert git(root, "--no-optional-locks", "status", "--porcelain") == status
    assert git(root, "stash", "list") == ""
    assert snapshot.dirty
    assert git(root, "rev-parse", f"{snapshot.commit}^").strip() == snapshot.head
    assert exported(root, tmp_path / "out") == {
        "a.py": b"2\n",
        "new/n.py": b"n\n",
        ".gitignore": b"*.log\n",
        "staged.py": b"working tree\n",
    }


def test_equal_content_has_an_equal_id_whoever_captures_it_and_survives_gc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = committed(tmp_path / "p")
    put(root, {"a.py": "2\n"})
    first = source.capture(root)
    git(root, "config", "user.name", "Somebody Else")
    git(root, "config", "i18n.commitEncoding", "ISO-8859-1")
    git(root, "config", "commit.gpgSign", "true")
    monkeypatch.setenv("GIT_AUTHOR_DATE", "2001-01-01T00:00:00")
    assert source.capture(root) == first
    put(root, {"a.py": "3\n"})
    assert source.capture(root).commit != first.commit
    git(root, "gc", "-q", "--prune=now")
    assert content(source.export(first, root, tmp_path / "out"))["a.py"] == b"2\n"


def test_the_same_files_on_two_heads_are_two_snapshots_that_both_live(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    put(root, {"a.py": "2\n"})
    first = source.capture(root)
    git(root, "commit", "-q", "--allow-empty", "-m", "second")
    second = source.capture(root)
    assert (first.tree, first.commit == second.commit) == (second.tree, False)
    git(root, "gc", "-q", "--prune=now")
    for snapshot in (first, second):
        assert git(root, "cat-file", "-t", snapshot.commit).strip() == "commit"


def test_a_subfolder_of_a_repository_is_exported_alone(tmp_path: Path) -> None:
    top = committed(tmp_path / "mono", {"lib/x.py": "x\n", "my proj/conf/c.yaml": "c\n", "my proj/run.py": "r\n"})
    put(top, {"lib/x.py": "changed\n", "my proj/new.py": "n\n"})
    root = top / "my proj"
    snapshot = source.capture(root)
    assert snapshot.prefix == "my proj"
    assert git(top, "show", f"{snapshot.commit}:lib/x.py") == "changed\n"
    one = source.export(snapshot, root, tmp_path / "out")
    assert content(one) == {"conf/c.yaml": b"c\n", "run.py": b"r\n", "new.py": b"n\n"}
    whole = source.capture(top)
    assert whole.commit == snapshot.commit
    assert "lib/x.py" in content(source.export(whole, top, tmp_path / "out"))
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(root)
    assert source.capture(link) == snapshot
    assert source.export(snapshot, link, tmp_path / "out") == one


def test_a_linked_worktree_and_a_detached_head_work(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    git(root, "worktree", "add", "-q", "--detach", str(tmp_path / "wt"))
    put(tmp_path / "wt", {"a.py": "2\n"})
    before = state(root), state(tmp_path / "wt")
    snapshot = source.capture(tmp_path / "wt")
    assert (snapshot.branch, snapshot.dirty) == (None, True)
    assert not source.capture(root).dirty
    assert (state(root), state(tmp_path / "wt")) == before
    git(root, "worktree", "remove", "--force", str(tmp_path / "wt"))
    assert content(source.export(snapshot, root, tmp_path / "out"))["a.py"] == b"2\n"


def test_before_the_first_commit_a_snapshot_has_no_parent(tmp_path: Path) -> None:
    root = tmp_path / "p"
    root.mkdir()
    git(root, "init", "-q")
    put(root, {"a.py": "1\n"})
    snapshot = source.capture(root)
    assert (snapshot.head, snapshot.branch, snapshot.dirty) == ("", "main", True)
    assert git(root, "rev-list", "--count", snapshot.commit).strip() == "1"
    assert "+1" in source.diff_text(snapshot, root)
    assert exported(root, tmp_path / "out") == {"a.py": b"1\n"}
    assert git(root, "status", "--porcelain") == "?? a.py\n"


@pytest.mark.parametrize("mark", ["--assume-unchanged", "--skip-worktree"])
def test_files_that_git_was_told_not_to_look_at_are_captured_as_they_are(tmp_path: Path, mark: str) -> None:
    root = committed(tmp_path / "p")
    git(root, "update-index", mark, "a.py", "sub/b.py")
    put(root, {"a.py": "hidden edit\n"})
    assert git(root, "status", "--porcelain") == ""
    before = state(root)
    snapshot = source.capture(root)
    assert state(root) == before
    assert snapshot.dirty
    assert content(source.export(snapshot, root, tmp_path / "out")) == {"a.py": b"hidden edit\n", "sub/b.py": b"b\n"}


def test_a_sparse_checkout_keeps_the_files_that_are_not_there(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    git(root, "sparse-checkout", "set", "--no-cone", "/a.py")
    assert not (root / "sub").exists()
    git(root, "update-index", "--assume-unchanged", "a.py", "sub/b.py")
    put(root, {"a.py": "2\n"})
    assert exported(root, tmp_path / "out") == {"a.py": b"2\n", "sub/b.py": b"b\n"}
    put(root, {"sub/new.py": "new\n"})  # outside of what is checked out
    assert exported(root, tmp_path / "out")["sub/new.py"] == b"new\n"


def test_what_is_tracked_is_asked_of_the_users_index_every_time(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    put(root, {"big.dat": "d\n", "forced.log": "f\n"})
    assert "big.dat" in exported(root, tmp_path / "out")
    put(root, {".gitignore": "*.dat\n*.log\n"})
    assert set(exported(root, tmp_path / "out")) == {"a.py", "sub/b.py", ".gitignore"}
    git(root, "add", "-f", "forced.log")
    assert "forced.log" in exported(root, tmp_path / "out")


def test_an_edit_in_the_same_moment_and_of_the_same_length_is_seen(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    seen = set()
    for number in range(10):
        put(root, {"a.py": f"print({number})\n"})
        seen.add(source.capture(root).tree)
    assert len(seen) == 10


def test_odd_names_modes_and_links_come_back_as_they_are(tmp_path: Path) -> None:
    names = [
        "with space.py",
        "line\nbreak",
        "tab\tbed",
        "ünï/日本.txt",
        "-rf",
        "HEAD",
        ":(exclude)a",
        'quo"te',
        "*?[x]",
    ]
    root = committed(tmp_path / "p", {name: name for name in names[:5]})
    put(root, {name: name for name in names[5:]})
    (root / os.fsdecode(b"latin\xe9")).write_bytes(b"bytes\0")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o777)
    (root / "a.py").write_text("")
    (root / "a.py").chmod(0o600)
    (root / "in").symlink_to("with space.py")
    (root / "out").symlink_to("/nonexistent/../etc/passwd")
    (root / "folder").symlink_to("ünï")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    snapshot = source.capture(root)
    folder = source.export(snapshot, root, tmp_path / "out")
    expected: dict[str, bytes | str] = {name: name.encode() for name in names}
    expected |= {os.fsdecode(b"latin\xe9"): b"bytes\0", "run.sh": b"#!/bin/sh\n", "a.py": b""}
    expected |= {"in": "with space.py", "out": "/nonexistent/../etc/passwd", "folder": "ünï", "loop": "loop"}
    assert content(folder) == expected
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*") if not path.is_symlink()}
    assert modes.pop("run.sh") == 0o555
    assert modes.pop("ünï") == 0o755
    assert set(modes.values()) == {0o444}
    assert {path.lstat().st_mtime for path in [folder, *folder.rglob("*")]} == {946684800.0}
    assert source.diff_text(snapshot, root).count("diff --git") == 11


def test_line_ends_and_filters_of_the_user_do_not_show_in_an_export(tmp_path: Path) -> None:
    root = committed(tmp_path / "p", {"a.py": "one\ntwo\n", "e.sh": "x\n", ".gitattributes": "e.sh export-ignore\n"})
    for key, value in {"core.autocrlf": "true", "core.safecrlf": "true"}.items():
        git(root, "config", key, value)
    put(root, {"a.py": "one\r\ntwo\r\n"})
    snapshot = source.capture(root)
    assert not snapshot.dirty
    put(root, {"new.py": "mixed\r\nends\n"})
    found = exported(root, tmp_path / "out")
    assert (found["a.py"], found["new.py"], found["e.sh"]) == (b"one\ntwo\n", b"mixed\nends\n", b"x\n")


def test_a_readonly_index_hooks_and_the_environment_of_a_hook_do_not_disturb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, other = committed(tmp_path / "p"), committed(tmp_path / "other", {"z": "z"})
    (root / ".git" / "index").chmod(0o444)
    for name in ("reference-transaction", "post-index-change", "pre-commit"):
        (root / ".git" / "hooks" / name).write_text("#!/bin/sh\nexit 1\n")
        (root / ".git" / "hooks" / name).chmod(0o755)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    put(root, {"n.py": "n\n"})
    assert set(exported(root, tmp_path / "out")) == {"a.py", "sub/b.py", "n.py"}


def test_a_split_index_with_an_untracked_cache_works(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    git(root, "update-index", "--split-index", "--untracked-cache")
    put(root, {"n.py": "n\n"})
    before = state(root)
    assert set(exported(root, tmp_path / "out")) == {"a.py", "sub/b.py", "n.py"}
    assert state(root) == before


def test_eight_processes_capture_and_export_at_once(tmp_path: Path) -> None:
    root = committed(tmp_path / "p", {f"d{number % 9}/f{number}.py": f"{number}\n" for number in range(200)})
    put(root, {"new.py": "n\n", "d1/f1.py": "changed\n"})
    program = (
        "import sys; from pathlib import Path; from repro.code import source\n"
        "root, out = map(Path, sys.argv[1:]); print(source.export(source.capture(root), root, out))"
    )
    command = [sys.executable, "-c", program, str(root), str(tmp_path / "out")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    answers = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0] * 8
    assert len(answers) == 1
    assert len(content(Path(answers.pop()))) == 201
    assert len(list((tmp_path / "out").iterdir())) == 2  # the export and .gitignore; no leftovers


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "remove", "add", "chmod", "link"]), st.sampled_from("abcd"), st.text(max_size=5)
    ),
    max_size=8,
)


@given(actions=ACTIONS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_done_to_files_the_export_is_the_working_tree(
    actions: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    root = committed(folder / "p", {"a": "1", "b": "2", "c/x": "3"})
    for action, name, text in actions:
        path = root / name
        if action == "remove" or (action in {"write", "link"} and path.is_symlink()):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        if action == "write" and not path.is_dir():
            path.write_text(text, "utf-8")
        elif action == "link" and not path.exists():
            path.symlink_to(f"to {name}")
        elif action == "add":
            git(root, "add", "-A")
        elif action == "chmod" and path.is_file():
            path.chmod(0o755)
    before = state(root)
    snapshot = source.capture(root)
    assert state(root) == before
    assert content(source.export(snapshot, root, folder / "out")) == {
        name: value for name, value in content(root).items() if not name.startswith(".git/")
    }
    assert snapshot.dirty == bool(git(root, "status", "--porcelain"))


# --- what is refused, and what is told ------------------------------------------------------------------------------


def refusal(root: Path, kind: type[Exception] = BadInputError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        source.capture(root, **options)
    return str(caught.value)


def test_no_repository_a_bare_one_and_no_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    assert "git init" in refusal(tmp_path / "plain")
    git(tmp_path, "init", "-q", "--bare", "bare.git")
    assert "no working tree" in refusal(tmp_path / "bare.git")
    assert "no working tree" in refusal(committed(tmp_path / "p") / ".git")
    assert "nowhere" in refusal(tmp_path / "nowhere")


def test_a_missing_git_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = committed(tmp_path / "p")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert "git is not installed" in refusal(root, EnvironmentUnfitError)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_repository_of_somebody_else_names_the_setting(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    for path in [root, *root.rglob("*")]:
        os.chown(path, 12345, 12345)
    assert "safe.directory" in refusal(root)


def test_conflicts_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    for branch, text in {"one": "1\n", "two": "2\n"}.items():
        git(root, "checkout", "-qb", branch, "main")
        put(root, {"a.py": text})
        git(root, "commit", "-qam", branch)
    git(root, "merge", "one", fails=True)
    before = state(root)
    assert "a.py" in refusal(root)
    assert state(root) == before


def test_a_project_that_git_ignores_is_refused(tmp_path: Path) -> None:
    root = committed(tmp_path / "p", {".gitignore": "scratch/\n", "a": "a"})
    put(root, {"scratch/proj/x.py": "x\n"})
    assert "no file" in refusal(root / "scratch" / "proj")


def test_a_large_untracked_file_is_refused_before_it_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = committed(tmp_path / "p", {"tracked.bin": "x" * 2000})
    put(root, {"tracked.bin": "y" * 2000, "data/set.bin": "z" * 1001})
    before = git(root, "count-objects")
    answer = refusal(root, max_file=1000)
    assert "data/set.bin: 1,001 bytes" in answer
    assert ".gitignore" in answer
    assert "tracked.bin" not in answer
    assert git(root, "count-objects") == before
    monkeypatch.setenv("REPRO_SNAPSHOT_MAX_FILE", "1000")
    assert "data/set.bin" in refusal(root)
    monkeypatch.setenv("REPRO_SNAPSHOT_MAX_FILE", "1001")
    assert source.capture(root).dirty
    monkeypatch.setenv("REPRO_SNAPSHOT_MAX_FILE", "1 GB")
    assert "1 GB" in refusal(root)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://user:token@example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://token@example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://example.org/a@b.git", "https://example.org/a@b.git"),
        ("ssh://git:pw@example.org:22/a.git", "ssh://git@example.org:22/a.git"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("/srv/a.git", "/srv/a.git"),
    ],
)
def test_the_remote_is_recorded_without_credentials(tmp_path: Path, given: str, shown: str) -> None:
    root = committed(tmp_path / "p")
    git(root, "remote", "add", "origin", given)
    code = source.capture(root).code()
    assert code.remote == shown
    assert (code.branch, code.dirty, code.commit) == ("main", False, code.head)


CAPTURE = """
try:
    source.capture(argument)
except BadInputError as error:
    print(error)
"""


def test_a_file_that_cannot_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others than who runs it
        root = committed(Path(folder) / "p")
        put(root, {"locked": "x"})
        (root / "locked").chmod(0)
        if os.geteuid() == 0:
            for path in (Path(folder), *Path(folder).rglob("*")):
                os.lchown(path, 65534, 65534)
        imports = "from repro.code import source; from repro.errors import BadInputError"
        done = as_nobody(imports, CAPTURE, root)
        assert "`git add` failed" in done.stdout, done.stderr
        assert "locked" in done.stdout
        assert ".gitignore" in done.stdout


# --- submodules, repositories inside, Git LFS -------------------------------------------------------------------------


def with_submodule(tmp_path: Path) -> Path:
    committed(tmp_path / "library", {"lib.py": "1\n"})
    root = committed(tmp_path / "p")
    git(root, "submodule", "--quiet", "add", str(tmp_path / "library"), "libs/my lib")
    git(root, "commit", "-qm", "submodule")
    return root


def test_the_files_of_a_submodule_are_exported_at_what_is_checked_out(tmp_path: Path) -> None:
    root = with_submodule(tmp_path)
    assert not source.capture(root).dirty
    assert exported(root, tmp_path / "out")["libs/my lib/lib.py"] == b"1\n"
    inner = root / "libs/my lib"
    put(inner, {"lib.py": "2\n"})
    git(inner, "commit", "-qam", "moved")
    snapshot = source.capture(root)
    assert snapshot.dirty
    assert git(root, "rev-parse", f"{snapshot.commit}:libs/my lib") == git(inner, "rev-parse", "HEAD")
    assert content(source.export(snapshot, root, tmp_path / "out"))["libs/my lib/lib.py"] == b"2\n"


@pytest.mark.parametrize("ignore", ["none", "all"])
def test_a_dirty_submodule_is_captured_too(tmp_path: Path, ignore: str) -> None:
    root = with_submodule(tmp_path)
    git(root, "config", "submodule.libs/my lib.ignore", ignore)
    inner = root / "libs/my lib"
    put(inner, {"lib.py": "edited\n", "new.key": "k\n"})
    before = state(root), state(inner)
    snapshot = source.capture(root)
    assert (state(root), state(inner)) == before
    assert snapshot == source.capture(root)
    git(inner, "gc", "-q", "--prune=now")
    found = content(source.export(snapshot, root, tmp_path / "out"))
    assert (found["libs/my lib/lib.py"], found["libs/my lib/new.key"]) == (b"edited\n", b"k\n")
    assert "+edited" in source.diff_text(snapshot, root)


def test_a_submodule_that_is_not_checked_out_is_named_unless_it_is_outside_the_project(tmp_path: Path) -> None:
    origin = with_submodule(tmp_path)
    put(origin, {"proj/x.py": "x\n"})
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "project")
    git(tmp_path, "clone", "-q", str(origin), "clone")
    answer = refusal(tmp_path / "clone")
    assert "libs/my lib" in answer
    assert "git submodule update --init" in answer
    snapshot = source.capture(tmp_path / "clone" / "proj")
    assert not snapshot.dirty
    assert content(source.export(snapshot, tmp_path / "clone" / "proj", tmp_path / "out")) == {"x.py": b"x\n"}


def test_a_repository_inside_the_project_is_captured_with_it(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    committed(root / "vendor" / "tool", {"t.py": "t\n"})
    put(root / "vendor" / "tool", {"t.py": "edited\n"})
    assert exported(root, tmp_path / "out")["vendor/tool/t.py"] == b"edited\n"
    (root / "empty").mkdir()
    git(root / "empty", "init", "-q")
    put(root / "empty", {"x": "x"})
    assert "empty" in refusal(root)


def lfs_repository(root: Path, body: bytes) -> str:
    digest = hashlib.sha256(body).hexdigest()
    pointer = POINTER.format(digest, len(body))
    committed(root, {".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n", "m/model.bin": pointer})
    put(root, {"doc.txt": pointer})  # the same text where attributes say nothing: just a text
    return digest


def test_pointers_without_content_are_named(tmp_path: Path) -> None:
    lfs_repository(tmp_path / "p", b"weights")
    answer = refusal(tmp_path / "p")
    assert "m/model.bin" in answer
    assert "git lfs pull" in answer
    assert "doc.txt" not in answer


def test_pointers_with_content_in_the_store_are_exported_as_content(tmp_path: Path) -> None:
    root, body = tmp_path / "p", b"weights\0" * 1000
    digest = lfs_repository(root, body)
    stored = root / ".git" / "lfs" / "objects" / digest[:2] / digest[2:4] / digest
    stored.parent.mkdir(parents=True)
    stored.write_bytes(body)
    snapshot = source.capture(root)
    found = content(source.export(snapshot, root, tmp_path / "out"))
    assert found["m/model.bin"] == body
    assert found["doc.txt"] == POINTER.format(digest, len(body)).encode()
    stored.unlink()
    with pytest.raises(BadInputError, match=r"m/model\.bin"):
        source.export(snapshot, root, tmp_path / "out2")
    assert [path.name for path in (tmp_path / "out2").iterdir()] == [".gitignore"]


def test_content_is_captured_where_git_lfs_is_configured_but_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "p"
    lfs_repository(root, b"weights")
    for key, value in {"clean": "git-lfs clean -- %f", "process": "git-lfs filter-process", "required": "true"}.items():
        git(root, "config", f"filter.lfs.{key}", value)
    (root / "m" / "model.bin").write_bytes(b"real weights")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "git").symlink_to(shutil.which("git") or "")
    monkeypatch.setenv("PATH", str(programs))
    assert exported(root, tmp_path / "out")["m/model.bin"] == b"real weights"


@pytest.mark.skipif(not shutil.which("git-lfs"), reason="needs git-lfs")
def test_files_of_git_lfs_are_exported_as_content_and_a_clean_tree_is_clean(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    git(root, "lfs", "install", "--local")
    git(root, "lfs", "track", "*.bin")
    (root / "model.bin").write_bytes(b"real weights")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "model")
    assert not source.capture(root).dirty
    assert exported(root, tmp_path / "out")["model.bin"] == b"real weights"
    (root / "model.bin").write_bytes(b"better weights")
    snapshot = source.capture(root)
    assert snapshot.dirty
    assert content(source.export(snapshot, root, tmp_path / "out"))["model.bin"] == b"better weights"
    assert b"oid sha256" in git(root, "cat-file", "blob", f"{snapshot.commit}:model.bin").encode()


# --- export, diff -----------------------------------------------------------------------------------------------------


def test_an_export_is_written_once_and_again_when_somebody_changed_it(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    snapshot, out = source.capture(root), tmp_path / "deep" / "out"
    folder = source.export(snapshot, root, out)
    inode = folder.stat().st_ino
    assert source.export(snapshot, root, out).stat().st_ino == inode
    (folder / "a.py").chmod(0o644)
    (folder / "a.py").write_text("print(2)\n")  # as long as before
    assert (source.export(snapshot, root, out) / "a.py").read_text() == "print(1)\n"
    (folder / "extra.pyc").write_text("")
    assert not (source.export(snapshot, root, out) / "extra.pyc").exists()
    (folder.parent / "complete.json").unlink()  # as a crash could have left it
    shutil.rmtree(folder / "sub")
    assert (source.export(snapshot, root, out) / "sub" / "b.py").read_text() == "b\n"
    assert sorted(path.name for path in out.iterdir()) == [".gitignore", snapshot.commit]


def test_exports_inside_the_project_do_not_enter_the_next_snapshot(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    snapshot = source.capture(root)
    source.export(snapshot, root, root / ".repro" / "code")
    assert source.capture(root) == snapshot


def test_an_unknown_commit_and_an_unwritable_place_are_clear_errors(tmp_path: Path) -> None:
    root = committed(tmp_path / "p")
    put(root, {"a.py": "2\n"})
    snapshot = source.capture(root)
    other = committed(tmp_path / "other")
    with pytest.raises(BadInputError, match="not in the repository"):
        source.export(snapshot, other, tmp_path / "out")
    with pytest.raises(BadInputError, match="not in the repository"):
        source.diff_text(snapshot, other)
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentUnfitError, match="cannot export"):
        source.export(snapshot, root, tmp_path / "file")


def test_the_diff_reads_well_is_cut_and_names_binary_files_only(tmp_path: Path) -> None:
    root = committed(tmp_path / "p", {"a.py": "".join(f"{number}\n" for number in range(2000)), "b.bin": "\0\1"})
    for key, value in {"diff.noprefix": "true", "color.ui": "always", "diff.external": "false"}.items():
        git(root, "config", key, value)
    put(root, {"a.py": "new\n", "b.bin": "\0\2", "n.py": "é\n"})
    snapshot = source.capture(root)
    text = source.diff_text(snapshot, root)
    assert "diff --git a/a.py b/a.py" in text
    assert "Binary files a/b.bin and b/b.bin differ" in text
    assert "+é" in text
    assert "\x1b" not in text
    short = source.diff_text(snapshot, root, limit=500)
    assert len(short) < 600
    assert short.endswith("\n... cut: longer than 500 bytes\n")


def test_a_capture_where_nothing_changed_writes_no_object(tmp_path: Path) -> None:
    root = committed(tmp_path / "p", {f"d{number % 10}/f{number}.py": f"{number}\n" for number in range(500)})
    put(root, {"d1/f1.py": "changed\n", "new.py": "n\n"})
    first = source.capture(root)
    objects = sorted((root / ".git" / "objects").rglob("*"))
    assert source.capture(root) == first
    assert sorted((root / ".git" / "objects").rglob("*")) == objects


def test_the_tracking_store_beside_the_code_is_not_part_of_it(tmp_path: Path) -> None:
    root = committed(tmp_path / "r")
    put(root, {"mlflow.db": "x", "mlflow.db-journal": "x", "mlflow.db.lock": "x"})
    assert not source.capture(root).dirty
    put(root, {"more.py": "1\n"})
    assert "mlflow.db" not in git(root, "ls-tree", "-r", "--name-only", source.capture(root).commit)


def test_a_bundle_beside_the_code_is_not_part_of_it_and_other_crates_are(tmp_path: Path) -> None:
    root = committed(tmp_path / "r")
    put(root, {"20261123-191500-mnist-3f9c1a.crate.zip": "x", ".repro-exporting-abc/code.bundle": "x"})
    assert not source.capture(root).dirty
    put(root, {"of-somebody.crate.zip": "x"})
    listed = git(root, "ls-tree", "-r", "--name-only", source.capture(root).commit)
    assert [name for name in listed.split() if "crate" in name or "exporting" in name] == ["of-somebody.crate.zip"]
