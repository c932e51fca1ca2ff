"""Who stabilizes the outputs of a run, and what becomes of it when a file, or another's stabilizer, is bad."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import h5py
import numpy as np
import pytest

from repro import manifest
from repro.errors import BadInputError
from repro.record import Canonical, OutputFile
from repro.stabilize import apart, registry
from repro.stabilize.form import TEXT_LIMIT

Installed = Callable[[str], None]


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """Install a package whose module `others` has the given text and the stabilizers ONE and TWO."""
    site = tmp_path_factory.mktemp("site")

    def forget() -> None:
        registry.others.cache_clear()
        registry.trouble.cache_clear()
        sys.modules.pop("others", None)

    def install(text: str) -> None:
        forget()
        (site / "others.py").write_text("from repro.stabilize.form import Stabilizer\n" + dedent(text))
        info = site / "others-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
        names = [name for name in ("ONE", "TWO") if f"{name} =" in text]
        (info / "entry_points.txt").write_text(
            "[repro.stabilizers]\n" + "".join(f"{name.lower()} = others:{name}\n" for name in names)
        )
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setenv("PYTHONPATH", str(site))  # of the process that reads the files

    forget()
    yield install
    forget()


def stabilizer(
    name: str = "lower", version: str = "1", patterns: str = '("*.txt",)', reason: str = "case is none"
) -> str:
    return f"Stabilizer(name={name!r}, version={version}, patterns={patterns}, function=bytes.lower, reason={reason!r})"


def listed(folder: Path) -> dict[str, Canonical | None]:
    return {file.path: file.canonical for file in manifest.of(folder).files}


# other packages --------------------------------------------------------------------------------------------------


def test_a_package_adds_stabilizers_and_they_come_before_ours(installed: Installed, tmp_path: Path) -> None:
    installed(f"ONE = {stabilizer()}\nTWO = {stabilizer('plain', '3', repr(('*.JSON', 'a?')))}")
    for name, content in {"x.txt": "ABC", "y.json": "{}", "a1": "X", "z.csv": "1.0\n"}.items():
        (tmp_path / name).write_text(content)
    found = listed(tmp_path)
    labels = {name: each.stabilizer if each else None for name, each in found.items()}
    assert labels == {"a1": "plain@3", "x.txt": "lower@1", "y.json": "plain@3", "z.csv": "csv-float@1"}
    assert found["x.txt"] == registry.canonical("x.txt", b"aBc")
    assert registry.reason("lower@1") == "case is none"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nosuchmodule\nONE = 1", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("ONE = 1", "others:ONE is no Stabilizer but int"),
        (f"ONE = {stabilizer(reason=' ')}", "it gives no reason"),
        (f"ONE = {stabilizer(name='json')}", "the name json is taken"),
        (f"ONE = {stabilizer()}\nTWO = {stabilizer()}", "the name lower is taken"),
        (f"ONE = {stabilizer(name='a b')}", "name is 'a b', and has to be"),
        (f"ONE = {stabilizer(version='0')}", "version is 0, and has to be"),
        (f"ONE = {stabilizer(patterns=repr('*.txt'))}", "patterns is '*.txt', and has to be"),
        (f"ONE = {stabilizer()}._replace(function=3)", "function is 3, which cannot be called"),
    ],
)
def test_a_broken_stabilizer_of_a_package_is_named_and_ours_work_on(
    text: str, says: str, installed: Installed, tmp_path: Path
) -> None:
    installed(text)
    with pytest.raises(BadInputError, match=r"the stabilizer (one|two) of others cannot be used") as caught:
        registry.applicable("x.json")
    assert says in str(caught.value)
    assert "pip uninstall others" in str(caught.value)
    (tmp_path / "x.json").write_text("{}")
    listing = manifest.of(tmp_path)
    assert listing.files[0].canonical == Canonical(stabilizer="json@1", sha256=registry.digest(b"{}"))
    assert says in listing.remark


# bad files -------------------------------------------------------------------------------------------------------

BAD = """
import os, time

def crash(content): os.abort()
def hang(content): time.sleep(1000)
def grow(content): return bytes(1 << 34)
def fail(content): raise KeyError("x")
def other(content): return "text"

def choose(content):
    return {b"crash": crash, b"hang": hang, b"grow": grow, b"fail": fail, b"other": other}.get(content, bytes)(content)

ONE = Stabilizer(name="bad", version=1, patterns=("*.bad",), function=choose, reason="it is a test")
"""


def test_nothing_that_a_file_does_to_its_reader_is_an_error_of_the_run(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "SECONDS", 6.0)
    installed(BAD)
    for kind in ("crash", "fail", "grow", "hang", "other", "well"):
        (tmp_path / f"{kind}.bad").write_text(kind)
    listing = manifest.of(tmp_path)
    assert [file.path for file in listing.files if file.canonical] == ["well.bad"]
    assert {file.path for file in listing.files if file.unsettled} == {"crash.bad", "grow.bad", "hang.bad"}
    told = "3 of its results have no canonical digest (reading them took too long or too much memory"
    assert (len(listing.files), listing.remark.startswith(told)) == (6, True)
    assert manifest.of(tmp_path, by_products=["*"]).remark == ""  # they may differ in any case


def test_files_that_make_their_reader_hang_cost_no_more_than_a_while(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "SECONDS", 0.5)
    monkeypatch.setattr(apart, "PATIENCE", 1.0)
    installed(BAD)
    for number in range(100):
        (tmp_path / f"{number}.bad").write_text("hang")
    begun = time.monotonic()
    listing = manifest.of(tmp_path)
    assert {file.canonical for file in listing.files} == {None}
    assert all(file.unsettled for file in listing.files)
    assert listing.remark.startswith("100 of its results have no canonical digest")
    assert time.monotonic() - begun < 20


def test_a_file_that_changes_while_it_is_read_gets_no_digest_of_its_later_self(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    with apart.Apart() as reader, path.open("rb") as file:
        then = registry.digest(b"{}")
        assert reader.canonical("x.json", file, then) == registry.canonical("x.json", b"{}")
        path.write_text("[1]")
        with pytest.raises(apart.UnsettledError, match="it has changed"):
            reader.canonical("x.json", file, then)


def test_the_reader_is_gone_when_the_listing_is_made(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with apart.Apart() as reader:
        assert reader.wants("x.json", 2)
        assert reader.asked is not None
        process = reader.asked[0]
    assert process.returncode is not None


def test_files_above_the_limit_and_empty_ones_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_bytes(b"")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(TEXT_LIMIT + 1)
    assert listed(tmp_path) == {"empty.json": None, "large.json": None}


# the listing -----------------------------------------------------------------------------------------------------


def test_a_listing_says_of_each_file_its_role_and_its_canonical_digest(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["x"] = np.arange(3)
    (tmp_path / "times.csv").write_text("1.50\n")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.txt").write_text("now")
    files = manifest.of(tmp_path, by_products=["logs/", "times.*", "!times.csv"]).files
    assert [(file.path, file.role) for file in files] == [
        ("logs/a.txt", "by-product"),
        ("model.h5", "result"),
        ("times.csv", "result"),
    ]
    assert [file.canonical and file.canonical.stabilizer for file in files] == [None, "h5@1", "csv-float@1"]
    again = registry.canonical("other.h5", (tmp_path / "model.h5").read_bytes())
    assert files[1].canonical == again
    assert isinstance(files[1], OutputFile)


def test_a_pattern_of_by_products_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"outputs\.by_products"):
        manifest.of(tmp_path, by_products=["!"])


def test_without_a_file_of_a_known_kind_no_process_and_no_library_is_started(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("text")
    code = (
        "import sys\nfrom pathlib import Path\nfrom repro import manifest\n"
        "from repro.stabilize import apart\napart._started = None\n"
        f"manifest.of(Path({str(tmp_path)!r}))\n"
        "print({'numpy', 'h5py', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "set()\n"
