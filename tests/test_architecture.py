"""The shape of the library, held by reading its source: who may import whom, how large a thing may grow."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "repro"

# A room is a folder of the library; "" is its top. A module imports only from the rooms above its own, and from what
# stands left of it: so arrows between rooms point one way, too.
ROOMS = (
    ("", "start errors experiment tolerant project guard scratch record"),
    ("stabilize", "pairing"),
    ("", "foreign identity results printable verdict"),
    ("stabilize", "form wire texts arrays hdf5 pictures pages tensorflows archives registry worker apart"),
    ("", "manifest report config display download data"),
    ("secrets", "masking secretsources secretsfolder"),
    ("code", "repository prefixes lfs checkout suspects source gitbundle"),
    ("engines", "answers imagefacts endpoint refusal repodigest engine glance registry probe"),
    ("build", "dockerfile context builder buildcache"),
    ("recipe", "base pylock spec assembly inputs explain floating"),
    ("", "image lockfile"),
    ("images", "causes sameness pieces oci distribution resolve inventory sbom ledger predecessor making verification"),
    ("tracking", "story journal"),
    ("running", "ownership nvidia machine determinism plan lease ending terminal pump resources quota harvest"),
    ("running", "stopping keeping sweep"),
    ("", "runner"),
    ("tracking", "store view tracking client sdkclient restclient delivery nested upload faults"),
    ("tracking", "publication publisher lookup"),
    ("attest", "envelope statement keys agent signing policy"),
    ("sharing", "remote snapshots parcel images pushing pulling"),
    ("compare", "sides tolerance leaves intervals points filing metrics trace comparing"),
    ("compare", "coding layers deep explanation differences wording plots pages"),
    ("", "keeper"),
    ("cleaning", "pins housekeeping leftovers reaping pruning"),
    ("", "execution"),
    ("restoring", "consent frozen codes held datasets ingredients ceiling replan materials again auditing repeating"),
    ("bundle", "stored contents crate script exporting checking importing"),
    ("verbs", "findings enginecheck doctor ui imaging locking life comparing attesting sharing"),
    ("verbs", "bundling recorded reproducing verifying"),
    ("", "run cli __main__"),
)
LAYERS = [f"{room}.{module}".lstrip(".") for room, modules in ROOMS for module in modules.split()]

# A foreign library is imported by its door alone; everybody else speaks our values.
DOORS = {
    "cryptography": {"attest.keys"},
    "docker": {"engines.engine", "engines.endpoint", "build.builder", "engines.probe", "engines.registry"},
    "git": {"code.source", "code.repository", "code.checkout"},
    "hydra": {"config"},
    "omegaconf": {"config"},
    "cyclonedx": {"images.sbom"},
    "packageurl": {"images.sbom"},
    "mlflow": {"tracking.store", "tracking.sdkclient", "tracking.publisher", "verbs.ui"},
    "pathspec": {"manifest"},
    "scipy": {"compare.intervals"},
    "matplotlib": {"compare.plots"},
    "pynvml": {"running.nvidia"},
    "rfc8785": {"identity"},
    "h5py": {"stabilize.hdf5"},
    "numpy": {"stabilize.arrays", "stabilize.hdf5", "compare.leaves"},
    "PIL": {"stabilize.pictures"},
}

LAZY = {"cyclonedx", "docker", "git", "hydra", "omegaconf", "mlflow", "rich", "pooch", "requests", "urllib3"}  # slow
LAZY |= {"cryptography", "pathspec", "pynvml", "h5py", "numpy", "PIL", "scipy", "matplotlib"}

MODULE_LINES = 450
FUNCTION_LINES = 60  # without the docstring

INSIDE = sorted((SOURCE / "inside").rglob("*.py"))
DOORPLATES = sorted(
    [SOURCE / "__init__.py", *(SOURCE / room / "__init__.py" for room in {room for room, _ in ROOMS if room})]
)
ELSEWHERE = {"inside", "template", "conf"}  # what is mounted, copied or composed: no part of the library
MODULES = sorted(
    path
    for path in SOURCE.rglob("*.py")
    if path.relative_to(SOURCE).parts[0] not in ELSEWHERE and path not in DOORPLATES
)


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


def name(path: Path) -> str:
    """`engines/engine.py` -> engines.engine"""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def ours(path: Path) -> set[str]:
    """The modules of ours that one imports."""
    found = set()
    for dotted in imported(read(path)):
        root, *parts = dotted.split(".")
        if root == "repro":
            known = [each for each in (".".join(parts[:length]) for length in (1, 2)) if each in LAYERS]
            found.add(known[0] if known else ".".join(parts))
    return found - {"__version__"}


@each(MODULES)
def test_every_module_has_its_place_in_the_layers(path: Path) -> None:
    assert name(path) in LAYERS


@each(MODULES)
def test_a_module_imports_only_from_the_layers_before_it(path: Path) -> None:
    assert ours(path) - set(LAYERS[: LAYERS.index(name(path))]) == set()


@each(DOORPLATES)
def test_the_front_of_a_room_says_what_is_in_it_and_holds_no_code(path: Path) -> None:
    imports = [node for node in ast.walk(read(path)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert (bool(ast.get_docstring(read(path))), imports) == (True, [])


@each(MODULES)
def test_a_foreign_library_is_imported_by_its_door_alone(path: Path) -> None:
    roots = {dotted.partition(".")[0] for dotted in imported(read(path))}
    assert {root for root in roots if name(path) not in DOORS.get(root, {name(path)})} == set()


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
