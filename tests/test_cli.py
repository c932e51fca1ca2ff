"""Verbs that need no engine, as a user types them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from repro import cli
from repro.project import Project
from repro.record import RunFolder
from tests.test_docs import verbs
from tests.test_record import record

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
BIN = Path(sys.executable).parent

COMPLETE = """
eval "$(repro run -sc install=bash)"
COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS=("${@:2}") COMP_CWORD=$(($# - 2))
_repro
echo "${COMPREPLY[*]}"
repro run -sc uninstall=bash
"""


def add(project: Project, run: str) -> RunFolder:
    folder = RunFolder(project.runs / run)
    folder.path.mkdir(parents=True)
    folder.write(record())
    return folder


def test_a_record_that_cannot_be_read_does_not_hide_the_others(project: Project, repro: Repro) -> None:
    add(project, "20261123-191500-toy-3f9c1a")
    add(project, "20261123-191501-toy-ffffff").record.write_text('{"planned": ')
    done = repro("runs")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    assert "20261123-191501-toy-ffffff" in done.stderr
    assert len(json.loads(repro("runs", "--json").stdout)) == 1


def test_init_keeps_what_is_there_and_completes_the_gitignore(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.log\n/runs/")
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "Dockerfile").write_text("FROM mine\n")
    command = [BIN / "repro", "init"]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stderr
    assert "keeps   .gitignore, with 4 lines more" in said
    assert (tmp_path / ".gitignore").read_text().split() == [
        *("*.log", "/runs/", "/.repro/", "/mlflow.db*", "/mlartifacts/", "/conf/local/"),
    ]
    assert (tmp_path / "docker" / "Dockerfile").read_text() == "FROM mine\n"
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert len((tmp_path / ".gitignore").read_text().split()) == 6


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["repro", "pr"], "prune"),
        (["repro", "run", "experim"], "experiment="),
        (["repro", "run", "experiment", "=", "t"], "toy"),  # bash parts words at the sign
        (["repro", "run", "experiment=toy", "params.e"], "params.epochs="),
        (["repro", "rebuild", "image", "=", "tensorflow-"], "tensorflow-cpu"),
        (["repro", "show", "2026"], "20261123-191500-toy-3f9c1a"),
        (["repro", "doctor", "x"], ""),
    ],
)
def test_a_shell_completes_verbs_overrides_and_runs(project: Project, words: list[str], offered: str) -> None:
    add(project, "20261123-191500-toy-3f9c1a")
    line = re.sub(" = ", "=", " ".join(words))
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "-", line, *words],
        cwd=project.root,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{offered}\ncomplete -r repro\n", done.stderr


def test_every_verb_can_be_completed() -> None:
    script = (Path(cli.__file__).parent / "completion.bash").read_text()
    offered = [word for words in re.findall(r'found\+?="([a-z -]+)"', script) for word in words.split()]
    assert set(offered) == verbs()


def test_another_shell_is_told_what_there_is(project: Project, repro: Repro) -> None:
    done = repro("run", "-sc", "install=fish")
    assert (done.returncode, done.stdout) == (2, "")
    assert "install=bash" in done.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ["--verify", "--push"],
        ["--verify", "--pull"],
        ["--check", "--no-cache"],
        ["--explain", "--pull-base"],
        ["--if-changed", "--no-cache"],
        ["--pull", "--no-cache"],
        ["--check", "--push"],
        ["--force"],
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rebuild", *flags]) == 2
    assert flags[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "late"), [("repro", "repro.report"), ("repro", "repro.verbs.life"), ("repro.run", "repro.runner")]
)
def test_ctrl_c_while_the_library_is_being_imported_is_no_traceback(module: str, late: str) -> None:
    code = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {late!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"sys.argv = ['repro', 'runs']\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "repro: interrupted\n")
