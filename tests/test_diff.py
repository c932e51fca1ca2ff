"""`repro diff`: which layers differ, where traces part, and the one line on why."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from repro.compare import differences, pages, plots, trace, wording
from repro.compare.comparing import Side
from repro.compare.trace import Stage
from repro.images.inventory import Inventory, OsPackage, PythonPackage
from repro.project import Project
from repro.record import Code, End, Fingerprint, Gpu
from repro.stabilize import apart
from repro.verdict import Level
from tests.conftest import commit
from tests.runs_to_compare import PLANNED, dataset, made, moment, output

Repro = Callable[..., "subprocess.CompletedProcess[str]"]

TRACE = [
    moment("init", {"weights": "w0"}),
    moment("batch 1", {"x": "b1"}),
    moment("epoch 1", {"weights": "w1"}, {"loss": 0.5}),
    moment("epoch 2", {"weights": "w2"}, {"loss": 0.25}),
]


def replaced(index: int, new: Fingerprint) -> list[Fingerprint]:
    return [new if number == index else each for number, each in enumerate(TRACE)]


def keras(weights: str, loss: float) -> list[Fingerprint]:
    return [moment("init", {"weights": "w"}), moment("batch 1", {"weights": weights}, {"loss": loss})]


@pytest.mark.parametrize(
    ("before", "after", "stage", "at"),
    [
        (TRACE, replaced(0, moment("init", {"weights": "other"})), Stage.INIT, "init"),
        (TRACE, replaced(1, moment("batch 1", {"x": "other"})), Stage.ORDER, "batch 1"),
        (TRACE, replaced(2, moment("epoch 1", {"weights": "other"}, {"loss": 0.5})), Stage.FIRST, "epoch 1"),
        (TRACE, replaced(2, moment("epoch 1", {"weights": "w1"}, {"loss": 0.6})), Stage.FIRST, "epoch 1"),
        (TRACE, replaced(3, moment("epoch 2", {"weights": "other"}, {"loss": 0.25})), Stage.LATER, "epoch 2"),
        (TRACE, TRACE[:3], Stage.END, "epoch 2"),
        (TRACE, [moment("start", {"weights": "w0"})], Stage.END, "init / start"),
        (keras("a", 2.3), keras("b", 2.3 + 1e-6), Stage.FIRST, "batch 1"),
        (keras("a", 2.3), keras("b", 2.2), Stage.ORDER, "batch 1"),
        (keras("a", 2.3), keras("b", float("nan")), Stage.FIRST, "batch 1"),
    ],
)
def test_traces_part_at_the_first_moment_that_differs(
    before: list[Fingerprint], after: list[Fingerprint], stage: Stage, at: str
) -> None:
    found = trace.first(before, after)
    assert found is not None
    assert (found.stage, found.at) == (stage, at)


def test_equal_traces_do_not_part_and_none_says_nothing() -> None:
    assert trace.first(TRACE, list(TRACE)) is None
    assert trace.first(TRACE, []) is None


# why -------------------------------------------------------------------------------------------------------------

OTHER = {"metrics": {"loss": [0.5, 0.3]}}


def config(**changes: Any) -> dict[str, Any]:
    return {**PLANNED.config, **changes}


def env(**changes: str) -> dict[str, str]:
    return {**PLANNED.env, **changes}


def host(**changes: Any) -> Any:
    return msgspec.structs.replace(PLANNED.host, **changes)


def image(**changes: Any) -> Any:
    return msgspec.structs.replace(PLANNED.image, **changes)


GPU = Gpu(name="a GPU", uuid="1", architecture="9.0", memory=1, driver="535")
SEED = {"config": config(seed=2), "env": env(PYTHONHASHSEED="2")}


@pytest.mark.parametrize(
    ("changes", "parted", "says"),
    [
        (SEED, 0, ["because of the seed (1 -> 2)", "from the start, in the initial weights"]),
        ({"config": config(params={"lr": 0.2})}, 2, ["because of params.lr (0.1 -> 0.2)", "first at epoch 1"]),
        ({"env": env(OMP_NUM_THREADS="4")}, 2, ["because of the threads (2 -> 4)", "it is the arithmetic"]),
        ({"env": env(TF_ENABLE_ONEDNN_OPTS="0")}, 2, ["because of TF_ENABLE_ONEDNN_OPTS (added 0)"]),
        (
            {"data": (dataset("mnist", {"x.gz": b"other"}),)},
            1,
            ["because of the data (mnist/x.gz", "data that were seen"],
        ),
        ({"image": image(id="sha256:" + "e" * 64, content="e" * 64)}, 0, ["because of the image"]),
        ({"host": host(cpu="another")}, 2, ["because of the processor (cpu a processor -> another)"]),
        ({"host": host(gpus=(GPU,))}, 2, ["because of the GPUs (gpus none -> a GPU"]),
        ({"network": "bridge"}, 3, ["because of network (none -> bridge)", "the same up to epoch 1"]),
    ],
)
def test_the_cause_that_differs_is_named(tmp_path: Path, changes: dict[str, Any], parted: int, says: list[str]) -> None:
    other = replaced(parted, moment(TRACE[parted].at, dict.fromkeys(TRACE[parted].digests, "other")))
    before = made(tmp_path / "a", {}, {"loss": [0.5, 0.25]}, trace=TRACE)
    after = made(tmp_path / "b", {}, {"loss": [0.5, 0.3]}, trace=other, run_key="x" * 64, **changes)
    found = differences.between(before, after, None)
    assert [words for words in says if words not in found.verdict.explanation] == [], found.verdict.explanation
    assert "also different" not in found.verdict.explanation


@pytest.mark.parametrize(
    ("parted", "hint"),
    [
        (0, "an initialiser is not seeded"),
        (1, "shuffling, sampling or augmentation is not seeded"),
        (2, "an operation is not deterministic (threads, GPU kernels)"),
        (3, "something comes in from outside"),
        (None, "a trace (repro_run.fingerprint) would tell"),
    ],
)
def test_the_same_inputs_and_other_results_are_proven_non_determinism(
    tmp_path: Path, parted: int | None, hint: str
) -> None:
    traces: list[list[Fingerprint]] = [[], []]
    if parted is not None:
        other = moment(TRACE[parted].at, dict.fromkeys(TRACE[parted].digests, "other"), {"loss": 1.0})
        traces = [TRACE, replaced(parted, other)]
    before = made(tmp_path / "a", {}, {"loss": [0.5]}, trace=traces[0])
    after = made(tmp_path / "b", {}, {"loss": [0.6]}, trace=traces[1])
    line = differences.between(before, after, None).verdict.explanation
    assert line.startswith("proven non-determinism: everything that went in is the same, and the results differ")
    assert hint in line


def test_nothing_is_proven_by_a_file_that_there_was_no_time_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = b'{"a": 1, "b": 2}', b'{"b": 2,  "a": 1}'
    outputs = [[msgspec.structs.replace(output("r.json", each), unsettled=True)] for each in (one, other)]
    before = made(tmp_path / "a", {"r.json": one}, outputs=outputs[0])
    after = made(tmp_path / "b", {"r.json": other}, outputs=outputs[1])
    assert differences.between(before, after, None).verdict.level is Level.STABILIZED  # it is read once more
    monkeypatch.setattr(apart, "SECONDS", -10.0)
    found = differences.between(before, after, None).verdict
    assert found.level is Level.DIFFERENT  # never the same, unread
    assert found.explanation == "r.json could not be read in time, so nobody can tell whether the results are the same"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"host": host(kernel="6.2")}, "non-determinism, or the machine (kernel 6.1 -> 6.2)"),
        ({"host": host(cpu="")}, "non-determinism, or the machine (a record does not tell the processor)"),
        ({"run_key": ""}, "as far as is known"),
        ({"network": "bridge"}, "non-determinism, or what came from the network (bridge)"),
        ({"config": config(secrets={"token": {"env": "T"}})}, "non-determinism, or another value of a secret (token)"),
        ({"run_key": "x" * 64, "config": config(description="new")}, "nothing was found in what went in"),
    ],
)
def test_nothing_is_proven_where_something_is_not_known(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    both = {
        name: value for name, value in changes.items() if name == "network" or "secrets" in changes.get("config", ())
    }
    before = made(tmp_path / "a", {}, {"loss": [0.5]}, **both)
    after = made(tmp_path / "b", {}, {"loss": [0.6]}, **changes)
    line = differences.between(before, after, None).verdict.explanation
    assert says in line
    assert "proven" not in line


def test_what_counts_as_a_result_can_be_the_cause(tmp_path: Path) -> None:
    before = made(tmp_path / "a", {"x": b"1"}, config=config(outputs={"ignore": ["log"]}), run_key="a" * 64)
    after = made(tmp_path / "b", {"x": b"1", "log": b"2"}, config=config(outputs={"ignore": []}))
    line = differences.between(before, after, None).verdict.explanation
    assert line.endswith('most likely because of what counts as a result (outputs.ignore ["log"] -> [])')


def test_several_causes_are_all_named_the_likeliest_first(tmp_path: Path) -> None:
    """What differs first decides: initial weights follow from the seed, the first step from threads."""
    changes = {
        "config": config(seed=2),
        "env": env(OMP_NUM_THREADS="4", PYTHONHASHSEED="2"),
        "data": (dataset("mnist", {"x.gz": b"other"}),),
        "run_key": "x" * 64,
    }
    before = made(tmp_path / "a", {}, {"loss": [0.5]}, trace=TRACE)
    lines = []
    for parted in (0, 1, 2):
        other = moment(TRACE[parted].at, dict.fromkeys(TRACE[parted].digests, "other"))
        after = made(tmp_path / f"b{parted}", {}, {"loss": [0.6]}, trace=replaced(parted, other), **changes)
        lines.append(differences.between(before, after, None).verdict.explanation)
    assert [line.partition("because of ")[2].split(" (")[0] for line in lines] == [
        "the seed",
        "the data",
        "the threads",
    ]
    assert all(word in line for line in lines for word in ("the seed", "the data", "the threads"))


def test_a_run_that_failed_is_the_explanation(tmp_path: Path) -> None:
    before = made(tmp_path / "a", {}, {"loss": [0.5]})
    after = made(tmp_path / "b", {}, {"loss": [0.5]}, end=End.OOM, **SEED)
    line = differences.between(before, after, None).verdict.explanation
    assert "toy-b did not finish (oom" in line
    assert "because of the seed" in line


def test_the_same_results_are_said_to_be_the_same_whatever_went_in(tmp_path: Path) -> None:
    before, after = made(tmp_path / "a", {}, {"loss": [0.5]}), made(tmp_path / "b", {}, {"loss": [0.5]}, **SEED)
    line = differences.between(before, after, None).verdict.explanation
    assert line == "the results are the same to the byte, although there are differences in config"


# layers ----------------------------------------------------------------------------------------------------------


def of(layer: str, before: Side, after: Side, root: Path | None = None) -> list[str]:
    found = differences.between(before, after, root).layers
    return [each.text for one in found if one.name == layer for each in one.differences]


def snapshot(root: Path) -> Code:
    head = commit(root)
    tree = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD^{tree}"], check=True, capture_output=True, text=True
    )
    return Code(commit=head, tree=tree.stdout.strip(), head=head, branch="main", remote=None, dirty=False)


def test_files_that_differ_are_named_with_their_lines(tmp_path: Path, project: Project) -> None:
    (project.root / "train.py").write_text("a\nb\n-- c\n")
    (project.root / "docs").mkdir()
    before = snapshot(project.root)
    (project.root / "train.py").write_text("a\nB\nc\n")
    (project.root / "docs" / "x.md").write_text("new")
    (project.root / 'odd" näme.py').write_text("x\n")
    after = snapshot(project.root)
    sides = made(tmp_path / "a", code=before), made(tmp_path / "b", code=after)
    found = differences.between(*sides, project.root).layers[0].differences
    assert [each.what for each in found] == ['odd" näme.py', "train.py", "docs/x.md"]
    assert found[1].detail == ("-2,2 +2,2", "-b", "--- c", "+B", "+c")
    assert [each.before is None for each in found] == [True, False, True]
    assert of("code", *sides) == [f"commit  {before.commit[:12]} -> {after.commit[:12]}"]


def test_only_the_projects_part_of_a_repository_counts(tmp_path: Path, project: Project) -> None:
    (project.root / "sub").mkdir()
    (project.root / "sub" / "a.py").write_text("1\n")
    before = snapshot(project.root)
    (project.root / "other.py").write_text("1\n")
    after = snapshot(project.root)
    sides = [
        made(tmp_path / name, {}, {"x": [0]}, code=code, code_prefix="sub/")
        for name, code in (("a", before), ("b", after))
    ]
    assert of("code", *sides, project.root) == []


def test_packages_of_the_images_are_compared(tmp_path: Path) -> None:
    before = made(tmp_path / "a")
    after = made(tmp_path / "b", image=image(id="sha256:" + "e" * 64, content="e" * 64))
    for side, version in ((before, "1.0"), (after, "2.0")):
        side.folder.inputs.mkdir()
        held = Inventory(
            image="x",
            python="3.11",
            python_packages=(PythonPackage(name="numpy", version=version),),
            os_packages=(OsPackage(name="libc6", version="2", architecture="amd64"),),
        )
        side.folder.packages.write_text(held.text())
    assert of("image", before, after) == ["numpy 1.0 -> 2.0"]


def test_an_image_of_the_same_content_is_an_unlikely_cause(tmp_path: Path) -> None:
    before = made(tmp_path / "a", {}, {"x": [1]})
    after = made(tmp_path / "b", {}, {"x": [2]}, image=image(id="sha256:" + "e" * 64), **SEED)
    assert differences.between(before, after, None).causes == ("seed  1 -> 2",)


def test_one_and_one_point_zero_are_two_settings(tmp_path: Path) -> None:
    before, after = made(tmp_path / "a"), made(tmp_path / "b", config=config(params={"lr": 1}))
    other = made(tmp_path / "c", config=config(params={"lr": 1.0, "new": None}))
    assert of("config", before, after) == ["params.lr  0.1 -> 1"]
    assert of("config", after, other) == ["params.lr  1 -> 1.0", "params.new  added null"]


# the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def two(project: Project) -> Project:
    """A project with two runs that differ by their seed."""
    runs = project.root / "runs"
    for name, value, more in (("a", 0.25, {}), ("b", 0.3, SEED)):
        made(
            runs / f"20261127-120000-toy-{name}",
            {"weights": value.hex().encode()},
            {"loss": [0.5, value], "<b>&$x": [1.0, value]},
            run=f"20261127-120000-toy-{name}",
            **more,
        )
    return project


def test_a_diff_says_what_differs_and_why_and_exits_1(two: Project, repro: Repro) -> None:
    done = repro("diff", "20261127-120000-toy-a", "20261127-120000-toy-b")
    assert (done.returncode, done.stderr) == (1, "")
    assert "config       seed  1 -> 2" in done.stdout
    assert "E1  metric loss  0.25 (2 points) -> 0.3 (2 points)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("because      the results differ, most likely because of the seed")


def test_a_run_is_the_same_as_itself(two: Project, repro: Repro) -> None:
    done = repro("diff", "latest", "runs/20261127-120000-toy-b", "--json")
    found = msgspec.json.decode(done.stdout, type=differences.Comparison)
    assert (done.returncode, found.verdict.level, found.causes) == (0, Level.BYTES, ())


def test_a_tolerance_decides_and_is_checked(two: Project, repro: Repro) -> None:
    tolerance = two.root / "tolerance.toml"
    tolerance.write_text('[metrics]\n"los" = {abs = 0.1}')
    arguments = ("diff", "20261127-120000-toy-a", "latest", "--tolerance", "tolerance.toml")
    done = repro(*arguments)
    assert (done.returncode, "did you mean loss?" in done.stderr) == (2, True)
    tolerance.write_text('[metrics]\n"loss" = {abs = 0.1}')
    levels = {
        each["name"]: each["level"] for each in json.loads(repro(*arguments, "--json").stdout)["verdict"]["compared"]
    }
    assert (levels["loss"], levels["weights"]) == (3, 1)


def test_a_run_is_judged_by_the_repeats_of_the_original(project: Project, repro: Repro) -> None:
    first = "20261127-120000-toy-1"
    values = {
        first: 0.97,
        "20261127-120000-toy-2": 0.971,
        "20261127-120000-toy-3": 0.972,
        "20261127-120000-toy-4": 0.9705,
    }
    sides = {
        run: made(project.runs / run, {}, {"x": [value]}, run=run, repeats=first if run != first else None)
        for run, value in values.items()
    }
    sides[first].folder.verifications.mkdir()
    for run in (*values, "removed"):
        (sides[first].folder.verifications / f"{run}.json").write_text("{}")
    levels = []
    for name, value in (("near", 0.9708), ("far", 0.9)):
        made(project.runs / f"20261127-130000-toy-{name}", {}, {"x": [value]}, run=f"20261127-130000-toy-{name}")
        done = repro("diff", "20261127-120000-toy-2", f"20261127-130000-toy-{name}", "--json")
        levels.append((json.loads(done.stdout)["verdict"]["level"], done.returncode))
    assert levels == [(2, 0), (1, 1)]


def test_the_page_needs_nothing_else_and_escapes_what_runs_say(two: Project, repro: Repro) -> None:
    done = repro("diff", "20261127-120000-toy-a", "latest", "--html", "r.html", "--png", "r.png")
    assert done.returncode == 1, done.stderr
    page = (two.root / "r.html").read_text()
    assert "&lt;b&gt;&amp;$x" in page
    assert "<b>" not in page
    assert not [word for word in ("<script", "src=", "@import", "url(http") if word in page]
    assert page.count("<figure") == 2
    assert (two.root / "r.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    sides = made(tmp_path / "a", {}, {"x": [1, 2]}), made(tmp_path / "b", {}, {"x": [1, 3]})
    found = differences.between(*sides, None)
    drawn = [
        pages.page(found, sides[0].record, sides[1].record, plots.diverging(*sides, found.verdict)) for _ in range(2)
    ]
    assert drawn[0] == drawn[1]


def test_what_a_run_says_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    sides = [
        made(tmp_path / name, {"\x1b[2J": name.encode()}, {"\x1b]0;x\x07": [1]}, config=config(params={"\x9bx": name}))
        for name in ("a", "b")
    ]
    text = wording.text(differences.between(*sides, None), *(side.record for side in sides))
    assert not [letter for letter in text if letter in "\x1b\x07\x9b"]


def test_a_page_that_cannot_be_written_is_named(two: Project, repro: Repro) -> None:
    done = repro("diff", "latest", "latest", "--html", "none/r.html")
    assert (done.returncode, "none/r.html cannot be written" in done.stderr) == (2, True)


def test_a_diff_takes_less_than_a_second_with_many_files_and_points(tmp_path: Path) -> None:
    files = {f"{number}.txt": b"x" for number in range(1000)}
    sides = [
        made(tmp_path / name, files, {f"m{number}": [value] * 200 for number in range(20)}, trace=TRACE)
        for name, value in (("a", 1.0), ("b", 2.0))
    ]
    begin = time.process_time()  # the machine may be busy with something else
    differences.between(*sides, None)
    assert time.process_time() - begin < 0.5


def test_a_diff_loads_nothing_heavy(two: Project) -> None:
    code = (
        "import sys; from repro.cli import main; main(['diff', 'latest', 'latest']);"
        "print(sorted({'mlflow', 'docker', 'hydra', 'numpy', 'scipy', 'matplotlib', 'git', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=two.root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
