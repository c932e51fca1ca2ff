"""A run with secrets on a real engine: the experiment has them, and nobody finds them anywhere else."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from repro.engines.engine import connect
from repro.project import Project
from repro.secrets import secretsfolder
from tests.conftest import script, write_experiment
from tests.test_ends_engine import Repro
from tests.test_run_engine import begun, containers, latest, left, on_a_terminal, read_all, start, wait_for

pytestmark = pytest.mark.engine

TOKEN = "tok3n-" + "q" * 26  # no real ones
KEY = "-----BEGIN TEST KEY-----\nMIIEvQIBADANBgkqhkiG9w0\nkey-line-two-0123456789\n-----END TEST KEY-----\n"
NEEDLES = [TOKEN.encode(), b"MIIEvQIBADANBgkqhkiG9w0", b"key-line-two-0123456789"]
SECRETS = """\
secrets:
  TOKEN: {command: cat ../outside/token, to: env}
  key: {file: ../outside/key}
"""
OPTIONS = ("experiment=toy", "gpus=none")


@pytest.fixture
def vault(lab: Project) -> Iterator[Project]:
    """The lab, with an experiment that has two secrets, which lie outside of the project."""
    outside = lab.root.parent / "outside"
    outside.mkdir()
    (outside / "token").write_text(f"{TOKEN}\n")
    (outside / "key").write_text(KEY)
    write_experiment(lab.root, "toy", "[sh, toy.sh]", SECRETS)
    yield lab
    assert kept(lab) == []


def kept(lab: Project) -> list[str]:
    """The runs of this project whose secrets are still on this host."""
    here = [path.name for path in lab.runs.iterdir()] if lab.runs.is_dir() else []
    return [run for run in here if secretsfolder.values(run)]


def holders(folder: Path) -> list[str]:
    """Files below a folder that hold a secret."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and any(needle in path.read_bytes() for needle in NEEDLES)
    ]


def processes(name: str) -> dict[int, bytes]:
    """cmdline or environ of every process, that of the tests apart."""
    found = {}
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            found[int(path.parts[2])] = path.read_bytes()
        except OSError:  # gone
            continue
    return found


def in_a_container(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink() != Path("/proc/self/ns/pid").readlink()
    except OSError:
        return True  # gone


def test_the_experiment_has_its_secrets_and_they_are_nowhere_else(vault: Project, repro: Repro) -> None:
    script(
        vault,
        "toy.sh",
        'test "$TOKEN" = "$(cat /run/secrets/TOKEN)" && cmp /run/secrets/key expected 2>/dev/null\n'
        "ls -ln /run/secrets/key | cut -c1-10 > /outputs/mode; sha256sum < /run/secrets/key > /outputs/key.sha256\n"
        "touch /run/secrets/x 2>/dev/null && echo writable > /outputs/writable\n"
        "printf %s ${#TOKEN} > /outputs/length\n"
        "echo begun; while [ ! -e /outputs/go ]; do sleep 0.05; done\n"
        'echo "the token is $TOKEN."; cat /run/secrets/key >&2\n'
        "repro-log step=1 loss=0.5; exit 3",
    )
    process = start(vault, "-v", *OPTIONS, "resources.time_limit=100.0")
    wait_for(lambda: begun(vault))
    record, folder = latest(vault)
    engine = connect()
    (name,) = containers(vault)
    inspected = json.dumps(engine.client.api.inspect_container(name))
    assert "/run/secrets" in inspected
    assert TOKEN not in inspected
    assert not any(needle in line for line in processes("cmdline").values() for needle in NEEDLES)
    exposed = [pid for pid, text in processes("environ").items() if any(needle in text for needle in NEEDLES)]
    assert exposed
    assert [pid for pid in exposed if not in_a_container(pid)] == []
    assert kept(vault) == [record.planned.run]
    (folder.outputs / "go").touch()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert f"the token is {'*' * len(TOKEN)}." in err
    assert TOKEN not in out + err
    assert "key-line" not in out + err
    wait_for((vault.root / "mlflow.db").is_file)
    assert holders(vault.root) == []
    assert (folder.outputs / "length").read_text() == str(len(TOKEN))
    assert (folder.outputs / "mode").read_text() == "-r--------\n"
    assert not (folder.outputs / "writable").exists()
    assert folder.output_log.stat().st_size == len(f"begun\nthe token is {TOKEN}.\n") + len(KEY)
    assert latest(vault)[0].planned.command == ("sh", "toy.sh")


def test_a_secret_that_is_printed_in_pieces_is_masked(vault: Project, repro: Repro) -> None:
    script(vault, "split.py", SPLIT)
    done = repro("run", *OPTIONS, "command=[python3,split.py]", "tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    log = latest(vault)[1].output_log.read_bytes()
    assert log == b"x" * 70_000 + b"*" * len(TOKEN) * 5 + b"\n" + b"*" * len(TOKEN) + TOKEN[:9].encode()


SPLIT = """\
import os, sys, time
token = os.environ["TOKEN"]
sys.stdout.write("x" * 70_000)
for _ in range(5):
    for at in range(0, len(token), 7):
        sys.stdout.write(token[at : at + 7])
        sys.stdout.flush()
        time.sleep(0.01)
sys.stdout.write("\\n" + token + token[:9])
"""


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        ("{env: REPRO_TEST_UNSET}", "REPRO_TEST_UNSET is not set"),
        ("{command: sh -c 'exit 4'}", "failed with exit code 4"),
        ("{file: nosuch}", "no such file"),
        ("{}", "give env or file or command"),
        ("{env: HOME, to: disk}", "secrets.X.to"),
        ("{value: abc}", "unknown key secrets.X.value"),
    ],
)
def test_a_secret_that_cannot_be_had_is_one_error_and_nothing_is_left(
    lab: Project, repro: Repro, secret: str, says: str
) -> None:
    write_experiment(lab.root, "toy", "[sh, toy.sh]", f"secrets: {{X: {secret}}}\n")
    done = repro("run", *OPTIONS, "tracking.enabled=false")
    assert (done.returncode, left(lab)) == (2, ([], [])), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_secret_cannot_take_the_place_of_another_variable(lab: Project, repro: Repro) -> None:
    for name in ("PATH", "my.token"):
        write_experiment(lab.root, "toy", "[sh, toy.sh]", f"secrets: {{{name}: {{command: echo abcdef, to: env}}}}\n")
        done = repro("run", *OPTIONS, "tracking.enabled=false")
        assert (done.returncode, left(lab)) == (2, ([], [])), done.stderr
        assert name in done.stderr


def test_a_command_that_is_not_found_leaves_no_secrets(vault: Project, repro: Repro) -> None:
    before = set(secretsfolder.stale([], older_than=-1))
    done = repro("run", *OPTIONS, "command=[nosuchprogram]", "tracking.enabled=false")
    assert done.returncode == 2
    assert "the image does not hold that program" in done.stderr
    assert not set(secretsfolder.stale([], older_than=-1)) - before


def test_a_stopped_run_leaves_no_secrets(vault: Project) -> None:
    script(vault, "toy.sh", "echo begun; sleep 100")
    process = start(vault, *OPTIONS, "tracking.enabled=false")
    wait_for(lambda: begun(vault))
    assert kept(vault)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert (process.returncode, kept(vault)) == (130, [])


def test_neither_a_plan_nor_the_configuration_shows_or_asks_for_a_value(vault: Project, repro: Repro) -> None:
    write_experiment(vault.root, "toy", "[sh, toy.sh]", "secrets: {T: {command: touch asked, to: env}}\n")
    plan = repro("run", "--plan", *OPTIONS, "tracking.enabled=false")
    assert plan.returncode == 0, plan.stderr
    assert '"command": "touch asked"' in plan.stdout
    assert '"T=/run/secrets/T"' in plan.stdout
    assert "touch asked" in repro("run", "--cfg", "job", *OPTIONS).stdout
    assert not (vault.root / "asked").exists()


def test_the_shell_has_the_secrets_too_and_no_time_limit(vault: Project) -> None:
    before = set(secretsfolder.stale([], older_than=-1))
    process, master = on_a_terminal(vault, "shell", *OPTIONS, "resources.time_limit=0.2")
    os.write(master, b"sleep 1; echo length ${#TOKEN}; wc -c < /run/secrets/key; exit 0\n")
    seen = b"".join(read_all(master))
    assert process.wait(60) == 0, seen
    assert f"length {len(TOKEN)}".encode() in seen
    assert f"{len(KEY)}\r".encode() in seen
    assert b"the experiment: sh toy.sh" in seen
    assert not set(secretsfolder.stale([], older_than=-1)) - before


def test_an_untracked_key_is_warned_of_or_refused(lab: Project, repro: Repro) -> None:
    script(lab, ".env", "TOKEN=x")
    done = repro("run", "--plan", *OPTIONS, "tracking.enabled=false")
    assert done.returncode == 0
    assert ".env: files of this name hold secrets" in done.stderr
    done = repro("run", *OPTIONS, "tracking.enabled=false", REPRO_SNAPSHOT_SECRETS="refuse")
    assert (done.returncode, left(lab)) == (4, ([], []))
    assert ".gitignore" in done.stderr


def test_whoever_takes_a_run_over_masks_its_secrets_and_removes_them_at_the_end(vault: Project, repro: Repro) -> None:
    script(
        vault,
        "toy.sh",
        "echo begun; n=0; while [ ! -e /outputs/go ]; do echo $n $TOKEN; cat /run/secrets/key; n=$((n+1)); done",
    )
    process = start(vault, *OPTIONS, "tracking.enabled=false")
    wait_for(lambda: begun(vault))
    process.kill()
    process.communicate()
    _record, folder = latest(vault)
    assert kept(vault) == [folder.path.name]
    repro("runs")
    (folder.outputs / "go").touch()
    assert repro("wait").returncode == 0
    assert holders(folder.path) == []
    lines = folder.output_log.read_text().splitlines()
    told = [line.partition(" ")[0] for line in lines if line.endswith(" " + "*" * len(TOKEN))]
    assert told == [str(n) for n in range(len(told))]
    assert len(lines) == 1 + 5 * len(told)
    assert kept(vault) == []


def test_what_cannot_be_masked_any_more_stays_with_the_engine(vault: Project, repro: Repro) -> None:
    script(vault, "toy.sh", "echo begun; while [ ! -e /outputs/go ]; do sleep 0.05; done; echo after $TOKEN")
    process = start(vault, *OPTIONS, "tracking.enabled=false")
    wait_for(lambda: begun(vault))
    process.kill()
    process.communicate()
    _record, folder = latest(vault)
    secretsfolder.remove(folder.path.name)  # as at a logout
    repro("runs")
    (folder.outputs / "go").touch()
    assert repro("wait").returncode == 0
    record = folder.read()
    assert record.ended is not None
    assert "its secrets are gone from this machine's memory" in record.ended.reason
    assert folder.output_log.read_text() == "begun\n"
    assert b"after tok3n" in b"".join(connect().output(containers(vault)[0], follow=False))
    assert repro("reap").returncode == 0
    assert containers(vault) == []
