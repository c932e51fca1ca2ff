"""Where secrets come from, and where they lie on the host: in memory, for their owner alone, for as long as a run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from repro.errors import BadInputError, EnvironmentUnfitError
from repro.experiment import RunSecret
from repro.secrets import secretsfolder, secretsources

VALUE = "s3cret-value"
SHM = Path("/dev/shm")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The id of a run that no other test has."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    name = f"20261127-000000-test-{os.getpid()}-{abs(hash(request.node.name))}"
    request.addfinalizer(lambda: secretsfolder.remove(name))  # noqa: PT021 - also where the test fails
    return name


def provided(run: str, root: Path, **secrets: RunSecret) -> Path:
    folder = secretsfolder.place(run)
    secretsfolder.provide(secrets, folder, root)
    return folder


# sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "value"),
    [
        (RunSecret(env="TOKEN"), b"s3cret-value"),
        (RunSecret(file="token.txt"), b"s3cret-value\n\n"),
        (RunSecret(file="~/token.txt"), b"home\n"),
        (RunSecret(command="cat token.txt"), b"s3cret-value\n"),
        (RunSecret(command="printf '%s|' 'a b' c;"), b"a b|c;|"),
        (RunSecret(command="./mine one"), b"mine one"),
    ],
)
def test_a_value_comes_from_a_variable_a_file_or_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: RunSecret, value: bytes
) -> None:
    monkeypatch.setenv("TOKEN", VALUE)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token.txt").write_text("home\n")
    (tmp_path / "token.txt").write_text(f"{VALUE}\n\n")
    (tmp_path / "mine").write_text("#!/bin/sh\necho mine $1\n")
    (tmp_path / "mine").chmod(0o755)
    assert secretsources.value("secrets.X", source, tmp_path) == value


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (RunSecret(), "give env or file or command"),
        (RunSecret(env="A", command="b"), "give env or file or command"),
        (RunSecret(env="REPRO_TEST_UNSET"), "REPRO_TEST_UNSET is not set"),
        (RunSecret(env="EMPTY"), "EMPTY is set, and empty"),
        (RunSecret(file="nosuch"), "no such file"),
        (RunSecret(file="."), "it is a folder"),
        (RunSecret(file="empty"), "is empty"),
        (RunSecret(command="nosuchprogram x"), "there is no program nosuchprogram"),
        (RunSecret(command="echo 'x"), "cannot be split into words"),
        (RunSecret(command=" "), "command is empty"),
        (RunSecret(command="true"), "printed nothing"),
        (RunSecret(command="sh -c 'echo s3cret-value; echo no s3cret-value >&2; exit 3'"), "failed with exit code 3"),
    ],
)
def test_a_value_that_cannot_be_had_is_said_without_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: RunSecret, said: str
) -> None:
    monkeypatch.setenv("EMPTY", "")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(BadInputError) as refused:
        secretsources.value("secrets.X", source, tmp_path)
    assert said in str(refused.value)
    assert "secrets.X" in str(refused.value)
    if "exit code 3" in said:  # the value is in the program's own text here: that is the configuration's
        assert f"| no {'*' * len(VALUE)}" in str(refused.value)


# folder ----------------------------------------------------------------------------------------------------------


def test_secrets_lie_in_memory_for_their_owner_alone_until_the_run_is_over(run: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(VALUE)
    folder = provided(run, tmp_path, A=RunSecret(file="token"), B=RunSecret(command="echo other"))
    assert folder.is_relative_to(SHM)
    assert [oct(path.stat().st_mode)[-3:] for path in (folder.parent, folder, folder / "A")] == ["700", "700", "400"]
    assert secretsfolder.values(run) == (VALUE.encode(), b"other")
    secretsfolder.remove(run)
    assert not folder.exists()
    assert secretsfolder.values(run) == ()
    secretsfolder.remove(run)


def test_another_process_with_another_environment_finds_them(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provided(run, tmp_path, A=RunSecret(command="echo value"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert secretsfolder.values(run) == (b"value",)


def test_the_users_own_folder_in_memory_is_preferred(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = SHM / f"repro-test-{os.getpid()}"
    own.mkdir()
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))
        assert provided(run, tmp_path, A=RunSecret(command="echo value")).is_relative_to(own)
        secretsfolder.remove(run)
    finally:
        for path in (*own.glob("*"), own):
            path.rmdir()


def test_a_disk_is_never_used(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert secretsfolder.place(run).is_relative_to(SHM)
    with pytest.raises(EnvironmentUnfitError, match="not written to a disk") as refused:
        secretsfolder.place(run, among=[tmp_path, tmp_path / "nosuch"])
    assert f"{tmp_path}: on a disk" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_can_read_is_refused(run: str, tmp_path: Path) -> None:
    folder = secretsfolder.place(run)
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    before = folder.parent.stat().st_mode
    folder.parent.chmod(0o755)
    try:
        with pytest.raises(EnvironmentUnfitError, match="cannot be written") as refused:
            provided(run, tmp_path, A=RunSecret(command="echo value"))
        assert "chmod 700" in str(refused.value)
        assert not folder.exists()
    finally:
        folder.parent.chmod(before)


@pytest.mark.parametrize(
    "second",
    [
        RunSecret(command="sh -c 'exit 1'"),
        RunSecret(command="head -c 200000 /dev/urandom", to="env"),
        RunSecret(command="printf 'a\\0b'", to="env"),
    ],
)
def test_where_one_value_cannot_be_had_nothing_is_left(run: str, tmp_path: Path, second: RunSecret) -> None:
    with pytest.raises(BadInputError):
        provided(run, tmp_path, A=RunSecret(command="echo value"), B=second)
    assert not secretsfolder.place(run).exists()


def test_a_short_value_is_remarked_on(run: str, tmp_path: Path) -> None:
    remarks = secretsfolder.provide({"PIN": RunSecret(command="echo 123")}, secretsfolder.place(run), tmp_path)
    assert remarks == ("secrets.PIN is shorter than 4 bytes: it is not masked in the output",)


def test_what_a_killed_run_left_is_stale_and_can_be_removed(run: str, tmp_path: Path) -> None:
    folder = provided(run, tmp_path, A=RunSecret(command="echo value"))
    assert run not in secretsfolder.stale([])  # its container may be on its way
    old = time.time() - 2 * secretsfolder.STALE_SECONDS
    os.utime(folder, (old, old))
    assert run in secretsfolder.stale([])
    assert run not in secretsfolder.stale([run])
    secretsfolder.remove(run)
    assert run not in secretsfolder.stale([])
