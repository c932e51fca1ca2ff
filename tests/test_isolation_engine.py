"""A hostile experiment on a real engine: each thing that it must not be able to do is tried, and seen to fail."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from repro.project import Project
from repro.record import RunFolder
from repro.tracking import journal, publication
from tests.conftest import commit, script, write_experiment
from tests.test_run_engine import begun, containers, latest, on_a_terminal, read_all, start, wait_for

pytestmark = pytest.mark.engine

Repro = Callable[..., "subprocess.CompletedProcess[str]"]
OFF = ("gpus=none", "tracking.enabled=false")

# Runs each attempt; what comes of it is an error's name, or "DONE" with what was gained. Numbers are x86-64's.
HOSTILE = """
import ctypes, errno, json, os, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)

def attempt(action):
    try:
        return f"DONE {action()!r}"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        return repr(error)

def write(path):
    with open(path, "a") as file:
        file.write("x")

def setuid():
    import shutil
    shutil.copy(sys.executable, "/outputs/python")
    os.chmod("/outputs/python", 0o6755)
    code = "import os; os.setuid(0); print(open('/proc/self/status').read())"
    status = subprocess.run(["/outputs/python", "-c", code], capture_output=True, text=True).stdout
    gained = capabilities(status) - capabilities(open("/proc/self/status").read())
    if not gained:
        raise OSError(errno.EPERM, "nothing gained")
    return gained

def capabilities(status):
    words = [line.split() for line in status.splitlines() if line.startswith("Cap")]
    return {(kind, bit) for kind, mask in words for bit in range(64) if int(mask, 16) >> bit & 1}

def connect(address, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(3)
        connection.connect(address)

def host_processes():
    others = [p for p in os.listdir("/proc") if p.isdigit() and int(p) not in (1, os.getpid(), os.getppid())]
    if not others:
        raise OSError(errno.ENOENT, "nobody")
    return others

ATTEMPTS = {ATTEMPTS}
print(json.dumps({{name: attempt(action) for name, action in ATTEMPTS.items()}}))
"""


def outcomes(lab: Project, repro: Repro, attempts: dict[str, str], *overrides: str) -> dict[str, str]:
    """What became of each attempt, an expression of Python, in one run."""
    table = "{" + ", ".join(f"{name!r}: lambda: {expression}" for name, expression in attempts.items()) + "}"
    script(lab, "hostile.py", HOSTILE.replace("{ATTEMPTS}", table).replace("{{", "{").replace("}}", "}"))
    done = repro("run", "experiment=toy", "command=[python3,hostile.py]", *OFF, *overrides)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(latest(lab)[1].output_log.read_text())
    assert set(found) == set(attempts)
    mistakes = ("AttributeError", "NameError", "TypeError", "SyntaxError")
    assert {name: outcome for name, outcome in found.items() if outcome.startswith(mistakes)} == {}
    return found


def succeeded(found: dict[str, str]) -> dict[str, str]:
    return {name: outcome for name, outcome in found.items() if outcome.startswith("DONE")}


def test_the_attempts_themselves_work_where_they_are_allowed(lab: Project, repro: Repro) -> None:
    """Else all that follows would prove nothing."""
    attempts = {"outputs": "write('/outputs/x')", "tmp": "write('/tmp/x')", "call": "call('getpid')"}
    assert set(succeeded(outcomes(lab, repro, attempts))) == set(attempts)


@pytest.mark.parametrize("user", ["caller", "root"])
def test_it_writes_nowhere_but_to_its_outputs(lab: Project, repro: Repro, user: str) -> None:
    before = {path: path.read_bytes() for path in lab.root.rglob("*") if path.is_file() and ".repro" not in path.parts}
    places = ["/x", "/etc/passwd", "/workspace/toy.sh", "/workspace/x", "/repro/x", "/repro/config.json"]
    places += ["/repro/inside/repro_run.py", "/usr/bin/python3", "/sys/x", "/proc/sys/kernel/hostname", "/data/x"]
    attempts = {place: f"write({place!r})" for place in places}
    attempts |= {
        "remount the root": "call('mount', b'none', b'/', None, 0x20, None)",
        "remount the code": "call('mount', b'none', b'/workspace', None, 0x1020, None)",
        "chmod the code": "os.chmod('/workspace/toy.sh', 0o777)",
        "link out of the outputs": "os.link('/workspace/toy.sh', '/outputs/linked')",
        "rename the configuration": "os.rename('/repro/config.json', '/outputs/c')",
    }
    assert succeeded(outcomes(lab, repro, attempts, f"user={user}")) == {}
    assert {path: path.read_bytes() for path in before if path.name != "hostile.py"} == {
        path: content for path, content in before.items() if path.name != "hostile.py"
    }


@pytest.mark.parametrize("user", ["caller", "root"])
def test_it_gains_no_privileges_and_finds_no_way_to_the_host(lab: Project, repro: Repro, user: str) -> None:
    attempts = {
        "setuid program": "setuid()",
        "mount": "call('mount', b'tmpfs', b'/tmp', b'tmpfs', 0, None)",
        "mount proc": "call('mount', b'proc', b'/outputs', b'proc', 0, None)",
        "user namespace": "call('unshare', 0x10000000)",
        "mount namespace": "call('unshare', 0x00020000)",
        "enter init's namespace": "call('setns', os.open('/proc/1/ns/mnt', os.O_RDONLY), 0)",
        "pivot_root": "call('syscall', 155, b'/tmp', b'/tmp')",
        "device": "os.mknod('/outputs/disk', 0o60666, os.makedev(254, 0))",
        "device in /dev": "os.mknod('/dev/disk', 0o60666, os.makedev(254, 0))",
        "memory of the machine": "open('/dev/mem', 'rb').read(1)",
        "kernel's memory": "open('/proc/kcore', 'rb').read(4)",
        "sysrq": "write('/proc/sysrq-trigger')",
        "core pattern": "write('/proc/sys/kernel/core_pattern')",
        "kernel module": "call('syscall', 175, b'', 0, b'')",
        "kernel log": "call('klogctl', 3, ctypes.create_string_buffer(64), 64)",
        "clock": "__import__('time').clock_settime(0, 0)",
        "host name": "socket.sethostname('x')",
        "cgroup": "write('/sys/fs/cgroup/memory/memory.limit_in_bytes')",
        "cgroup 2": "open('/sys/fs/cgroup/memory.max', 'r+').write('max')",
        "keys of others": "call('syscall', 250, 0, -3, 1)",
        "reboot": "call('reboot', 0x01234567)",
        "raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
        "packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "bpf": "call('syscall', 321, 0, None, 0)",
        "userfaultfd": "call('syscall', 323, 0)",
        "docker socket": "connect('/var/run/docker.sock', socket.AF_UNIX)",
        "docker socket below /run": "connect('/run/docker.sock', socket.AF_UNIX)",
        "containerd socket": "connect('/run/containerd/containerd.sock', socket.AF_UNIX)",
        "processes of the host": "host_processes()",
        "kill them": "os.kill(2**22 - 5, 9)",
        "open by handle": "call('open_by_handle_at', 3, b'0' * 32, 0)",
        "chroot out": "os.chroot('/outputs')",
    }
    assert succeeded(outcomes(lab, repro, attempts, f"user={user}")) == {}


def test_without_a_network_nothing_is_reached(lab: Project, repro: Repro) -> None:
    attempts = {
        "address": "connect(('1.1.1.1', 53))",
        "gateway": "connect(('172.17.0.1', 22))",
        "metadata": "connect(('169.254.169.254', 80))",
        "name": "socket.getaddrinfo('example.com', 80)",
        "new interface": "call('ioctl', socket.socket().fileno(), 0x89A0, b'br0')",
        "sockets of the host": "[line for line in open('/proc/net/unix').read().splitlines()[1:]][0]",
    }
    assert succeeded(outcomes(lab, repro, attempts)) == {}


def test_nothing_of_the_host_and_of_other_runs_is_seen(lab: Project, repro: Repro) -> None:
    (lab.root / ".gitignore").write_text("secret.txt\n")
    script(lab, "secret.txt", "the host's secret")
    commit(lab.root)
    assert repro("run", "experiment=toy", *OFF).returncode == 0
    other = latest(lab)[1].path
    attempts = {
        "another run": f"os.listdir({str(other)!r})",
        "its runs": "os.listdir('/outputs/../../')[100]",  # the root of the container, which has fewer
        "above the outputs": "[name for name in os.listdir('/outputs/..') if name in ('record.json', 'logs')][0]",
        "the project": f"os.listdir({str(lab.root)!r})",
        "what git ignores": "open('/workspace/secret.txt').read()",
        "history": "os.listdir('/workspace/.git')",
        "home": "os.listdir('/root/.docker')",
        "environment": "[name for name in os.environ if 'DOCKER' in name or 'TOKEN' in name][0]",
    }
    assert succeeded(outcomes(lab, repro, attempts)) == {}
    text = latest(lab)[1].output_log.read_text()
    assert "secret" not in json.dumps(list(json.loads(text).values()))


def test_two_runs_at_once_do_not_see_each_other(lab: Project, repro: Repro) -> None:
    look = (
        "echo begun; echo mine > /outputs/mine; echo x > /tmp/mine; echo x > /dev/shm/mine;"
        " while [ ! -e /outputs/go ]; do sleep 0.1; done;"
        " ls /outputs /tmp /dev/shm; cat /proc/[0-9]*/cmdline | tr '\\0' ' '; ipcs -m 2>/dev/null | grep -c 0x || true"
    )
    script(lab, "toy.sh", look)
    first = start(lab, "experiment=toy", *OFF)
    wait_for(lambda: begun(lab))
    one = latest(lab)[1]
    second = start(lab, "experiment=toy", *OFF, "seed=2")
    wait_for(lambda: latest(lab)[1].path != one.path and begun(lab))
    two = latest(lab)[1]
    (one.outputs / "marker-of-one").touch()
    for folder in (one, two):
        (folder.outputs / "go").touch()
    for process in (first, second):
        process.communicate(timeout=60)
        assert process.returncode == 0
    seen_by_one, seen_by_two = one.output_log.read_text(), two.output_log.read_text()
    assert "marker-of-one" in seen_by_one
    assert "marker-of-one" not in seen_by_two
    for text in (seen_by_one, seen_by_two):
        assert text.count("toy.sh") <= 3  # its shell, its init, and the pipe of this very line


# limits ---------------------------------------------------------------------------------------------------------

FORK_BOMB = """
import os, sys
made = 0
try:
    while True:
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "60"])
        made += 1
except OSError as error:
    print(made, error.strerror, flush=True)
"""


def test_a_fork_bomb_meets_its_limit(lab: Project, repro: Repro) -> None:
    script(lab, "bomb.py", FORK_BOMB)
    done = repro("run", "experiment=toy", "command=[python3,bomb.py]", *OFF, "resources.pids=64")
    made, _, error = latest(lab)[1].output_log.read_text().partition(" ")
    assert (int(made) < 64, error) == (True, "Resource temporarily unavailable\n"), done.stderr
    assert containers(lab) == []


def test_memory_meets_its_limit(lab: Project, repro: Repro) -> None:
    write_experiment(lab.root, "greedy", "[python3, -c, \"x = 'a' * (1 << 30)\"]")
    done = repro("run", "experiment=greedy", *OFF, "resources.memory=64m")
    assert (done.returncode, latest(lab)[0].state) == (1, "oom")


@pytest.mark.parametrize(
    ("place", "limit"), [("/tmp", "resources.tmp=4m"), ("$HOME", "resources.tmp=4m"), ("/dev/shm", "resources.shm=4m")]
)
def test_a_disk_in_memory_meets_its_limit(lab: Project, repro: Repro, place: str, limit: str) -> None:
    script(lab, "toy.sh", f"head -c 50000000 /dev/zero > {place}/big; stat -c %s {place}/big")
    repro("run", "experiment=toy", *OFF, limit)
    assert int(latest(lab)[1].output_log.read_text().split()[-1]) == 4 << 20


# what the experiment leaves for those who read it on the host ----------------------------------------------------

TRAPS = r"""
cd /outputs
ln -s /etc/passwd password; ln -s / root; ln -s ../record.json record; ln -s /outputs loop; mkfifo pipe
mkdir 'a b' 'evil
name'; touch -- "$(printf 'evil\nname/x')" '..x' '...' '-rf' '; rm x' "$(printf '\033]0;owned\007\033[2Jname')"
python3 - <<'END'
import os, socket
socket.socket(socket.AF_UNIX).bind("/outputs/socket")
os.chdir("/outputs")
os.mkdir("deep"); os.chdir("deep")
for _ in range(1500):
    os.mkdir("d"); os.chdir("d")
open("bottom", "w").write("x")
os.chdir("/journal")
os.symlink("/etc/passwd", "events-link.jsonl")
os.symlink("../record.json", "events-record.jsonl")
os.mkfifo("events-pipe.jsonl")
os.mkdir("events-folder.jsonl")
open(b"events-\xff.jsonl", "w").write('{"step":1,"bytes":1}\n')
open("events-0.jsonl", "w").write(
    '{"step":1,"loss":0.5}\n' + '[' * 100000 + '\n{"t":"m","k":"\\u001b[2Jkey","v":1}\n'
    '{"t":"tag","k":"run","v":"other"}\n'
    '{"t":"m","k":"../../x","v":1}\n' + '{"step":1e400,"big":1' + '0' * 5000 + '}\n' + 'x' * 3000000 + '\n{"torn":')
END
printf 'plain\033[2J\033]0;owned\007\033]52;c;cGF5bG9hZA==\033\\ text\rover\n'
exit 3
"""


def test_traps_in_its_outputs_journal_and_log_catch_nobody(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", TRAPS)
    done = repro("run", "experiment=toy", "gpus=none", "tracking.wait=60")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    record, folder = latest(lab)
    assert record.ended is not None
    listed = [file.path for file in record.ended.outputs]
    special = ["-rf", "...", "..x", "; rm x", "\x1b]0;owned\x07\x1b[2Jname", "evil\nname/x"]
    assert sorted(listed) == sorted(special)
    assert "1 of its outputs are not listed" in record.ended.reason
    secret = Path("/etc/passwd").read_text().splitlines()[0]
    shown = lab.store.parent / "mlartifacts"
    copies = [path for path in shown.rglob("*") if path.is_file() or path.is_symlink()]
    assert len([path for path in copies if "outputs" in path.parts]) == len(special)
    assert not any(path.is_symlink() for path in copies)
    assert not any(path.name in ("password", "record", "pipe", "socket") for path in copies)
    assert not any(secret in path.read_text(errors="replace") for path in copies)
    assert journal.latest(folder) == {"loss": 0.5, "\x1b[2Jkey": 1.0, "../../x": 1.0}
    for text in (done.stdout, done.stderr, repro("show").stdout, repro("runs").stdout):
        assert not any(letter in text for letter in "\x1b\x07\x9b"), text
    assert "plain text" in done.stderr
    assert repro("logs").stdout.count("\x1b") == 4  # byte for byte: this is what was asked for
    subprocess.run(["rm", "-rf", str(folder.outputs / "deep")], check=True)  # too deep for pytest


def test_escape_sequences_of_a_running_experiment_do_nothing_to_the_terminal(lab: Project) -> None:
    script(lab, "toy.sh", "printf '\\033]0;owned\\007\\033[5mblinking\\n'; sleep 1.5; printf '\\033c\\233'; exit 3")
    process, master = on_a_terminal(lab, "run", "experiment=toy", *OFF)
    seen = b"".join(read_all(master))
    assert process.wait(60) == 1
    os.close(master)
    assert b"blinking" in seen
    for sequence in (b"\x1b]0;owned", b"\x1b[5m", b"\x1bc", b"\x9b"):
        assert sequence not in seen, seen


def test_what_it_leaves_runs_with_nobody_elses_rights(lab: Project, repro: Repro) -> None:
    script(lab, "toy.sh", "cd /outputs; cp /bin/true tool; chmod 6755 tool; cp /bin/true plain; chmod 755 plain")
    assert repro("run", "experiment=toy", *OFF).returncode == 0
    outputs = latest(lab)[1].outputs
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in outputs.iterdir()} == {
        "tool": "0o755",
        "plain": "0o755",
    }


def test_files_for_a_server_elsewhere_are_the_same(lab: Project, repro: Repro) -> None:
    """What is uploaded is what `publication.artifacts` tells: no link, no pipe, nothing from outside."""
    script(lab, "toy.sh", "cd /outputs; ln -s /etc/passwd p; ln -s /etc dir; mkfifo pipe; echo 1 > good")
    assert repro("run", "experiment=toy", *OFF).returncode == 0
    begun_at = time.monotonic()
    names = [
        name for path, name in publication.artifacts(RunFolder(latest(lab)[1].path)) if path.read_bytes() is not None
    ]
    assert [name for name in names if name.startswith("outputs/")] == ["outputs/good"]
    assert time.monotonic() - begun_at < 60
