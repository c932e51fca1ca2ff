"""What `repro doctor` finds, what it concludes, and what it writes."""

from __future__ import annotations

import gc
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from repro import config
from repro.engines.answers import EngineFacts
from repro.errors import EnvironmentUnfitError, ExitCode
from repro.experiment import DatasetConfig
from repro.project import Project
from repro.verbs import doctor, enginecheck, findings
from repro.verbs.doctor import Choice, Finding, Level

NOW = datetime(2026, 11, 24, tzinfo=timezone.utc)
FACTS = EngineFacts(
    product="Docker",
    version="28.5.2",
    api="1.51",
    store="overlay2",
    platform="linux/amd64",
    cpus=2,
    memory=8 << 30,
    gpus="",
    data_root="/var/lib/docker",
    name="here",
)


def finding(what: str, level: Level, **facts: bool) -> Finding:
    return Finding(what=what, level=level, detail=f"{what} is {level.value}", facts=dict(facts))


def machine(*, registry: bool, gpus: bool, bootstrap: bool) -> list[Finding]:
    return [
        finding("registry", Level.OK if registry else Level.WARN, reachable=registry),
        finding("gpu", Level.OK, offered=gpus),
        finding("bootstrap", Level.OK if bootstrap else Level.WARN),
    ]


# choosing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registry", "gpus", "bootstrap", "variant"),
    [
        (True, True, True, "tensorflow"),
        (True, False, True, "tensorflow-cpu"),
        (True, False, False, "tensorflow-cpu"),
        (False, True, True, "debian"),
        (False, False, True, "debian"),
    ],
)
def test_the_variant_follows_from_registry_and_gpu(registry: bool, gpus: bool, bootstrap: bool, variant: str) -> None:
    assert doctor.choose(machine(registry=registry, gpus=gpus, bootstrap=bootstrap)).variant == variant


def test_a_machine_on_which_no_variant_works_is_told_why_and_what_to_do() -> None:
    with pytest.raises(EnvironmentUnfitError) as raised:
        doctor.choose(machine(registry=False, gpus=False, bootstrap=False))
    assert raised.value.exit_code == 3
    assert raised.value.evidence == ("registry: registry is warn", "bootstrap: bootstrap is warn")
    assert raised.value.hints


def test_only_what_breaks_runs_makes_the_doctor_fail() -> None:
    assert doctor.exit_code([finding("gpu", Level.WARN)]) is ExitCode.OK
    assert doctor.exit_code([finding("gpu", Level.WARN), finding("engine", Level.BAD)]) is ExitCode.ENVIRONMENT


def test_a_hint_stands_below_its_finding() -> None:
    found = Finding(what="git", level=Level.BAD, detail="no git on PATH", hint="install it")
    assert doctor.rows([found]) == [("bad", "git", "no git on PATH"), ("", "", "try: install it")]


# writing ---------------------------------------------------------------------------------------------------------


def test_the_choice_is_what_hydra_composes_afterwards(project: Project) -> None:
    path, written = doctor.write(project, Choice(variant="tensorflow", why="a test wants it"), NOW)
    assert (path, written) == (project.conf / "local" / "default.yaml", True)
    assert "a test wants it" in path.read_text()
    assert "2026-11-24" in path.read_text()
    assert config.compose_image(project, [])[0].variant == "tensorflow"


def test_the_choice_decides_among_the_projects_variants_and_the_command_line_over_it(project: Project) -> None:
    group = project.conf / "image"
    group.mkdir()
    for variant in ("mine", "other"):
        (group / f"{variant}.yaml").write_text(f"variant: {variant}\nbase: {variant}:1\n")
    doctor.write(project, Choice(variant="mine", why="a test"), NOW)
    assert config.compose_image(project, [])[0].base == "mine:1"
    assert config.compose(project, ["experiment=toy"]).image.base == "mine:1"
    assert config.compose_image(project, ["image=other"])[0].base == "other:1"


def test_our_own_note_is_replaced_and_the_users_file_is_kept(project: Project) -> None:
    doctor.write(project, Choice(variant="debian", why="first"), NOW)
    path, written = doctor.write(project, Choice(variant="tensorflow-cpu", why="second"), NOW)
    assert written
    assert "tensorflow-cpu" in path.read_text()

    path.write_text("# @package _global_\nseed: 7\n")
    assert doctor.write(project, Choice(variant="debian", why="third"), NOW) == (path, False)
    assert path.read_text() == "# @package _global_\nseed: 7\n"


# the network -----------------------------------------------------------------------------------------------------


@contextmanager
def server(answer: Callable[[str], tuple[int, dict[str, str]]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            status, headers = answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        web.server_close()


REGISTRY = {"Docker-Distribution-Api-Version": "registry/2.0"}


@pytest.mark.parametrize(
    ("status", "headers", "level"),
    [
        (401, REGISTRY, Level.OK),  # "log in first": it is there
        (200, REGISTRY, Level.OK),
        (403, {}, Level.WARN),  # a proxy that forbids it
        (200, {}, Level.WARN),  # a login page
        (302, {"Location": "/login"}, Level.WARN),
        (503, REGISTRY, Level.WARN),
    ],
)
def test_only_a_registrys_own_answer_counts(status: int, headers: dict[str, str], level: Level) -> None:
    with server(lambda _: (status, headers)) as url:
        found = doctor.registry(f"{url}/v2/")
    assert (found.level, found.facts["reachable"]) == (level, level is Level.OK)


def test_a_registry_that_nobody_answers_for_is_named_with_its_reason() -> None:
    with server(lambda _: (200, {})) as url:
        pass
    found = doctor.registry(f"{url}/v2/")
    assert found.level is Level.WARN
    assert "Connection refused" in found.detail
    assert " at 0x" not in found.detail


# data ------------------------------------------------------------------------------------------------------------


def dataset(*sources: str, files: tuple[str, ...] = ("a.gz",)) -> DatasetConfig:
    return DatasetConfig(files=dict.fromkeys(files, hashlib.sha256(b"a").hexdigest()), sources=sources)


def test_a_dataset_that_a_later_source_has_can_be_had(tmp_path: Path) -> None:
    with server(lambda path: (200 if path == "/there/a.gz" else 404, {})) as url:
        wanted = {"toy": dataset(f"{url}/gone", f"{url}/there/")}
        (found,) = doctor.datasets(wanted, cache=tmp_path / "cache", local=None)
    assert (found.what, found.level, found.facts) == ("data toy", Level.OK, {"source": f"{url}/there"})


def test_a_local_folder_is_looked_at_first(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "a.gz").write_bytes(b"a")
    (found,) = doctor.datasets({"toy": dataset()}, cache=tmp_path / "cache", local=str(tmp_path))
    assert found.facts == {"source": f"{tmp_path}/toy"}


def test_each_file_may_come_from_another_source(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "a.gz").write_bytes(b"a")
    with server(lambda path: (200 if path == "/b.gz" else 404, {})) as url:
        wanted = {"toy": dataset(url, files=("a.gz", "b.gz"))}
        (found,) = doctor.datasets(wanted, cache=tmp_path / "cache", local=str(tmp_path))
    assert found.facts == {"source": f"{tmp_path}/toy, {url}"}


def test_a_dataset_that_no_source_has_says_how_to_bring_it(tmp_path: Path) -> None:
    with server(lambda _: (404, {})) as url:
        (found,) = doctor.datasets({"toy": dataset(url)}, cache=tmp_path / "cache", local=str(tmp_path))
    assert found.level is Level.WARN
    assert found.detail == "1 of 1 files are neither in the cache nor to be had, as a.gz (3 places asked)"
    assert "REPRO_DATA_SOURCE" in found.hint


# machine ---------------------------------------------------------------------------------------------------------


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing in it; the test lays its programs there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_without_a_card_experiments_run_on_the_cpu(bare_path: Path) -> None:
    assert enginecheck.gpu(FACTS).facts == {"offered": False, "engine": "", "cards": 0}


def test_an_engine_that_announces_gpus_offers_them(bare_path: Path) -> None:
    facts = EngineFacts(**{name: getattr(FACTS, name) for name in FACTS.__struct_fields__} | {"gpus": "nvidia"})
    assert enginecheck.gpu(facts).facts["offered"] is True


def test_a_card_that_the_engine_cannot_give_is_a_warning_that_says_what_to_install(bare_path: Path) -> None:
    program(bare_path, "nvidia-smi", "echo NVIDIA H100")
    found = enginecheck.gpu(FACTS)
    assert (found.level, found.facts["offered"]) == (Level.WARN, False)
    assert "NVIDIA Container Toolkit" in found.hint


def test_a_card_and_nvidias_hook_are_enough(bare_path: Path) -> None:
    program(bare_path, "nvidia-smi", "echo NVIDIA H100; echo NVIDIA H100")
    program(bare_path, "nvidia-container-runtime-hook", "")
    found = enginecheck.gpu(FACTS)
    assert (found.level, found.facts["offered"], found.facts["cards"]) == (Level.OK, True, 2)


PODMAN = msgspec.structs.replace(FACTS, product="Podman", version="4.3.1", api="1.41", store="overlay")


def cdi(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "nvidia.yaml").write_text(text)
    monkeypatch.setattr(enginecheck, "CDI_FOLDERS", (folder / "not there", folder))


def test_a_podman_that_ignores_gpus_offers_none_whatever_lies_on_its_machine(
    bare_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cdi(tmp_path, monkeypatch, "kind: nvidia.com/gpu\n")
    program(bare_path, "nvidia-smi", "echo NVIDIA H100")
    program(bare_path, "nvidia-ctk", "")
    found = enginecheck.gpu(PODMAN)
    assert (found.level, found.facts["offered"]) == (Level.WARN, False)
    assert "Podman 4.3.1 gives none of them to containers" in found.detail
    assert "it ignores requests for GPUs in silence" in found.hint


@pytest.mark.parametrize(("text", "offered"), [("kind: nvidia.com/gpu\n", True), ("kind: other.com/nic\n", False)])
def test_podman_5_offers_what_its_cdi_names(
    bare_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, offered: bool
) -> None:
    cdi(tmp_path, monkeypatch, text)
    found = enginecheck.gpu(msgspec.structs.replace(PODMAN, version="5.4.2"))
    assert found.facts["offered"] is offered


def test_an_engine_that_is_too_old_makes_the_doctor_fail() -> None:
    old = enginecheck.identity(msgspec.structs.replace(FACTS, version="19.03.15", api="1.40"), "unix:///x")
    assert (old.level, enginecheck.identity(FACTS, "unix:///x").level) == (Level.BAD, Level.OK)
    assert "speaks API 1.40, and runs need 1.41" in old.detail
    assert "20.10" in old.hint


def test_a_rootless_engine_is_told_with_the_limits_that_it_does_not_keep() -> None:
    facts = msgspec.structs.replace(FACTS, rootless=True, unlimited=("memory", "pids"))
    assert "rootless (root in its containers is you)" in enginecheck.identity(facts, "unix:///x").detail
    (found,) = enginecheck.limits(facts)
    assert (found.level, found.facts) == (Level.WARN, {"unlimited": "memory,pids"})
    assert enginecheck.limits(FACTS) == ()


@pytest.mark.parametrize(
    ("builds", "facts", "says"),
    [
        ("podman", PODMAN, "COPY --link, here-documents"),
        ("podman", msgspec.structs.replace(PODMAN, version="5.4.2"), "build secrets, COPY --link"),
        ("classic", FACTS, "without RUN --mount"),
        ("buildx", FACTS, "BuildKit in the engine"),
        ("buildx", msgspec.structs.replace(FACTS, api="1.41"), "does not know RUN --network"),
    ],
)
def test_the_builder_is_told_with_what_it_cannot_read(builds: str, facts: EngineFacts, says: str) -> None:
    found = enginecheck.building(facts, builds)
    assert found.facts == {"builder": builds}
    assert says in found.detail


@pytest.mark.parametrize(("store", "kind"), [("overlay2", "configuration"), ("containerd", "manifest")])
def test_what_an_id_is_made_of_is_told(store: str, kind: str) -> None:
    assert enginecheck.images(msgspec.structs.replace(FACTS, store=store)).facts == {"id_of": kind}


def test_a_disk_is_measured_where_its_folder_will_be(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    folder = tmp_path / "not" / "there" / "yet"
    levels = [
        findings.disk("runs", folder, warn=warn, bad=bad, hint="").level
        for warn, bad in ((0, 0), (free * 2, 0), (free * 2, free * 2))
    ]
    assert levels == [Level.OK, Level.WARN, Level.BAD]


@pytest.mark.engine
@pytest.mark.usefixtures("_own_cache")
def test_everything_is_looked_at_in_a_few_seconds(project: Project) -> None:
    found = {each.what: each for each in doctor.examine(project)}
    wanted = {"engine", "builder", "image ids", "gpu", "registry", "git", "bootstrap", "mlflow", "experiments"}
    assert wanted | {"disk engine", "disk runs", "disk cache"} == set(found)
    assert found["engine"].level is Level.OK
    assert found["git"].level is Level.OK
    assert found["experiments"].detail == "toy"
    assert found["mlflow"].facts["uri"] == f"sqlite:///{project.store}"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the SDK leaves a failed socket open
def test_a_silent_engine_is_a_finding_and_not_a_failure(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{project.root}/none.sock")
    found = {each.what: each for each in doctor.examine(project)}
    assert found["engine"].level is Level.BAD
    assert found["gpu"].facts["offered"] is False
    assert doctor.exit_code(list(found.values())) is ExitCode.ENVIRONMENT
    gc.collect()  # now, and not in another test


def test_an_experiment_that_cannot_be_composed_is_named(project: Project) -> None:
    (project.conf / "experiment" / "broken.yaml").write_text("# @package _global_\nname: broken\nsede: 1\n")
    found = {each.what: each for each in doctor.examine(project)}
    assert found["experiment broken"].level is Level.WARN
    assert found["experiments"].facts == {"count": 2, "broken": 1}


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
