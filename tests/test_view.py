"""A record in MLflow's words and limits."""

from __future__ import annotations

import msgspec
import pytest

from repro import identity
from repro.project import Project
from repro.record import Code, End
from repro.tracking import view
from tests.test_tracking import ended, record

RUN = "20260102-030405-toy-000001"


@pytest.fixture
def begun(tmp_path):
    return record(Project(tmp_path), RUN, None)


def with_code(begun, **changes):
    code: Code = msgspec.structs.replace(begun.planned.code, **changes)
    return msgspec.structs.replace(begun, planned=msgspec.structs.replace(begun.planned, code=code))


def test_a_begun_run_has_these_tags(begun) -> None:
    tags = view.tags(begun)
    del tags["mlflow.note.content"]
    assert tags == {
        "run": RUN,
        "image": "my-tf:0123456789abcdef",
        "image_id": "sha256:" + "1" * 64,
        "image_spec": "2" * 64,
        "commit": "c" * 40,
        "dirty": "true",
        "command": "python experiments/toy.py --fast",
        "gpus": "none",
        "network": "none",
        "mlflow.user": "me",
        "mlflow.docker.image.uri": "my-tf:0123456789abcdef",
        "mlflow.docker.image.id": "sha256:" + "1" * 64,
        "mlflow.source.name": "https://github.com/someone/toys.git",
        "mlflow.source.type": "PROJECT",
        "mlflow.project.entryPoint": "experiments/toy.py",
        "mlflow.source.git.commit": "c" * 40,
        "mlflow.source.git.branch": "main",
        "mlflow.source.git.repoURL": "https://github.com/someone/toys.git",
        "mlflow.source.git.dirty": "true",
    }


@pytest.mark.parametrize("remote", [None, "/srv/git/toys.git", "https://git.example.com/someone/toys"])
def test_a_repository_that_mlflow_cannot_link_is_local(begun, tmp_path, remote) -> None:
    tags = view.tags(with_code(begun, remote=remote))
    assert (tags["mlflow.source.type"], tags["mlflow.source.name"]) == ("LOCAL", tmp_path.name)


def test_an_image_that_was_pushed_has_its_digest(begun) -> None:
    image = msgspec.structs.replace(begun.planned.image, digest="r/my-tf@sha256:9")
    tags = view.tags(msgspec.structs.replace(begun, planned=msgspec.structs.replace(begun.planned, image=image)))
    assert (tags["image_digest"], tags["mlflow.docker.image.uri"]) == ("r/my-tf@sha256:9", "r/my-tf@sha256:9")


def test_an_image_has_each_of_its_identities_under_its_own_name(begun) -> None:
    changes = {"manifest": "sha256:m", "content": "sha256:c", "drift": "it was another one"}
    image = msgspec.structs.replace(begun.planned.image, **changes)
    tags = view.tags(msgspec.structs.replace(begun, planned=msgspec.structs.replace(begun.planned, image=image)))
    assert (tags["image_manifest"], tags["image_content"]) == ("sha256:m", "sha256:c")
    assert tags["drift"] == "it was another one"
    assert "image_digest" not in tags


def test_the_end_is_told_by_tags_and_by_the_first_line(begun) -> None:
    over = ended(begun, End.OOM, 137, "out of memory at 4 GiB")
    tags = view.tags(over)
    assert (tags["ended"], tags["exit_code"]) == ("oom", "137")
    assert view.note(over).splitlines()[0] == f"Failed: out of memory at 4 GiB · repro show {RUN}"
    assert "exit_code" not in view.tags(ended(begun, End.LOST, None, "gone"))


def test_a_run_has_the_names_of_its_record_of_what_went_in_and_of_what_came_out(begun) -> None:
    names = ("run_key", "record", "result", "reproduces", "repeats", "verdict")
    assert not set(names) & set(view.tags(begun))  # of an earlier version
    planned = msgspec.structs.replace(begun.planned, run_key="k" * 64, reproduces="a", repeats="b")
    over = ended(msgspec.structs.replace(begun, planned=planned), End.FINISHED, 0, "exit code 0")
    over = msgspec.structs.replace(over, ended=msgspec.structs.replace(over.ended, result="r" * 64))
    tags = view.tags(over, "E5")
    assert [tags[name] for name in names] == ["k" * 64, identity.record_digest(over), "r" * 64, "a", "b", "E5"]


@pytest.mark.parametrize(
    ("remote", "link"),
    [
        ("git@github.com:o/r.git", "https://github.com/o/r/commit/"),
        ("https://gitlab.com/o/r", "https://gitlab.com/o/r/commit/"),
        ("https://bitbucket.org/o/r", "https://bitbucket.org/o/r/commits/"),
    ],
)
def test_the_description_links_the_commit(begun, remote, link) -> None:
    assert f"[eeeeeeeeeeee]({link}{'e' * 40})" in view.note(with_code(begun, remote=remote))


def test_the_configuration_is_flat() -> None:
    config = {
        "a": {"b": {"c": 1}},
        "l": [1, {"x": None}],
        "t": True,
        "n": None,
        "s": "text",
        "e": {},
        "d@x": 1,
        "d_x": 2,
    }
    assert view.params(config) == {
        "a.b.c": "1",
        "l": '[1, {"x": null}]',
        "t": "true",
        "n": "null",
        "s": "text",
        "e": "{}",
        "d_x": "1",
        "d_x_": "2",
    }


def test_long_values_are_cut_and_say_so() -> None:
    value = view.params({"long": "x" * 10_000})["long"]
    assert len(value) == view.PARAM_LIMIT
    assert value.endswith("x … (cut; all of it is in config.yaml)")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("loss", "loss"),
        ("träin/läss:1 -_.", "träin/läss:1 -_."),
        ("a[0]", "a_0_"),
        ("db@x=y+z", "db_x_y_z"),
        ("/a//b/", "a/b"),
        ("a/../b", "a/__/b"),
        ("..a", "__a"),
        ("./a", "_/a"),
        ("", "_"),
        ("///", "_"),
        ("new\nline", "new_line"),
    ],
)
def test_names_become_such_that_mlflow_takes_them(name: str, known: str) -> None:
    assert view.key(name) == known


def test_long_names_are_cut_and_keep_apart() -> None:
    one, other = view.key("x" * 300 + "1"), view.key("x" * 300 + "2")
    assert one != other
    assert len(one) == view.KEY_LIMIT


@pytest.mark.parametrize(
    "tag",
    [
        "run",
        "run_key",
        "result",
        "verdict",
        "ended",
        "drift",
        "image_content",
        "mlflow.source.name",
        "mlflow.docker.image.id",
        "mlflow.parentRunId",
    ],
)
def test_an_experiment_cannot_pretend_to_be_another_run(tag: str) -> None:
    assert not view.settable(tag)


@pytest.mark.parametrize("tag", ["mine", "running", "mlflow.autologging"])
def test_an_experiment_sets_its_own_tags(tag: str) -> None:
    assert view.settable(tag)


def test_the_entry_point_is_the_file_that_runs() -> None:
    assert view.entry_point(["python", "-u", "experiments/a.py", "b.txt"]) == "experiments/a.py"
    assert view.entry_point(["/usr/bin/env.x", "true"]) == "/usr/bin/env.x"
