"""No pair of runs may be called the same that is not: whatever is in the files, the metrics and the tolerance."""

from __future__ import annotations

import io
import itertools
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy
from hypothesis import example, given
from hypothesis import strategies as st

from repro.compare import leaves
from repro.compare.comparing import Side, compare, pairs
from repro.compare.tolerance import Margin, Tolerance
from repro.verdict import Level
from tests.runs_to_compare import canonical, made, output

NUMBERS = st.integers() | st.floats(allow_nan=True, allow_infinity=True)
JSONS = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
MARGINS = st.builds(Margin, abs=st.sampled_from([0.0, 1e-9, 0.5]), rel=st.sampled_from([0.0, 1e-6, 0.5]))
FILES = st.dictionaries(
    st.sampled_from(["a", "b.json", "c.csv", "tb/events.out.tfevents.1.h.1.0.v2", "tb/events.out.tfevents.2.h.1.0.v2"]),
    st.sampled_from([b"", b"1", b"1.0", b"2"]),
    max_size=4,
)
METRICS = st.dictionaries(
    st.sampled_from(["loss", "accuracy"]),
    st.lists(st.sampled_from([0.0, -0.0, 0.5, float("nan"), float("inf")]), min_size=1, max_size=3),
)


def close(one: Any, other: Any, margin: Margin) -> bool:
    """The rule, said once more and plainly: equal but for numbers, and those no farther apart than the margin."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        if one == other or (one != one and other != other):
            return True
        try:
            return math.isfinite(abs(one - other)) and abs(one - other) <= max(margin.abs, margin.rel * abs(one))
        except OverflowError:
            return False
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(close(a, b, margin) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key], margin) for key in one)
    return bool(one == other)


@given(JSONS, JSONS, MARGINS)
@example({"a": {}}, {"a": "{}"}, Margin())
@example([], ["[0]"], Margin())
@example({"a.b": 1}, {"a": {"b": 1}}, Margin())
@example(2**53, 2**53 + 1, Margin())
@example(10**400, 1.0, Margin(rel=0.5))
def test_json_is_close_exactly_when_the_plain_rule_says_so(one: Any, other: Any, margin: Margin) -> None:
    found = leaves.distance("x.json", json.dumps(one).encode(), json.dumps(other).encode(), margin)
    assert found.same is close(one, other, margin)


CELLS = st.sampled_from(["", "a", "1", "01", "1.0", "1.5", "nan", "1e3", "1000", "1_000", " 1", '"1"', "inf"])
TABLES = st.lists(st.lists(CELLS, min_size=1, max_size=3), max_size=3)


@given(TABLES, TABLES)
def test_tables_are_close_only_when_each_cell_is_the_same_text_or_number(
    one: list[list[str]], other: list[list[str]]
) -> None:
    texts = ["".join(",".join(row) + "\n" for row in table).encode() for table in (one, other)]
    same = leaves.distance("x.csv", texts[0], texts[1], Margin()).same

    def plain(table: list[list[str]]) -> list[list[Any]]:
        numbers = {"1": 1, "1.0": 1, '"1"': 1, "1.5": 1.5, "1e3": 1000, "1000": 1000}
        rows = [row for row in table if row != [""]] if table else []
        return [[numbers.get(cell, cell) for cell in row] for row in rows]

    if same:
        assert plain(one) == plain(other)


ARRAYS = st.builds(
    lambda kind, shape, values: numpy.array([v % 100 for v in values][: math.prod(shape)], kind).reshape(shape),
    st.sampled_from(["float32", "float64", "uint8", "int64", "bool", "complex64"]),
    st.sampled_from([(1,), (2,), (1, 2), (2, 1)]),
    st.lists(st.integers(0, 300), min_size=2, max_size=2),
)


@given(ARRAYS, ARRAYS, MARGINS)
def test_arrays_are_close_only_when_kind_shape_and_every_number_are(one: Any, other: Any, margin: Margin) -> None:
    def saved(array: Any) -> bytes:
        content = io.BytesIO()
        numpy.savez(content, w=array)
        return content.getvalue()

    found = leaves.distance("x.npz", saved(one), saved(other), margin)
    if found.same:
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert close(one.tolist(), other.tolist(), margin)


FOLDER = tempfile.TemporaryDirectory(prefix="compared-")
NUMBER = itertools.count()


def run(files: dict[str, bytes], metrics: dict[str, list[float]], **more: Any) -> Side:
    return made(Path(FOLDER.name) / str(next(NUMBER)), files, metrics, **more)


@given(FILES, METRICS, FILES, METRICS)
def test_runs_are_the_same_to_the_byte_only_with_the_same_files_and_metrics(
    files: dict[str, bytes], metrics: dict[str, list[float]], others: dict[str, bytes], measured: dict[str, list[float]]
) -> None:
    level = compare(run(files, metrics), run(others, measured)).level
    equal = files == others and _exact(metrics) == _exact(measured) and bool(files or metrics)
    assert (level is Level.BYTES) == equal
    if not equal and level > Level.DIFFERENT:  # then nothing but the names of event files is another
        assert sorted(files.values()) == sorted(others.values())
        assert _exact(metrics) == _exact(measured)


def _exact(metrics: dict[str, list[float]]) -> dict[str, list[str]]:
    return {name: [value.hex() for value in values] for name, values in metrics.items()}


@given(FILES, METRICS, FILES, METRICS)
def test_a_comparison_says_the_same_both_ways_round(
    files: dict[str, bytes], metrics: dict[str, list[float]], others: dict[str, bytes], measured: dict[str, list[float]]
) -> None:
    one, other = run(files, metrics), run(others, measured)
    assert compare(one, other).level == compare(other, one).level


@given(st.sampled_from([b"1", b"2"]), st.sampled_from([None, "x@1", "x@2"]), st.sampled_from([None, "x@1", "x@2"]))
def test_a_canonical_digest_counts_only_under_its_own_stabilizer(
    content: bytes, one: str | None, other: str | None
) -> None:
    sides = []
    for number, (name, inner) in enumerate(((one, b"1"), (other, content))):
        file = output("f", bytes([number]), canonical=canonical(inner, name) if name else None)
        sides.append(run({}, {}, outputs=[file]))
    same = compare(*sides).level is Level.STABILIZED
    assert same == (content == b"1" and one is not None and one == other)


@given(FILES, FILES)
def test_every_file_of_both_sides_is_compared_once(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    found = list(pairs([output(p, c) for p, c in before.items()], [output(p, c) for p, c in after.items()]))
    assert sorted(was.path for was, _ in found if was) == sorted(before)
    assert sorted(now.path for _, now in found if now) == sorted(after)


@given(st.lists(st.floats(0.9, 1), min_size=4, max_size=6), st.floats(0, 2))
def test_level_2_is_reached_exactly_inside_the_interval(values: list[float], last: float) -> None:
    from scipy import stats

    runs = [run({}, {"x": [value]}) for value in values]
    level = compare(runs[0], run({}, {"x": [last]}), Tolerance(), runs[1:]).level
    n, s, mean = len(values), float(numpy.std(values, ddof=1)), float(numpy.mean(values))
    reach = float(stats.t.ppf(0.975, n - 1)) * s * math.sqrt(1 + 1 / n)
    if last == values[0]:
        assert level is Level.BYTES
    elif abs(last - mean) < reach * (1 - 1e-9):
        assert level is Level.STATISTICAL
    elif abs(last - mean) > reach * (1 + 1e-9) + 1e-12:
        assert level is Level.DIFFERENT
