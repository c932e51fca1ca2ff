"""The whole path on Podman's Docker API: Debian 12's as root, which ignores GPUs, and Debian 13's of a plain user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from repro.build import builder
from repro.engines.engine import connect
from repro.project import Project
from repro.record import folders
from tests import debian_engine
from tests.conftest import script
from tests.debian_engine import USER, DebianEngine, Run, podman_engine
from tests.test_run_engine import begun, latest, on_a_terminal, read_all, start, wait_for
from tests.test_time_limit_engine import CLEAN

pytestmark = [pytest.mark.engine, pytest.mark.podman]

Repro = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def podman(debian_base: str) -> Iterator[DebianEngine]:
    """Podman 4.3 as root, on a machine whose GPUs it could give, with the base image on it."""
    with podman_engine("bookworm", gpus=True) as engine:
        engine.copy_image(debian_base)
        yield engine


@pytest.fixture(autouse=True)
def _here(podman: DebianEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", podman.url)


def run(repro: Repro, *arguments: str) -> subprocess.CompletedProcess[str]:
    return repro("run", "experiment=toy", "tracking.enabled=false", *arguments)


def left(podman: DebianEngine) -> list[str]:
    return [each["Names"][0] for each in podman.client().api.containers(all=True)]


def test_an_image_is_built_once_and_runs_leave_their_outputs_to_the_caller(
    lab: Project, repro: Repro, podman: DebianEngine
) -> None:
    (lab.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN echo built > /built\n")
    built = repro("rebuild", "--json")
    assert built.returncode == 0, built.stderr
    image = json.loads(built.stdout)
    assert image["id"].startswith("sha256:")
    assert image["digest"] is None  # Podman has one for every image; no registry has seen this one
    assert image["base_resolved"].startswith("sha256:")
    assert repro("rebuild", "--check").returncode == 0
    done = run(repro, "gpus=none")
    assert done.returncode == 0, done.stderr
    assert "present" in done.stderr
    record, folder = latest(lab)
    assert record.planned.image.id == image["id"]
    assert record.planned.host.engine.startswith("Podman 4.3.1")
    owner = (folder.outputs / "x").stat()
    assert (owner.st_uid, owner.st_gid) == (os.getuid(), os.getgid())
    assert left(podman) == []


def test_its_images_have_the_names_that_were_given_to_them(lab: Project, repro: Repro, debian_base: str) -> None:
    assert repro("rebuild").returncode == 0
    tag = json.loads(repro("rebuild", "--json").stdout)["tag"]
    (row,) = [row for row in json.loads(repro("images", "--json").stdout) if row["tag"] == tag]
    assert row["id"].startswith("sha256:")
    engine = connect()
    base, image = engine.image(debian_base), engine.image(tag)
    assert base is not None
    assert image is not None
    assert (base.tags, base.digests) == ((debian_base,), ())
    assert tag in image.tags
    assert image.digests == ()


def test_locked_accepts_what_rebuild_wrote_and_nothing_else(lab: Project, repro: Repro) -> None:
    assert repro("rebuild").returncode == 0
    assert run(repro, "--locked", "gpus=none").returncode == 0
    (lab.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nENV CHANGED=1\n")
    assert run(repro, "--locked", "gpus=none").returncode == 4


@pytest.mark.parametrize("asked", ["all", "1", "[0]", "[GPU-1234]"])
def test_gpus_that_it_would_ignore_in_silence_are_refused(
    lab: Project, repro: Repro, podman: DebianEngine, asked: str
) -> None:
    done = run(repro, f"gpus={asked}")
    assert done.returncode == 3
    assert "Podman 4.3.1 ignores requests for GPUs" in done.stderr
    assert "nvidia-ctk cdi generate" in done.stderr
    assert list(folders(lab.runs)) == []
    assert left(podman) == []


def test_auto_runs_on_the_cpu_and_says_why(lab: Project, repro: Repro) -> None:
    done = run(repro, "gpus=auto")
    assert done.returncode == 0, done.stderr
    assert "note: NO GPU" in done.stderr
    assert "Podman 4.3.1 ignores requests for GPUs" in done.stderr
    record, _folder = latest(lab)
    assert record.started is not None
    assert record.started.gpus == "none"


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["command=[sh,-c,'echo last words; exit 3']"], 1, "last words"),
        (["command=[no-such-program]"], 2, "the image does not hold that program"),
        (
            ["command=[python3,-c,'bytes(range(256))*2000000']", "resources.memory=100MB"],
            1,
            "the engine does not tell which",
        ),
        (["command=[sleep,100]", "resources.time_limit=1"], 1, "stopped at its time limit"),
    ],
    ids=["exit code", "no command", "memory", "time"],
)
def test_runs_that_fail_say_why(
    lab: Project, repro: Repro, podman: DebianEngine, options: list[str], code: int, says: str
) -> None:
    done = run(repro, "gpus=none", *options)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert left(podman) == []


SECRET = "{T: {command: echo podmans-secret, to: env}}"


@pytest.mark.parametrize("ending", ["Ctrl-C", "time limit"])
def test_a_program_with_a_secret_finishes_in_order(lab: Project, podman: DebianEngine, ending: str) -> None:
    script(lab, "clean.py", CLEAN + "    print(__import__('os').environ['T'], open('/run/secrets/T').read())\n")
    limit = "2.5" if ending == "time limit" else "60"
    options = ("gpus=none", "tracking.enabled=false", f"+secrets={SECRET}", f"resources.time_limit={limit}")
    process = start(lab, "experiment=toy", "command=[python3,clean.py]", *options)
    if ending == "Ctrl-C":
        wait_for(lambda: begun(lab))
        process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    record, folder = latest(lab)
    assert record.state == {"Ctrl-C": "killed", "time limit": "timeout"}[ending], err
    assert (folder.outputs / "checkpoint").read_text() == "saved"
    stars = "*" * len("podmans-secret")
    assert f"{stars} {stars}\n" in folder.output_log.read_text()
    assert left(podman) == []


def test_the_shell_works_in_its_containers_too(lab: Project, podman: DebianEngine) -> None:
    process, master = on_a_terminal(lab, "shell", "experiment=toy", "gpus=none")
    os.write(master, b"pwd; echo made > /outputs/by-hand; exit 5\n")
    seen = b"".join(read_all(master))
    assert process.wait(60) == 5, seen
    assert b"/workspace" in seen
    (made,) = lab.runs.glob("*/outputs/by-hand")
    assert made.read_text() == "made\n"
    assert left(podman) == []


def test_it_builds_by_itself_also_where_buildx_is_installed(lab: Project, repro: Repro, buildx: str) -> None:
    mounted = "RUN --mount=type=cache,target=/cache echo through a mount > /built"
    (lab.docker / "Dockerfile").write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\n{mounted}\n")
    assert builder.name_for(connect()) == "podman"
    done = repro("rebuild", "-v")
    assert done.returncode == 0, done.stderr
    assert f"STEP 2/6: {mounted}" in done.stderr


def test_a_step_that_fails_is_named_with_its_line_and_output(lab: Project, repro: Repro) -> None:
    (lab.docker / "Dockerfile").write_text(
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE} AS first\nRUN true\nFROM first\nRUN echo its last words >&2; exit 9\n"
    )
    done = repro("rebuild")
    assert done.returncode == 2
    assert "docker/Dockerfile:5 failed" in done.stderr
    assert "its last words" in done.stderr
    assert "exit status 9" in done.stderr


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("RUN <<EOF\necho hello\nEOF", "a here-document in RUN"),
        ("COPY --link docker/Dockerfile /", "COPY --link"),
        ("RUN --mount=type=secret,id=token cat /run/secrets/token", "RUN --mount=type=secret,id=token"),
    ],
)
def test_what_it_would_misread_is_refused_before_the_build(lab: Project, repro: Repro, line: str, what: str) -> None:
    (lab.docker / "Dockerfile").write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\n{line}\n")
    done = repro("rebuild")
    assert done.returncode == 2
    assert f"Dockerfile:3 holds what Podman 4.3.1 does not do through Docker's API: {what}" in done.stderr


def test_a_base_that_no_registry_gives_is_told_as_that(lab: Project, repro: Repro) -> None:
    (lab.docker / "Dockerfile").write_text(
        "ARG BASE_IMAGE\nFROM nosuch.example/base:1 AS other\nFROM ${BASE_IMAGE}\nCOPY --from=other /x /x\n"
    )
    done = repro("rebuild")
    assert done.returncode == 3
    assert "docker/Dockerfile:2: a base image cannot be had" in done.stderr


def test_prune_removes_what_nothing_needs(lab: Project, repro: Repro, podman: DebianEngine) -> None:
    (lab.docker / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN echo for prune > /built\n")
    tag = json.loads(repro("rebuild", "--json").stdout)["tag"]
    lab.lock.unlink()
    done = repro("prune", "--yes")  # this engine is the test's own
    assert done.returncode == 0, done.stderr
    assert connect().image(tag) is None


def test_the_doctor_tells_what_it_can_and_cannot_do(lab: Project, repro: Repro, buildx: str) -> None:
    found = {each["what"]: each for each in json.loads(repro("doctor", "--json").stdout)}
    assert found["engine"]["facts"]["product"] == "Podman"
    assert found["engine"]["facts"]["rootless"] is False
    assert found["builder"]["facts"] == {"builder": "podman"}
    assert "here-documents" in found["builder"]["detail"]
    assert found["gpu"]["facts"]["offered"] is False


def test_without_an_init_process_it_says_what_to_install(lab: Project, repro: Repro, debian_base: str) -> None:
    with podman_engine("bookworm", init=False) as engine:
        engine.copy_image(debian_base)
        done = repro("run", "experiment=toy", "tracking.enabled=false", "gpus=none", DOCKER_HOST=engine.url)
        assert done.returncode == 3
        assert "apt-get install catatonit" in done.stderr
        assert list(folders(lab.runs)) == []
        assert left(engine) == []


# rootless ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rootless(debian_base: str) -> Iterator[DebianEngine]:
    """Podman 5.4 of a plain user, with two GPUs through CDI, and the base image on it."""
    with podman_engine("trixie", rootless=True, gpus=True) as engine:
        engine.copy_image(debian_base)
        yield engine


@pytest.fixture
def as_user(lab: Project, rootless: DebianEngine) -> Iterator[Run]:
    """`repro run experiment=toy` by the engine's user."""
    with debian_engine.as_user(rootless, lab) as call:
        yield call


def test_a_rootless_engine_gives_all_files_to_the_caller(as_user: Run, rootless: DebianEngine) -> None:
    done, theirs = as_user("gpus=none", "tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    assert "built" in done.stderr
    record, folder = latest(theirs)
    assert record.planned.user == "0:0"  # root in there is the caller out here
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in folder.path.rglob("*")}
    assert owners == {(USER, USER)}
    assert (folder.outputs / "x").read_text() == "42\n"


def test_a_rootless_container_has_its_secrets_and_keeps_its_time_limit(lab: Project, rootless: DebianEngine) -> None:
    script(lab, "clean.py", CLEAN + "    print(__import__('os').environ['T'], open('/run/secrets/T').read())\n")
    with debian_engine.as_user(rootless, lab) as call:
        options = ("gpus=none", "tracking.enabled=false", f"+secrets={SECRET}", "resources.time_limit=2.5")
        done, theirs = call(*options, "command=[python3,clean.py]")
        record, folder = latest(theirs)
        assert record.state == "timeout", done.stderr
        assert (folder.outputs / "checkpoint").read_text() == "saved"
        stars = "*" * len("podmans-secret")
        assert f"{stars} {stars}\n" in folder.output_log.read_text()


def test_podman_5_builds_with_here_documents_and_mounts(lab: Project, rootless: DebianEngine) -> None:
    step = "RUN --mount=type=cache,target=/cache <<EOF\necho from a here-document > /built\nEOF"
    (lab.docker / "Dockerfile").write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\n{step}\n")
    with debian_engine.as_user(rootless, lab) as call:
        done, theirs = call("gpus=none", "tracking.enabled=false", "command=[cat,/built]")
        assert done.returncode == 0, done.stderr
        assert latest(theirs)[1].output_log.read_text() == "from a here-document\n"


@pytest.mark.parametrize(
    ("asked", "given"), [("all", "all"), ("auto", "all"), ("1", "0"), ("[1]", "1"), ("['nvidia.com/gpu=1']", "1")]
)
def test_podman_5_gives_gpus_through_cdi(as_user: Run, lab: Project, asked: str, given: str) -> None:
    command = "command=[sh,-c,'test -d /fake-gpu && echo gpus=$NVIDIA_VISIBLE_DEVICES']"
    done, theirs = as_user(f"gpus={asked}", "tracking.enabled=false", command)
    assert done.returncode == 0, done.stderr
    record, folder = latest(theirs)
    assert folder.output_log.read_text() == f"gpus={given}\n"
    assert "NO GPU" not in done.stderr
    assert record.started is not None
    assert record.started.gpus != "none"


def test_a_gpu_that_its_cdi_does_not_name_is_refused(as_user: Run, rootless: DebianEngine) -> None:
    done, theirs = as_user("gpus=[7]", "tracking.enabled=false")
    assert done.returncode == 3
    assert "unresolvable CDI devices nvidia.com/gpu=7" in done.stderr
    assert list(folders(theirs.runs)) == []
    assert left(rootless) == []


def test_a_limit_that_it_cannot_keep_is_said(as_user: Run, rootless: DebianEngine) -> None:
    done, theirs = as_user("gpus=none", "tracking.enabled=false", "resources.memory=1GB")
    assert done.returncode == 0, done.stderr
    unkept = rootless.client().info()["MemoryLimit"] is False
    assert any("resources.memory" in notice for notice in latest(theirs)[0].planned.notices) is unkept


def test_the_doctor_knows_a_rootless_engine(repro: Repro, rootless: DebianEngine) -> None:
    found = {each["what"]: each for each in json.loads(repro("doctor", "--json", DOCKER_HOST=rootless.url).stdout)}
    assert found["engine"]["facts"]["rootless"] is True
    assert "root in its containers is you" in found["engine"]["detail"]
