"""Composition by the real Hydra: what a user types becomes an Experiment or one clear error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from repro import config
from repro.errors import BadInputError, ExitCode
from repro.project import Project
from tests.conftest import write_experiment


def composed(project: Project, *overrides: str):
    return config.compose(project, ["experiment=toy", *overrides])


def error(project: Project, *overrides: str) -> BadInputError:
    with pytest.raises(BadInputError) as caught:
        config.compose(project, overrides)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    return caught.value


def test_an_experiment_is_its_file_on_top_of_the_librarys_defaults(project: Project) -> None:
    experiment = composed(project, "seed=7", "params.epochs=5")
    assert (experiment.name, experiment.command, experiment.seed) == ("toy", ("sh", "toy.sh"), 7)
    assert experiment.params == {"epochs": 5, "optimizer": {"lr": 0.1}}
    assert experiment.network == "none"
    assert experiment.resources.shm == 2 << 30
    assert experiment.image.variant == "tensorflow"


def test_a_projects_own_group_file_replaces_the_librarys(project: Project) -> None:
    (project.conf / "image").mkdir()
    (project.conf / "image" / "tensorflow.yaml").write_text("variant: tensorflow\nbase: mine:1\n")
    assert composed(project).image.base == "mine:1"


def test_the_machines_own_choice_is_read_when_it_is_there_and_the_command_line_wins(project: Project) -> None:
    (project.conf / "local").mkdir()
    (project.conf / "local" / "default.yaml").write_text(
        "# @package _global_\ndefaults: [{override /image: tensorflow-cpu}]\n"
    )
    assert composed(project).image.variant == "tensorflow-cpu"
    assert composed(project, "image=tensorflow").image.variant == "tensorflow"


def test_what_an_experiment_says_itself_goes_before_the_machines_choice(project: Project) -> None:
    (project.conf / "local").mkdir()
    (project.conf / "local" / "default.yaml").write_text(
        "# @package _global_\ndefaults: [{override /image: tensorflow-cpu}]\nresources: {shm: 1g, pids: 9}\n"
    )
    write_experiment(project.root, "big", "[sh]", "defaults: [{override /image: debian}]\nresources: {shm: 4g}\n")
    big = config.compose(project, ["experiment=big"])
    assert (big.image.variant, big.resources.shm, big.resources.pids) == ("debian", 4 << 30, 9)


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 << 30), ("4g", 4 << 30), ("512m", 512 << 20), ("1.5k", 1536), ("7", 7)]
)
def test_sizes_may_have_units(project: Project, text: str, size: int) -> None:
    assert composed(project, f"resources.memory={text}").resources.memory == size


@pytest.mark.parametrize(
    ("overrides", "what", "hint"),
    [
        ([], "no experiment chosen", "experiment=toy"),
        (["experiment=tyo"], "there is no experiment 'tyo'", "did you mean experiment=toy?"),
        (["experiment=toy", "seeed=1"], "unknown key seeed", "did you mean seed?"),
        (["experiment=toy", "resources.memroy=1"], "unknown key resources.memroy", "did you mean resources.memory?"),
        (["experiment=toy", "params.epoch=1"], "unknown key params.epoch", "did you mean params.epochs?"),
        (["experiment=toy", "params.lr=1"], "unknown key params.lr", "did you mean params.optimizer.lr?"),
        (["experimnt=toy"], "unknown key experimnt", "did you mean experiment?"),
        (["experiment=toy", "+resources.cpu=1"], "unknown key resources.cpu", "did you mean resources.cpus?"),
        (["experiment=toy", "image=tensorflw"], "there is no image 'tensorflw'", "did you mean image=tensorflow"),
        (["experiment=toy", "seed=one"], "seed: expected `int`, got `str`", ""),
        (["experiment=toy", "seed=-1"], "seed: expected `int` >= 0", ""),
        (["experiment=toy", "resources.cpus=0"], "resources.cpus: expected `float` > 0", ""),
        (["experiment=toy", "resources.memory=4 apples"], "'4 apples' is no size", "4GiB"),
        (["experiment=toy", "command=???"], "command has no value", "command=..."),
        (["experiment=toy", "command=[]"], "command: expected `array` of length >= 1", ""),
        (["experiment=toy", "name='a b'"], "name: expected `str` matching regex", ""),
        (["experiment=toy", "command=[true]"], "command[0]: expected `str`, got `bool`", "quote it"),
        (["experiment=toy", "env.A=1"], "unknown key env.A", "+env.A=..."),
        (["experiment=toy", "image.build_args.A=1"], "unknown key image.build_args.A", "+image.build_args.A=..."),
        (["experiment=toy", "params.epochs=inf"], "params.epochs is inf", "params.epochs=null"),
        (["experiment=toy", "+params.many=[1,nan]"], "params.many[1] is nan", "null"),
        (["experiment=toy", "resources.cpus=inf"], "resources.cpus is inf", ""),
        (["experiment=toy", "data=null"], "must be a string or a list", "data=none"),
        (["experiment=toy", "~image"], "image.variant has no value", ""),
        (["experiment=toy", "seed=["], "no viable alternative", ""),
        (["experiment=toy", "seed=1,2"], "Ambiguous value for argument 'seed=1,2'", ""),
    ],
)
def test_bad_input_is_one_clear_error(project: Project, overrides: list[str], what: str, hint: str) -> None:
    caught = error(project, *overrides)
    assert what in caught.what
    assert hint in str(caught)


def test_numbers_in_a_command_and_in_the_environment_are_text(project: Project) -> None:
    write_experiment(project.root, "numbers", "[sh, -c, exit, 3, 0.1]", "env: {LEVEL: 2}\n")
    experiment = config.compose(project, ["experiment=numbers"])
    assert experiment.command == ("sh", "-c", "exit", "3", "0.1")
    assert experiment.env == {"LEVEL": "2"}


def test_every_key_of_the_image_can_be_set(project: Project) -> None:
    image = composed(project, "image.context=[a]", "image.target=t", "+image.build_args.PY=3").image
    assert (image.context, image.target, image.build_args) == (("a",), "t", {"PY": "3"})
    assert config.compose_image(project, ["+image.build_args.PY=3"])[0].build_args == {"PY": "3"}


def test_a_file_that_is_no_text_is_named(project: Project) -> None:
    (project.conf / "experiment" / "latin.yaml").write_bytes(b"# @package _global_\nname: caf\xe9\n")
    caught = error(project, "experiment=latin")
    assert "is not UTF-8" in caught.what
    assert "latin.yaml" in str(caught)


def test_a_configuration_that_does_not_begin_with_ours_is_told_how(project: Project) -> None:
    (project.conf / "config.yaml").write_text("name: mine\n")
    for overrides in ([], ["experiment=toy"]):
        with pytest.raises(BadInputError) as caught:
            config.compose_image(project, overrides)
        assert "defaults: [repro, _self_]" in str(caught.value)


def test_what_editors_leave_beside_a_file_is_no_experiment(project: Project) -> None:
    (project.conf / "experiment" / ".#toy.yaml").symlink_to("nobody@host.1:2")
    assert config.options(project, "experiment") == ["toy"]
    assert config.compose_image(project, [])[0].variant == "tensorflow"


def test_a_key_that_a_file_invents_is_an_error_too(project: Project) -> None:
    write_experiment(project.root, "odd", "[sh]", "resorces: {cpus: 1}\n")
    caught = error(project, "experiment=odd")
    assert "unknown key resorces" in caught.what
    assert "did you mean resources?" in str(caught)


def test_a_file_that_is_not_yaml_is_named_with_its_line(project: Project) -> None:
    (project.conf / "experiment" / "broken.yaml").write_text("# @package _global_\nname: [\n")
    caught = error(project, "experiment=broken")
    assert "broken.yaml" in str(caught)
    assert "line" in str(caught)


def test_the_image_is_composed_without_an_experiment_and_again_when_a_file_changes(project: Project) -> None:
    assert config.compose_image(project, [])[0].base == "tensorflow/tensorflow:2.21.0"
    (project.conf / "image").mkdir()
    (project.conf / "image" / "tensorflow.yaml").write_text("variant: tensorflow\nbase: a:1\n")
    assert config.compose_image(project, [])[0].base == "a:1"
    assert config.compose_image(project, ["image.base=b:2"])[0].base == "b:2"
    (project.conf / "image" / "tensorflow.yaml").write_text("variant: tensorflow\nbase: a:2\n")
    assert config.compose_image(project, [])[0].base == "a:2"


def test_an_image_that_depends_on_the_environment_is_composed_each_time(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.conf / "image").mkdir()
    (project.conf / "image" / "tensorflow.yaml").write_text("variant: tensorflow\nbase: ${oc.env:BASE_OF_TEST}\n")
    monkeypatch.setenv("BASE_OF_TEST", "one:1")
    assert config.compose_image(project, [])[0].base == "one:1"
    monkeypatch.setenv("BASE_OF_TEST", "two:2")
    assert config.compose_image(project, [])[0].base == "two:2"


def test_an_image_is_composed_again_whatever_decides_it_has_changed(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE_OF_TEST", "one:1")
    override = "image.base=${oc.env:BASE_OF_TEST}"
    assert config.compose_image(project, [override])[0].base == "one:1"
    monkeypatch.setenv("BASE_OF_TEST", "two:2")
    assert config.compose_image(project, [override])[0].base == "two:2"
    (tmp_path / "elsewhere").mkdir()
    (project.conf / "image").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    for base in ("a:1", "a:2"):
        (tmp_path / "elsewhere" / "tensorflow.yaml").write_text(f"variant: tensorflow\nbase: {base}\n")
        assert config.compose_image(project, [])[0].base == base


def test_an_image_that_was_composed_before_is_known_without_hydra(project: Project) -> None:
    code = (
        "import sys; from pathlib import Path; from repro import config; from repro.project import Project\n"
        "print(config.compose_image(Project(Path(sys.argv[1])), [])[0].base, 'hydra' in sys.modules)"
    )

    def once() -> str:
        return subprocess.check_output([sys.executable, "-c", code, str(project.root)], text=True)

    assert once() == "tensorflow/tensorflow:2.21.0 True\n"
    assert once() == "tensorflow/tensorflow:2.21.0 False\n"
