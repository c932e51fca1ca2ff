"""The plan is pure: equal inputs, equal plans, and every decision visible in it."""

from __future__ import annotations

from datetime import datetime, timezone

import msgspec
import pytest

from repro.engines.answers import EngineFacts
from repro.errors import BadInputError
from repro.experiment import Experiment, ImageConfig, Resources, RunSecret
from repro.record import Code, DatasetUsed, ImageUsed
from repro.running import plan

EXPERIMENT = Experiment(name="toy", command=("sh", "toy.sh"), image=ImageConfig(variant="v", base="b:1"), seed=7)
ENGINE = EngineFacts(
    product="Docker",
    version="28.5",
    api="1.51",
    store="overlay2",
    platform="linux/amd64",
    cpus=8,
    memory=64 << 30,
    gpus="",
    data_root="/var/lib/docker",
    name="host",
)
INGREDIENTS = plan.Ingredients(
    code=Code(commit="c" * 40, tree="t" * 40, head="h" * 40, branch="main", remote=None, dirty=True),
    code_folder="/project/.repro/code/c",
    diff="+x\n",
    image=ImageUsed(
        variant="v",
        tag="my-tf:0123456789abcdef",
        id="sha256:" + "1" * 64,
        spec="2" * 64,
        base="b:1",
        base_resolved="sha256:3",
        platform="linux/amd64",
    ),
    image_env=("PATH=/opt/venv/bin:/usr/bin", "PYTHONPATH=/opt/lib"),
    inputs={"docker/Dockerfile": "FROM b:1\n"},
    data=(DatasetUsed(name="mnist", digest="d", files=(), folder="/cache/mnist-d"),),
    engine=ENGINE,
)
CIRCUMSTANCES = plan.Circumstances(
    run="20261123-191500-toy-3f9c1a",
    created=datetime(2026, 11, 23, 19, 15, tzinfo=timezone.utc),
    project="/project",
    folder="/project/runs/20261123-191500-toy-3f9c1a",
    argv=("experiment=toy",),
    overrides=("experiment=toy",),
    uid=1000,
    gid=100,
    user="ada",
    tracking_uri="sqlite:////project/mlflow.db",
)


def decided(**changes: object) -> plan.Plan:
    return plan.decide(msgspec.structs.replace(EXPERIMENT, **changes), INGREDIENTS, CIRCUMSTANCES)


def test_equal_inputs_give_equal_plans_that_survive_json() -> None:
    assert decided() == decided()
    assert msgspec.json.decode(msgspec.json.encode(decided()), type=plan.Plan) == decided()


def test_the_container_starts_from_the_image_id_and_sees_exactly_its_mounts() -> None:
    container = decided().container
    assert container.image == "sha256:" + "1" * 64
    assert [(m.target, m.read_only) for m in container.mounts] == [
        ("/workspace", True),
        ("/outputs", False),
        ("/journal", False),
        ("/repro/inside", True),
        ("/repro/config.json", True),
        ("/data/mnist", True),
    ]
    assert container.network == "none"
    assert container.user == "1000:100"
    assert container.labels["repro.run"] == CIRCUMSTANCES.run


def test_the_environment_keeps_runs_alike_and_extends_the_images() -> None:
    env = decided().container.env
    assert env["PATH"] == "/repro/inside/bin:/opt/venv/bin:/usr/bin"
    assert env["PYTHONPATH"] == "/repro/inside:/opt/lib"
    assert (env["PYTHONHASHSEED"], env["OMP_NUM_THREADS"], env["TZ"]) == ("7", "8", "UTC")
    assert env["TF_NUM_INTRAOP_THREADS"] == env["TF_NUM_INTEROP_THREADS"] == "8"
    assert env["TF_DETERMINISTIC_OPS"] == "1"
    assert "TF_DETERMINISTIC_OPS" not in decided(deterministic=False).container.env
    assert decided(threads=3).container.env["OMP_NUM_THREADS"] == "3"
    assert decided(resources=Resources(cpus=2.5)).container.env["OMP_NUM_THREADS"] == "2"
    assert decided(env={"TZ": "Asia/Tokyo"}).container.env["TZ"] == "Asia/Tokyo"


def test_mlflow_code_finds_our_store_unless_the_user_names_another() -> None:
    assert decided().container.env["MLFLOW_TRACKING_URI"] == "repro://run"
    theirs = decided(env={"MLFLOW_TRACKING_URI": "http://server:5000"}).container.env
    assert theirs["MLFLOW_TRACKING_URI"] == "http://server:5000"
    assert not {"MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"} & set(theirs)  # that server would not know them


def test_what_is_ours_in_the_environment_cannot_be_set_by_the_user() -> None:
    with pytest.raises(BadInputError, match="REPRO_RUN is set by repro"):
        decided(env={"REPRO_RUN": "x"})


@pytest.mark.parametrize(
    ("asked", "request_", "fallback", "text"),
    [
        ("auto", -1, True, "all or none"),
        ("none", (), False, "none"),
        (0, (), False, "none"),
        ("all", -1, False, "all"),
        (2, 2, False, "2"),
        ((0, 1), ("0", "1"), False, "id 0,id 1"),
        (("GPU-8a",), ("GPU-8a",), False, "id GPU-8a"),
    ],
)
def test_gpus_are_asked_for_as_written(asked: object, request_: object, fallback: bool, text: str) -> None:
    made = decided(gpus=asked)
    assert (made.container.gpus, made.cpu_fallback, made.planned.gpus_asked) == (request_, fallback, text)


@pytest.mark.parametrize("asked", ["some", -1, ""])
def test_other_gpus_are_refused(asked: object) -> None:
    with pytest.raises(BadInputError, match="gpus"):
        decided(gpus=asked)


def test_limits_reach_the_container() -> None:
    container = decided(resources=Resources(cpus=1.5, memory=1 << 30, shm=5, pids=6, tmp=7)).container
    assert (container.cpus, container.memory, container.shm, container.pids) == (1.5, 1 << 30, 5, 6)
    assert "size=7" in container.tmpfs["/tmp"]
    assert "mode=1777" in container.tmpfs[plan.HOME]


def test_a_time_limit_is_kept_by_what_the_container_is_started_with() -> None:
    made = decided(resources=Resources(time_limit=1.5, stop_grace=1e6, stop_signal="SIGTERM"))
    begin = ("/repro/inside/bin/repro-start", "--limit", "1.5", "--grace", "1000000", "--signal", "TERM", "--")
    assert made.container.command == (*begin, "sh", "toy.sh")
    assert made.planned.command == ("sh", "toy.sh")
    assert made.container.stop_signal == "SIGTERM"
    assert (decided().container.command, decided().container.stop_signal) == (("sh", "toy.sh"), "SIGINT")


def test_secrets_are_a_folder_in_the_container_and_some_are_variables() -> None:
    secrets = {"A": RunSecret(env="HOST_A", to="env"), "b.key": RunSecret(file="b")}
    here = msgspec.structs.replace(CIRCUMSTANCES, secrets_folder="/dev/shm/mine/run")
    made = plan.decide(msgspec.structs.replace(EXPERIMENT, secrets=secrets), INGREDIENTS, here)
    assert made.container.command[1:] == ("--env", "A=/run/secrets/A", "--", "sh", "toy.sh")
    (mount,) = [each for each in made.container.mounts if each.target == "/run/secrets"]
    assert (mount.source, mount.read_only) == ("/dev/shm/mine/run", True)
    assert "A" not in made.container.env
    files = plan.decide(msgspec.structs.replace(EXPERIMENT, secrets={"b": RunSecret(file="b")}), INGREDIENTS, here)
    assert files.container.command == ("sh", "toy.sh")


@pytest.mark.parametrize(
    ("name", "says"), [("REPRO_RUN", "in the environment already"), ("TZ", "already"), ("a.b", "a.b cannot be")]
)
def test_a_secret_that_cannot_be_a_variable_is_refused(name: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        decided(secrets={name: RunSecret(env="X", to="env")})


def test_a_rootless_engine_gets_its_own_root_which_is_the_caller() -> None:
    rootless = msgspec.structs.replace(INGREDIENTS, engine=msgspec.structs.replace(ENGINE, rootless=True))
    found = plan.decide(EXPERIMENT, rootless, CIRCUMSTANCES)
    assert (found.planned.user, found.container.user) == ("0:0", "0:0")
    assert decided().container.user == "1000:100"


def test_a_limit_that_the_engine_does_not_keep_is_a_notice_where_it_was_asked_for() -> None:
    weak = msgspec.structs.replace(ENGINE, unlimited=("memory", "pids"))
    ingredients = msgspec.structs.replace(INGREDIENTS, engine=weak)
    asked = msgspec.structs.replace(EXPERIMENT, resources=Resources(memory=1 << 30))
    assert "resources.memory" in plan.decide(asked, ingredients, CIRCUMSTANCES).planned.notices[-1]
    assert plan.decide(EXPERIMENT, ingredients, CIRCUMSTANCES).planned.notices == INGREDIENTS.notices


def test_a_run_id_sorts_by_time_and_names_the_experiment() -> None:
    assert plan.run_id("toy", CIRCUMSTANCES.created, b"\x3f\x9c\x1a") == "20261123-191500-toy-3f9c1a"
