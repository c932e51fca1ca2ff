"""Where the ingredients of a run are and what may be expected of it: values, real git, real files; no engine."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from repro import tolerant
from repro.code import prefixes, source
from repro.errors import BadInputError
from repro.experiment import Experiment, Resources
from repro.inside import repro_keras
from repro.project import Project
from repro.record import Code, DatasetUsed, FileUsed, Gpu, Host, Record, RunFolder, Started
from repro.restoring import again, auditing, ceiling, codes, datasets, frozen, ingredients, materials, replan
from repro.running import determinism
from repro.verdict import Ingredient, Level
from tests.conftest import commit, script
from tests.runs_to_compare import NOW, PLANNED, made, output
from tests.test_plan import decided

FLAGS = ("avx2", "fma", "hypervisor", "sse4_2")
GPU = Gpu(name="H100", uuid="GPU-1", architecture="9.0", memory=1, driver="550.1")
HOST = msgspec.structs.replace(PLANNED.host, architecture="x86_64", cpu="A", cpu_flags=FLAGS, gpus=(GPU,))


def recorded(*, gpus: str = "none", **planned: Any) -> Record:
    return Record(
        planned=msgspec.structs.replace(PLANNED, **{"host": HOST, "network": "none", **planned}),
        started=Started(at=NOW, container="c", gpus=gpus),
    )


def host(**changes: Any) -> Host:
    return msgspec.structs.replace(HOST, **changes)


def gpu(**changes: Any) -> Gpu:
    return msgspec.structs.replace(GPU, **changes)


# the ceiling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "here", "level", "reason"),
    [
        (recorded(), HOST, Level.BYTES, ""),
        (recorded(), host(cpu="B", cpu_flags=(*FLAGS, "md_clear")), Level.BYTES, ""),
        (recorded(), host(cpu_flags=("avx2", "sse4_2")), Level.TOLERANCE, "it has no fma"),
        (recorded(), host(cpu_flags=(*FLAGS, "avx512f")), Level.TOLERANCE, "it has avx512f more"),
        (
            recorded(config={"deterministic": "portable"}),
            host(cpu_flags=("sse4_2",)),
            Level.BYTES,
            "the run was `deterministic: portable`",
        ),
        (recorded(), host(architecture="aarch64"), Level.STATISTICAL, "aarch64 here and was x86_64"),
        (recorded(host=host(cpu_flags=())), HOST, Level.BYTES, "unknown: the record does not say"),
        (recorded(), host(cpu_flags=()), Level.BYTES, "unknown: this processor is unknown"),
        (recorded(network="bridge"), HOST, Level.BYTES, "unknown: it had a network (bridge)"),
        (recorded(gpus="all"), HOST, Level.BYTES, ""),
        (recorded(gpus="all"), host(gpus=(gpu(architecture="8.0"),)), Level.STATISTICAL, "8.0 here, 9.0 there"),
        (recorded(gpus="all"), host(gpus=(gpu(driver="560"),)), Level.TOLERANCE, "GPU driver 560 here, 550.1 there"),
        (recorded(gpus="all"), host(gpus=(gpu(name="H200"),)), Level.TOLERANCE, "GPU H200 here, H100 there"),
        (recorded(gpus="all"), host(gpus=()), Level.BYTES, "unknown: the GPUs"),
        (
            recorded(gpus="all", host=host(gpus=(GPU, gpu(uuid="GPU-2")))),
            HOST,
            Level.TOLERANCE,
            "1 GPUs here, 2 there",
        ),
    ],
)
def test_what_may_be_expected_follows_from_the_hardware(record: Record, here: Host, level: Level, reason: str) -> None:
    found = ceiling.of(record, here)
    assert found.level == level
    assert reason in found.reason
    assert bool(found.reason) == bool(reason)


def test_what_is_lost_and_what_chance_decided_bound_it_too() -> None:
    gone = Ingredient(kind="data", name="mnist", recorded="sha256 0", found=(), use="", remark="x.gz is not there")
    assert ceiling.of(recorded(), HOST, [gone]).level == Level.MISSING
    assert "data mnist is lost: x.gz is not there" in ceiling.of(recorded(), HOST, [gone]).reason
    for born, most in ((Level.STABILIZED, Level.STABILIZED), (Level.DIFFERENT, Level.STATISTICAL)):
        assert ceiling.of(recorded(), HOST, born=(born, "in 3 runs")).level == most


@pytest.mark.parametrize(("role", "most"), [("result", Level.STABILIZED), ("by-product", Level.BYTES)])
def test_event_files_are_never_the_same_bytes(tmp_path: Path, role: str, most: Level) -> None:
    events = output("logs/events.out.tfevents.1700000000.host.7.0", b"x", role=role)
    ended = made(tmp_path / "a", outputs=[events]).record.ended
    assert ceiling.of(msgspec.structs.replace(recorded(), ended=ended), HOST).level == most


# another version's record ----------------------------------------------------------------------------------------


def test_a_configuration_of_another_version_is_read_as_far_as_it_is_known() -> None:
    config = decided().planned.config
    config = config | {"newer": 1, "resources": {"shm": 5, "newer": {}}, "secrets": {"A": {"env": "B", "newer": 1}}}
    del config["outputs"]
    thawed = frozen.thaw(Record(planned=msgspec.structs.replace(decided().planned, config=config)))
    assert set(thawed.unknown) == {"newer", "resources.newer", "secrets.A.newer"}
    assert thawed.experiment.resources == Resources(shm=5)
    assert thawed.experiment.secrets["A"].env == "B"


def test_a_value_that_cannot_be_is_still_refused() -> None:
    config = decided().planned.config | {"seed": "none"}
    with pytest.raises(BadInputError, match="cannot be read by this version"):
        frozen.thaw(Record(planned=msgspec.structs.replace(decided().planned, config=config)))


def test_a_record_with_members_of_another_version_is_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write(recorded())
    content = json.loads(folder.record.read_text())
    content["planned"]["newer"] = content["planned"]["host"]["newer"] = {"a": 1}
    folder.record.write_text(json.dumps(content))
    assert folder.read() == recorded()


def test_members_are_left_out_at_every_depth() -> None:
    value = {"name": "a", "command": ["x"], "image": {"variant": "v", "base": "b", "x": 1}, "data": {"d": {"y": 1}}}
    with pytest.raises(msgspec.ValidationError, match="files"):
        tolerant.read(value, Experiment)
    value["data"] = {"d": {"files": {}, "y": 1}}
    assert tolerant.read(value, Experiment)[1] == ("image.x", "data.d.y")


# the plan of a rerun ---------------------------------------------------------------------------------------------


def test_the_recorded_environment_goes_before_todays() -> None:
    recorded_env = {"OMP_NUM_THREADS": "3", "REPRO_RUN": "old", "REPRO_GONE": "x", "MINE": "1"}
    ours = {"OMP_NUM_THREADS": "64", "REPRO_RUN": "new", "REPRO_NEW": "y", "NEW_DEFAULT": "1"}
    expected = {"OMP_NUM_THREADS": "3", "MINE": "1", "REPRO_RUN": "new", "REPRO_NEW": "y"}
    assert replan.environment(recorded_env, ours) == expected


@pytest.mark.parametrize(
    ("had", "asked", "known", "here", "wanted"),
    [
        ("none", "all or none", 0, 4, ()),
        ("all", "all", 2, 2, -1),
        ("all", "all", 2, 8, 2),
        ("all", "all", 0, 8, -1),
        ("2", "2", 4, 8, 2),
        ("0", "id 0", 1, 1, ("0",)),
        ("GPU-1", "id GPU-1", 1, 8, ("GPU-1",)),
        ("4,5", "id 4,id 5", 8, 2, 2),
    ],
)
def test_as_many_gpus_are_asked_for_as_it_had(had: str, asked: str, known: int, here: int, wanted: object) -> None:
    record = recorded(gpus=had, gpus_asked=asked, host=host(gpus=(GPU,) * known))
    assert replan.gpu_request(record, here) == wanted


# determinism -----------------------------------------------------------------------------------------------------


def experiment(**changes: Any) -> Experiment:
    config = decided().planned.config | changes
    return msgspec.convert(config, Experiment)


def test_portable_is_one_thread_and_the_same_code_everywhere() -> None:
    portable = determinism.environment(experiment(deterministic="portable"), 8)
    assert {portable[name] for name in determinism.THREADS} == {"1"}
    assert determinism.SAME_CODE.items() <= portable.items()
    usual = determinism.environment(experiment(deterministic=True), 8)
    assert {usual[name] for name in determinism.THREADS} == {"8"}
    assert not determinism.SAME_CODE.keys() & usual.keys()
    assert not determinism.DETERMINISTIC.keys() & determinism.environment(experiment(deterministic=False), 8).keys()


def test_several_threads_contradict_portable() -> None:
    with pytest.raises(BadInputError, match="contradict"):
        determinism.environment(experiment(deterministic="portable", threads=2), 8)


def test_a_keras_file_keeps_its_content_and_loses_its_time(tmp_path: Path) -> None:
    made = []
    for number, identity in enumerate((140582753435088, 7)):
        path = tmp_path / f"{number}.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", json.dumps({"keras_version": "3", "date_saved": f"2026-{number}"}))
            shared = {"shared_object_id": identity, "layers": [{"shared_object_id": identity}, {"units": 64}]}
            archive.writestr(zipfile.ZipInfo("config.json", (2000 + number, 1, 1, 0, 0, 0)), json.dumps(shared))
            archive.writestr("model.weights.h5", b"\0" * 9)
        repro_keras.tidy(path)
        made.append(path.read_bytes())
    assert made[0] == made[1]
    with zipfile.ZipFile(tmp_path / "0.keras") as archive:
        assert archive.read("model.weights.h5") == b"\0" * 9
        assert json.loads(archive.read("config.json"))["layers"][0] == {"shared_object_id": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.keras", "1.keras"]


# code ------------------------------------------------------------------------------------------------------------


def captured(project: Project) -> Record:
    snapshot = source.capture(project.root)
    return recorded(code=snapshot.code(), code_prefix=snapshot.prefix)


def git(where: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(where), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def object_file(project: Project, name: str) -> Path:
    oid = git(project.root, "rev-parse", name)
    return project.root / ".git" / "objects" / oid[:2] / oid[2:]


def test_code_is_in_the_repository_and_said_to_be_nowhere_else(project: Project, tmp_path: Path) -> None:
    script(project, "toy.sh", "echo changed")
    record = captured(project)
    found = codes.look(record, RunFolder(tmp_path), project)
    assert found.use == f"repository {project.root}"
    assert found.remark == "snapshot commit not pushed to any remote"


def test_code_that_was_pushed_is_said_to_be(project: Project, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "remote.git")
    git(project.root, "remote", "add", "origin", str(tmp_path / "remote.git"))
    git(project.root, "push", "-q", "origin", "main")
    assert codes.look(captured(project), RunFolder(tmp_path), project).remark == ""
    script(project, "toy.sh", "echo changed")
    record = captured(project)
    assert "not pushed" in codes.look(record, RunFolder(tmp_path), project).remark
    git(project.root, "push", "-q", "origin", "refs/repro/*:refs/repro/*")
    assert codes.look(record, RunFolder(tmp_path), project, ask=True).remark == ""


def test_code_that_only_a_remote_has_is_fetched(project: Project, tmp_path: Path) -> None:
    script(project, "toy.sh", "echo changed")
    record = captured(project)
    git(tmp_path, "init", "-q", "--bare", "remote.git")
    git(project.root, "push", "-q", str(tmp_path / "remote.git"), "main", "refs/repro/*:refs/repro/*")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "-b", "main", (tmp_path / "remote.git").as_uri(), str(clone))
    elsewhere, folder = Project(clone), RunFolder(tmp_path / "run")
    assert codes.look(record, folder, elsewhere).use == ""
    assert codes.look(record, folder, elsewhere, ask=True).use == "remote origin"
    found = codes.materialise(record, folder, elsewhere)
    files, place = found.folder, found.place
    assert ((files / "toy.sh").read_text(), place) == ("echo changed\n", "remote origin")


@pytest.mark.parametrize("repository", [True, False])
def test_code_in_a_bundle_needs_no_repository(project: Project, tmp_path: Path, repository: bool) -> None:
    script(project, "toy.sh", "echo changed")
    record, folder = captured(project), RunFolder(tmp_path / "run")
    folder.archive.mkdir(parents=True)
    git(
        project.root,
        "bundle",
        "create",
        "-q",
        str(codes.bundle(folder)),
        f"refs/repro/snap/{record.planned.code.commit}",
    )
    elsewhere = Project(tmp_path / "elsewhere")
    elsewhere.root.mkdir()
    if repository:
        script(elsewhere, "other", "")
        commit(elsewhere.root)
    found = codes.look(record, folder, elsewhere, deep=True)
    assert found.use == f"bundle {codes.bundle(folder)}"
    files = codes.materialise(record, folder, elsewhere).folder
    assert (files / "toy.sh").read_text() == "echo changed\n"


def test_a_damaged_bundle_is_no_place(project: Project, tmp_path: Path) -> None:
    record, folder = captured(project), RunFolder(tmp_path / "run")
    folder.archive.mkdir(parents=True)
    codes.bundle(folder).write_bytes(b"no bundle")
    shutil.rmtree(project.root / ".git")
    assert codes.look(record, folder, project).use == ""


def test_a_file_that_the_repository_lost_or_changed_is_named(project: Project, tmp_path: Path) -> None:
    record, folder = captured(project), RunFolder(tmp_path)
    other = object_file(project, "HEAD:docker/Dockerfile").read_bytes()
    damaged = object_file(project, "HEAD:toy.sh")
    damaged.chmod(0o644)
    damaged.write_bytes(other)
    assert "toy.sh is damaged" in codes.look(record, folder, project, deep=True).remark
    damaged.unlink()
    found = codes.look(record, folder, project)
    assert (found.use, found.remark) == ("", f"{project.root}: toy.sh is missing")


def test_a_commit_with_another_tree_is_not_the_code(project: Project, tmp_path: Path) -> None:
    record = captured(project)
    code = msgspec.structs.replace(record.planned.code, tree="0" * 40)
    assert "recorded 000000000000" in codes.look(recorded(code=code), RunFolder(tmp_path), project).remark


def test_the_code_of_a_submodule_belongs_to_it(project: Project, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "inner.sh").write_text("echo inner\n")
    commit(inner)
    git(project.root, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), "sub")
    commit(project.root)
    record, folder = captured(project), RunFolder(tmp_path / "run")
    assert codes.look(record, folder, project, deep=True).use
    files = codes.materialise(record, folder, project).folder
    assert (files / "sub" / "inner.sh").read_text() == "echo inner\n"
    shutil.rmtree(project.root / "sub")
    assert "submodule sub" in codes.look(record, folder, project).remark


# data ------------------------------------------------------------------------------------------------------------


def used(content: bytes) -> DatasetUsed:
    import hashlib

    file = FileUsed(path="x", size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return DatasetUsed(name="d", digest="0", files=(file,), folder="")


def test_data_is_found_by_its_bytes_wherever_they_are(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REPRO_DATA_SOURCE", raising=False)
    dataset, folder = used(b"content"), RunFolder(tmp_path / "run")

    def look(**how: bool) -> Ingredient:
        config = datasets.wanted(dataset, experiment(), project, folder)
        return datasets.look(dataset, config, **{"ask": False, "offline": True, **how})

    assert (look().use, look().remark) == ("", "cache: x is not there")
    archived = folder.archive / "data" / "d" / "x"
    archived.parent.mkdir(parents=True)
    archived.write_bytes(b"content")
    assert look().use == str(archived.parent)
    fetch = datasets.fetch((dataset,), experiment(), project, folder, no_network=True, say=print, progress=False)
    assert [(Path(each.folder) / "x").read_bytes() for each in fetch] == [b"content"]
    archived.unlink()
    assert look().use == f"cache {tmp_path / 'cache'}"
    assert look().remark == datasets.ONLY_HERE
    held = tmp_path / "cache" / "data" / "sha256" / dataset.files[0].sha256
    held.chmod(0o644)
    held.write_bytes(b"CONTENT")
    assert look(deep=True).use == ""


@pytest.mark.parametrize(
    ("projects", "named", "prefix"),
    [
        ([""], "/home/x", ""),
        (["", "src/template"], "/home/x", ""),  # one that the project holds
        (["deep/sub"], "/anywhere", "deep/sub"),
        (["one", "two"], "/home/x/two", "two"),
        ([], "/home/x", ""),
        (["one", "two"], "/home/x", None),
        (["", "sub"], "/home/sub", None),
        (["sub", "a/sub"], "/home/a/sub", None),
    ],
)
def test_where_the_project_was_is_found_out_of_a_record_that_does_not_tell(
    tmp_path: Path, projects: list[str], named: str, prefix: str | None
) -> None:
    git(tmp_path, "init", "-q")
    for path in [*(f"{each}/{mark}/x" for each in projects for mark in ("conf", "docker")), "other/conf/x"]:
        place = tmp_path / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("x")
    code = Code(commit=commit(tmp_path), tree="", head="", branch=None, remote=None, dirty=False)
    planned = msgspec.structs.replace(PLANNED, code=code, project=named, code_prefix="", run_key="")
    if prefix is None:
        with pytest.raises(BadInputError, match="does not tell which project"):
            prefixes.of(tmp_path, planned)
    else:
        assert prefixes.of(tmp_path, planned) == prefix
    assert prefixes.of(tmp_path, msgspec.structs.replace(planned, run_key="k")) == ""  # it tells: at the top
    assert prefixes.of(tmp_path, msgspec.structs.replace(planned, code_prefix="p")) == "p"


def test_a_record_of_code_names_its_commit() -> None:
    code = Code(commit="c" * 40, tree="t", head="h", branch=None, remote=None, dirty=True)
    assert codes.look(recorded(code=code), RunFolder(Path("/nowhere")), Project(Path("/"))).recorded.endswith("c" * 40)


def test_what_others_left_in_a_run_and_nobody_can_read_stops_nothing(tmp_path: Path) -> None:
    """It came with a pull or a bundle: JSON without end, and bytes that are no text."""
    folder = RunFolder(tmp_path)
    for each in (folder.verifications, folder.inputs):
        each.mkdir()
    (folder.verifications / "deep.json").write_bytes(b"[" * 10**5)
    (folder.verifications / "bytes.json").write_bytes(b"\xff")
    (folder.inputs / "Dockerfile").write_bytes(b"FROM x\xff\n")
    assert again.read(folder) == []
    assert materials._inputs(folder) == {"Dockerfile": "FROM x\ufffd\n"}
    folder.config_json.write_bytes(b"[" * 10**5)
    problems = list(auditing._record(Record(planned=decided().planned), folder))
    assert "config.json is not the recorded configuration" in problems
    assert ingredients._other_json(folder.config_json, b"{}")
