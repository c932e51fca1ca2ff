"""Untracked secrets are named before git stores anything of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from repro.code import source
from repro.errors import BadInputError, RefusedError
from tests.conftest import commit

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjE\n-----END OPENSSH PRIVATE KEY-----\n"
GITHUB = "ghp_" + "a1" * 18  # no real one


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".gitignore").write_text("ignored.env\nignored/\n")
    (tmp_path / "tracked.py").write_text(f"token = '{GITHUB}'\n")
    commit(tmp_path)
    return tmp_path


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def objects(root: Path) -> str:
    answer = subprocess.run(["git", "-C", str(root), "count-objects"], check=True, capture_output=True, text=True)
    return answer.stdout


def said(root: Path) -> str:
    warnings: list[str] = []
    source.capture(root, warn=warnings.append)
    return "\n".join(warnings)


@pytest.mark.parametrize(
    ("path", "text", "why"),
    [
        (".env", "A=b\n", "files of this name hold secrets"),
        ("deep/er/id_rsa", "", "files of this name hold secrets"),
        ("credentials.json", "{}", "files of this name hold secrets"),
        ("a.key", KEY, "it holds a private key"),
        ("CHAIN.PEM", "certificate\n" * 9000 + KEY, "it holds a private key"),
        ("notes.txt", KEY, "it holds a private key"),
        ("train.py", f"login('{GITHUB}')\n", "it holds a GitHub token"),
        ("x.cfg", "key = AKIAABCDEFGHIJKLMNOP\n", "it holds an AWS key"),
        ("y.cfg", "key = hf_" + "aB3" * 11, "it holds a Hugging Face token"),
        ("z.cfg", "key = sk-proj-" + "aB3" * 11, "it holds an API key"),
    ],
)
def test_a_file_that_looks_like_a_secret_is_named_with_what_to_do(root: Path, path: str, text: str, why: str) -> None:
    put(root, path, text)
    warning = said(root)
    assert f"{path}: {why}" in warning
    assert f"{root}/.gitignore" in warning
    assert GITHUB not in warning


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("ignored.env", KEY),
        ("ignored/id_rsa", KEY),
        (".env.example", f"TOKEN={GITHUB}\n"),
        ("id_rsa.pub", "ssh-rsa AAAA\n"),
        ("ca.pem", "-----BEGIN CERTIFICATE-----\n"),
        ("slides.key", "no key\n"),
        ("risk-analysis.md", "task-oriented-programming-languages-of-the-future\n"),
        ("data.csv", "x\n" * 5000 + KEY),
        ("large.txt", KEY + "x" * (1 << 20)),
    ],
)
def test_other_files_are_none(root: Path, path: str, text: str) -> None:
    put(root, path, text)
    assert said(root) == ""


def test_a_link_and_a_file_that_cannot_be_read_are_no_reason_to_fail_here(root: Path) -> None:
    (root / "link").symlink_to("/etc/shadow")
    (root / "nowhere").symlink_to("/nosuch")
    assert said(root) == ""


def test_it_is_said_before_anything_is_stored(root: Path) -> None:
    put(root, ".env", "A=b\n")
    before = objects(root)

    def interrupt(_warning: str) -> None:
        assert objects(root) == before
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.capture(root, warn=interrupt)
    assert objects(root) == before


def test_who_wants_a_refusal_gets_one_and_nothing_is_stored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(root, ".env", "A=b\n")
    before = objects(root)
    monkeypatch.setenv("REPRO_SNAPSHOT_SECRETS", "refuse")
    with pytest.raises(RefusedError, match="look like secrets") as refused:
        source.capture(root)
    assert ".env: files of this name" in str(refused.value)
    assert objects(root) == before
    monkeypatch.setenv("REPRO_SNAPSHOT_SECRETS", "no")
    with pytest.raises(BadInputError, match="neither `warn` nor `refuse`"):
        source.capture(root)


def test_many_are_counted(root: Path) -> None:
    for number in range(14):
        put(root, f"{number:02}/.env", "")
    assert "09/.env" in said(root)
    assert "and 4 more" in said(root)


def test_those_of_a_repository_inside_are_named_too(root: Path) -> None:
    put(root, "inner/a.py", "")
    commit(root / "inner")
    put(root, "inner/.env", "")
    assert f"{root}/inner/.gitignore" in said(root)
