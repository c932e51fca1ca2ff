"""The end of a container's time, and a clean stop: kept by the container itself, seen by a program as a Ctrl-C is."""

from __future__ import annotations

import io
import os
import re
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repro import runner
from repro.engines.engine import ContainerSpec, Engine, Mount
from repro.engines.refusal import STARTER, CommandNotFoundError
from repro.experiment import Resources, RunSecret
from repro.project import Project
from repro.record import RunFolder
from repro.running import plan as planning
from repro.running.keeping import INIT_REFUSAL
from repro.running.plan import INSIDE, SECRETS, start_command
from tests.conftest import script
from tests.debian import fetched
from tests.test_ends_engine import Repro, planned
from tests.test_run_engine import begun, containers, latest, left, start, wait_for

pytestmark = pytest.mark.engine

CLEAN = """\
import os, time
try:
    print("begun", flush=True)
    time.sleep(100)
finally:
    time.sleep(0.3)  # a checkpoint takes a moment
    open("/outputs/checkpoint", "w").write("saved")
"""
STUBBORN = """\
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("begun", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    time.sleep(0.1)
"""
HANDLER = """\
import signal, sys, time
def stop(number, frame):
    open("/outputs/checkpoint", "w").write(signal.Signals(number).name)
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
time.sleep(100)
"""


# nobody watches ------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(engine: Engine, debian_base: str, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts a container as `plan` describes it, and leaves it to itself: `alone(["sleep", "9"], time_limit=1.0)`."""
    image = engine.image(debian_base)
    assert image
    made = []

    def run(command: list[str], *, image: str = image.id, shell: str = "", **limits: Any) -> str:
        resources = Resources(**limits)
        starting = start_command(tuple(command), {"TOKEN": RunSecret(to="env")} if shell else {}, resources)
        spec = ContainerSpec(
            image=image,
            name=f"repro-test-limit-{os.getpid()}-{len(made)}",
            command=(shell, *starting) if shell else starting,
            env={"TINI_KILL_PROCESS_GROUP": "1"},
            labels={},
            user=f"{os.getuid()}:{os.getgid()}",
            workdir="/",
            mounts=(
                Mount(source=str(INSIDE), target="/repro/inside"),
                Mount(source=str(tmp_path), target="/outputs", read_only=False),
                *([Mount(source=str(tmp_path), target=SECRETS)] if shell else []),
            ),
            tmpfs={},
            network="none",
            gpus=(),
            cpus=None,
            memory=None,
            shm=1 << 26,
            pids=resources.pids,
            stop_signal=resources.stop_signal,
        )
        container = engine.create(spec)
        made.append(container)
        engine.start(container)
        return container

    yield run
    for container in made:
        engine.remove(container)


def end_of(engine: Engine, container: str, within: float = 60) -> tuple[int, float]:
    """Its exit code, and the seconds that it lived by its engine's clock. It is only looked at, not waited for."""
    wait_for(lambda: engine.exit(container) is not None, within)
    exited = engine.exit(container)
    assert exited
    state = engine.client.api.inspect_container(container)["State"]
    return exited.code, moment(state["FinishedAt"]) - moment(state["StartedAt"])


def moment(text: str) -> float:
    whole, _, fraction = text.rstrip("Z").partition(".")
    return time.mktime(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction or 0}")


def log(engine: Engine, container: str) -> str:
    return b"".join(engine.output(container, follow=False)).decode()


@pytest.mark.parametrize("limit", [1.0, 0.7])
def test_a_container_ends_at_its_limit_though_nobody_watches(
    alone: Callable[..., str], engine: Engine, tmp_path: Path, limit: float
) -> None:
    code, lived = end_of(engine, alone(["python3", "-c", CLEAN], time_limit=limit))
    assert (tmp_path / "checkpoint").read_text() == "saved"
    assert code == 130
    assert lived >= limit


def test_what_ignores_the_stop_is_killed_after_the_grace_time(alone: Callable[..., str], engine: Engine) -> None:
    code, lived = end_of(engine, alone(["python3", "-c", STUBBORN], time_limit=0.5, stop_grace=1.0))
    assert code == 137
    assert lived >= 1.5


def test_what_takes_every_process_it_may_have_is_stopped_all_the_same(
    alone: Callable[..., str], engine: Engine
) -> None:
    greedy = "trap '' INT; while :; do sleep 60 & done"
    code, lived = end_of(engine, alone(["sh", "-c", greedy], time_limit=1.0, stop_grace=0.5, pids=16))
    assert code != 0  # a shell that cannot fork may give up by itself
    stubborn = f"import os, threading\n{STUBBORN.replace('end =', FILL + 'end =')}"
    code, lived = end_of(engine, alone(["python3", "-c", stubborn], time_limit=1.0, stop_grace=0.5, pids=16))
    assert (code, lived >= 1.5) == (137, True)


FILL = """\
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
except RuntimeError:
    pass
"""


def test_a_suspended_container_is_stopped_in_order_when_it_goes_on(
    alone: Callable[..., str], engine: Engine, tmp_path: Path
) -> None:
    container = alone(["python3", "-c", CLEAN], time_limit=1.0, stop_grace=5.0)
    wait_for(lambda: "begun" in log(engine, container))
    engine.client.api.pause(container)
    time.sleep(2)  # past its limit
    engine.client.api.unpause(container)
    code, _lived = end_of(engine, container)
    assert (code, (tmp_path / "checkpoint").read_text()) == (130, "saved")


def test_a_command_with_a_limit_is_as_it_would_be_without(alone: Callable[..., str], engine: Engine) -> None:
    ended = {}
    look = "import os; print(os.getppid(), sorted(os.environ), flush=True); os.wait()"
    for limit in (None, 60.0):
        container = alone(["python3", "-c", look], time_limit=limit)
        ended[limit] = end_of(engine, container)[0], sorted(log(engine, container).splitlines())
        assert "ChildProcessError: [Errno 10] No child processes" in ended[limit][1]  # the watch is none of them
    assert ended[None] == ended[60.0]


@pytest.fixture(scope="module")
def busybox(engine: Engine) -> Iterator[str]:
    """The id of an image with busybox alone, as Alpine's are."""
    program = fetched("busybox", "busybox-static") / "usr" / "bin" / "busybox"
    with io.BytesIO() as content:
        with tarfile.open(fileobj=content, mode="w") as tar:
            tar.add(program, "bin/busybox")
            for name in ("sh", "sleep", "cat", "echo"):
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        engine.client.api.import_image_from_data(content.getvalue(), repository="repro-test-busybox")
    image = engine.image("repro-test-busybox")
    assert image
    yield image.id
    engine.remove_image("repro-test-busybox")


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_any_shell_will_do(
    alone: Callable[..., str], engine: Engine, tmp_path: Path, shell: str, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "TOKEN").write_text("two words\n*\n")
    image = (
        {"image": request.getfixturevalue("busybox"), "shell": "/bin/sh"} if shell == "busybox" else {"shell": shell}
    )
    catching = "trap 'echo \"$TOKEN\"; exit 9' INT; while :; do sleep 0.1; done"
    container = alone(["sh", "-c", catching], time_limit=0.5, **image)
    assert end_of(engine, container)[0] == 9
    assert log(engine, container) == "two words\n*\n"
    ignoring = "trap '' INT; while :; do sleep 0.1; done"
    code, lived = end_of(engine, alone(["sh", "-c", ignoring], time_limit=0.5, stop_grace=0.5, **image))
    assert (code, lived >= 1.0) == (137, True)
    container = alone(["nosuch"], time_limit=0.5, **image)
    assert end_of(engine, container)[0] == 127
    assert re.match(INIT_REFUSAL, log(engine, container))
    (tmp_path / "TOKEN").unlink()
    container = alone(["true"], time_limit=0.5, **image)
    assert end_of(engine, container)[0] == 127
    assert f"{STARTER}: the secret TOKEN cannot be read: " in log(engine, container)


@pytest.mark.parametrize("code", [0, 7, 255])
def test_exit_codes_pass_and_the_output_ends_with_the_command(
    alone: Callable[..., str], engine: Engine, code: int
) -> None:
    container = alone(["sh", "-c", f"echo out; echo err >&2; exit {code}"], time_limit=600.0)
    assert sorted(b"".join(engine.output(container, follow=True)).split()) == [b"err", b"out"]
    ended, lived = end_of(engine, container)
    assert ended == code
    assert lived < 60


def test_a_signal_does_not_end_the_watch(alone: Callable[..., str], engine: Engine, tmp_path: Path) -> None:
    """Docker's init sends what `docker kill` is asked for to the whole group; the limit counts on."""
    catching = "import signal, time\nsignal.signal(signal.SIGUSR1, lambda *_: print('caught', flush=True))\n" + CLEAN
    container = alone(["python3", "-c", catching], time_limit=3.0)
    wait_for(lambda: "begun" in log(engine, container))
    engine.client.api.kill(container, signal="SIGUSR1")
    wait_for(lambda: "caught" in log(engine, container))
    code, lived = end_of(engine, container)
    assert (code, lived >= 3.0) == (130, True)
    assert (tmp_path / "checkpoint").exists()


def test_docker_stop_is_a_clean_stop_too(alone: Callable[..., str], engine: Engine, tmp_path: Path) -> None:
    container = alone(["python3", "-c", CLEAN])
    wait_for(lambda: "begun" in log(engine, container))
    engine.client.api.stop(container, timeout=10)
    assert end_of(engine, container)[0] == 130
    assert (tmp_path / "checkpoint").read_text() == "saved"


# through `repro run` -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["[python3, clean.py]", "[sh, toy.sh]"])
def test_ctrl_c_lets_a_python_program_finish_also_below_a_shell_script(lab: Project, command: str) -> None:
    script(lab, "clean.py", CLEAN)
    script(lab, "toy.sh", "python3 clean.py; echo after")
    process = start(lab, "experiment=toy", f"command={command}", "gpus=none", "tracking.enabled=false")
    wait_for(lambda: begun(lab))
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    record, folder = latest(lab)
    assert (process.returncode, record.state) == (130, "killed"), err
    assert (folder.outputs / "checkpoint").read_text() == "saved"
    assert containers(lab) == []


def test_the_time_limit_lets_a_python_program_finish(lab: Project, repro: Repro) -> None:
    script(lab, "clean.py", CLEAN)
    options = ("gpus=none", "tracking.enabled=false", "resources.time_limit=1.5")
    done = repro("run", "experiment=toy", "command=[python3,clean.py]", *options)
    record, folder = latest(lab)
    assert (done.returncode, record.state) == (1, "timeout"), done.stderr
    assert record.planned.command == ("python3", "clean.py")
    assert (folder.outputs / "checkpoint").read_text() == "saved"
    assert containers(lab) == []


def test_sigterm_is_sent_to_who_wants_it(lab: Project) -> None:
    script(lab, "handler.py", HANDLER)
    options = ("gpus=none", "tracking.enabled=false", "resources.stop_signal=SIGTERM")
    process = start(lab, "experiment=toy", "command=[python3,handler.py]", *options)
    wait_for(lambda: begun(lab))
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    record, folder = latest(lab)
    assert (folder.outputs / "checkpoint").read_text() == "SIGTERM", err
    assert record.ended is not None
    assert record.ended.exit_code == 7


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("[nosuchprogram]", "the image does not hold that program"),
        ("[/nosuch/program]", "the image does not hold that program"),
        ("[/workspace/toy.sh]", "cannot be started"),
    ],
)
def test_a_command_that_cannot_be_started_is_the_same_error_with_a_limit(
    lab: Project, repro: Repro, command: str, says: str
) -> None:
    done = repro("run", "experiment=toy", f"command={command}", "tracking.enabled=false", "resources.time_limit=60")
    assert (done.returncode, left(lab)) == (2, ([], [])), done.stderr
    assert says in done.stderr


def test_an_image_without_a_shell_is_told_what_a_limit_needs(lab: Project, engine: Engine) -> None:
    plan, _engine = planned(lab, "resources.time_limit=60.0", "command=[/nosuch]")
    empty = engine.client.api.import_image_from_data(b"\0" * 1024, repository="repro-test-no-shell")
    image = engine.image("repro-test-no-shell")
    assert image, empty
    try:
        container = planning.msgspec.structs.replace(plan.container, image=image.id)
        with pytest.raises(CommandNotFoundError, match="holds no /bin/sh") as refused:
            runner.execute(planning.msgspec.structs.replace(plan, container=container), engine)
        assert "resources.time_limit=null" in str(refused.value)
        assert left(lab) == ([], [])
        assert not RunFolder(Path(plan.folder)).path.exists()
    finally:
        engine.remove_image("repro-test-no-shell")


def test_who_only_plans_sees_the_users_command_and_the_containers(lab: Project, repro: Repro) -> None:
    done = repro("run", "--plan", "experiment=toy", "resources.time_limit=1000000", "tracking.enabled=false")
    assert '"--limit",\n      "1000000"' in done.stdout
    assert '"stop_signal": "SIGINT"' in done.stdout
