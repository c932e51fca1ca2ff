"""The tolerance file: what it declares, and what it may not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from repro.compare import tolerance
from repro.compare.tolerance import Margin, Tolerance
from repro.errors import BadInputError

GOOD = """
[metrics]
"test_accuracy" = {abs = 0.001, last = true}
"val_*" = {rel = 1e-3}
[files]
"results.json" = {rel = 1e-6, abs = 1}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "tolerance.toml"
    path.write_text(text)
    return path


def test_margins_are_found_by_name_and_then_by_pattern(tmp_path: Path) -> None:
    found = tolerance.read(written(tmp_path, GOOD))
    assert found.metric("test_accuracy") == Margin(abs=0.001, last=True)
    assert found.metric("val_loss") == Margin(rel=1e-3)
    assert found.file("results.json") == Margin(rel=1e-6, abs=1.0)
    assert (found.metric("loss"), found.file("val_x")) == (None, None)


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("metrics = 1", "metrics is no table", "[metrics]"),
        ('[metric]\n"x" = {abs = 1}', "unknown key metric", "did you mean metrics?"),
        ('[metrics]\n"x" = {asb = 1}', 'unknown key metrics."x".asb', "did you mean abs?"),
        ('[files]\n"x" = {abs = 1, last = true}', 'unknown key files."x".last', "known: abs, rel"),
        ('[metrics]\n"x" = 0.1', 'metrics."x" is no table', "{abs = 0.001}"),
        ('[metrics]\n"x" = {last = true}', "neither abs nor rel", ""),
        ('[metrics]\n"x" = {abs = 1, last = 1}', "neither true nor false", ""),
        ('[metrics]\n"x" = {abs = -1}', "no number from 0 up", ""),
        ('[metrics]\n"x" = {abs = inf}', "no number from 0 up", ""),
        ('[metrics]\n"x" = {abs = true}', "no number from 0 up", ""),
        ('[metrics]\n"x" = {rel = 1}', "1 is the whole value", "0.01"),
        ("", "declares no tolerance", "[metrics]"),
        ("x = [", "is no TOML", "[metrics]"),
    ],
)
def test_what_is_no_tolerance_is_named(tmp_path: Path, text: str, says: str, hint: str) -> None:
    with pytest.raises(BadInputError) as caught:
        tolerance.read(written(tmp_path, text))
    assert says in str(caught.value)
    assert hint in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        tolerance.read(tmp_path / "none.toml")


def test_a_tolerance_for_nothing_is_refused() -> None:
    declared = Tolerance(metrics={"val_*": Margin(abs=1), "acuracy": Margin(abs=1)})
    with pytest.raises(BadInputError) as caught:
        tolerance.check(declared, ["val_loss", "accuracy"], [])
    assert "'acuracy'" in str(caught.value)
    assert "did you mean accuracy?" in str(caught.value)
    tolerance.check(declared, ["val_loss", "acuracy"], [])


@pytest.mark.parametrize(
    ("before", "after", "holds"),
    [(1.0, 1.1, True), (1.0, 1.2, False), (0.0, 0.05, True), (100.0, 109.0, True), (-100.0, -111.0, False)],
)
def test_a_margin_is_the_larger_of_both_and_relative_to_the_original(before: float, after: float, holds: bool) -> None:
    assert Margin(abs=0.1000001, rel=0.1).holds(before, after) is holds
