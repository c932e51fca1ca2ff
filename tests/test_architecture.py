"""The shape of the library, held by reading its source: who may import whom, how large a thing may grow."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "repro"

# A module imports only from the rows above its own, and from what stands left of it.
ROWS = (
    "errors experiment project guard scratch record manifest",
    "config",
    "repository lfs checkout source report",
    "causes sameness",
    "download answers imagefacts endpoint refusal repodigest engine glance registry",
    "dockerfile context builder buildcache",
    "base pylock spec assembly inputs image lockfile",
    "oci distribution explain floating probe resolve inventory sbom ledger",
    "data",
    "plan lease ending terminal pump keeping runner",
    "journal store view tracking client sdkclient restclient delivery upload faults publication publisher",
    "keeper lookup sweep",
    "display",
    "ui findings enginecheck doctor pins housekeeping leftovers reaping pruning predecessor verification making",
    "imaging locking life",
    "run",
    "cli",
)
LAYERS = [module for row in ROWS for module in row.split()]

# A foreign library is imported by its door alone; everybody else speaks our values.
DOORS = {
    "docker": {"engine", "endpoint", "builder", "probe", "registry"},
    "git": {"source", "repository", "checkout"},
    "hydra": {"config"},
    "omegaconf": {"config"},
    "cyclonedx": {"sbom"},
    "packageurl": {"sbom"},
    "mlflow": {"store", "sdkclient", "publisher", "ui"},
}

LAZY = {"cyclonedx", "docker", "git", "hydra", "omegaconf", "mlflow", "rich", "pooch", "requests", "urllib3"}  # slow

MODULE_LINES = 450
FUNCTION_LINES = 60  # without the docstring

MODULES = sorted(SOURCE.glob("*.py"))
INSIDE = sorted((SOURCE / "inside").rglob("*.py"))


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(SOURCE).as_posix())


def imported(tree: ast.AST, *, top: bool = False) -> Iterator[str]:
    """Dotted names of what is imported; `top`: only what importing the module imports."""
    for node in _executed_on_import(tree) if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _executed_on_import(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from _executed_on_import(node)


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@each(MODULES)
def test_every_module_has_its_place_in_the_layers(path: Path) -> None:
    assert path.stem in {*LAYERS, "__init__"}


@each(MODULES)
def test_a_module_imports_only_from_the_layers_before_it(path: Path) -> None:
    before = set(LAYERS[: LAYERS.index(path.stem)]) if path.stem in LAYERS else set()
    ours = {name.split(".")[1] for name in imported(read(path)) if name.startswith("repro.")}
    assert ours - before - {"__version__"} == set()


@each(MODULES)
def test_a_foreign_library_is_imported_by_its_door_alone(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imported(read(path))}
    assert {root for root in roots if path.stem not in DOORS.get(root, {path.stem})} == set()


@each(MODULES)
def test_importing_a_module_imports_nothing_slow(path: Path) -> None:
    assert {name.partition(".")[0] for name in imported(read(path), top=True)} & LAZY == set()


@each(INSIDE)
def test_what_runs_in_the_container_needs_the_standard_library_alone(path: Path) -> None:
    """Its own siblings may be imported too: the folder is mounted whole."""
    siblings = {each.stem for each in INSIDE} | {each.parent.name for each in INSIDE}
    roots = {name.partition(".")[0] for name in imported(read(path), top=True)}
    assert roots - sys.stdlib_module_names - siblings == set()
    assert "repro" not in {name.partition(".")[0] for name in imported(read(path))}


@each(MODULES + INSIDE)
def test_a_module_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES


@each(MODULES + INSIDE)
def test_a_function_can_be_seen_at_one_glance(path: Path) -> None:
    functions = [node for node in ast.walk(read(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert {node.name: _lines(node) for node in functions if _lines(node) > FUNCTION_LINES} == {}


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    docstring = function.body[0] if ast.get_docstring(function) else None
    whole = (function.end_lineno or 0) - function.lineno + 1
    return whole - ((docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0)


@each(MODULES + INSIDE)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(read(path))
