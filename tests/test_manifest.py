"""The list of a run's outputs: every file, whatever the experiment left there, and nothing from outside the folder."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import time
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from repro import manifest, printable, report
from repro.errors import BadInputError
from tests.conftest import as_nobody


def paths(folder: Path, *ignore: str) -> list[str]:
    return [file.path for file in manifest.of(folder, ignore).files]


def test_it_holds_every_regular_file_sorted(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "ü x").write_bytes(b"abc")
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "link").symlink_to("a")
    listing = manifest.of(tmp_path)
    assert [(file.path, file.size) for file in listing.files] == [("a", 0), ("b/ü x", 3)]
    assert listing.files[1].sha256.startswith("ba7816bf")
    assert (listing.unread, listing.ignored, listing.remark) == ((), 0, "")


def test_it_takes_any_name(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).write_bytes(b"")
    (tmp_path / "two\nlines").write_bytes(b"")
    (tmp_path / "\x1b[2Jred").write_bytes(b"")
    (tmp_path / ("n" * 255)).write_bytes(b"")
    listing = manifest.of(tmp_path)
    assert [file.path for file in listing.files] == ["\x1b[2Jred", "caf\\xe9", "n" * 255, "two\nlines"]
    assert listing.unread == ()
    assert msgspec.json.encode(listing)


def test_what_is_no_file_is_passed_over_and_blocks_nothing(tmp_path: Path) -> None:
    (tmp_path / "vanished").symlink_to("nowhere")
    (tmp_path / "out").symlink_to("/")
    (tmp_path / "password").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(str(tmp_path / "socket"))
    if os.geteuid() == 0:
        os.mknod(tmp_path / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero has no end
    assert manifest.of(tmp_path) == manifest.Listing()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_file_that_becomes_something_else_before_it_is_read_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "link":
        path.symlink_to("/etc/passwd")
    else:
        os.mkfifo(path)
    with pytest.raises(OSError, match="x"):
        manifest.opened(path)


def test_names_of_one_file_are_listed_each(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    one, two = manifest.of(tmp_path).files
    assert (one.path, two.path, one.sha256 == two.sha256) == ("a", "b", True)


def test_what_cannot_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name, "outputs")
        for each in ("closed/a", "listed/b", "locked"):
            (folder / each).parent.mkdir(parents=True, exist_ok=True)
            (folder / each).write_text("1")
        Path(name).chmod(0o755)
        for path, mode in {"closed": 0, "listed": 0o744, "locked": 0}.items():
            (folder / path).chmod(mode)
        code = "found = manifest.of(argument)\nprint(found.files, found.unread, found.remark, sep='|')"
        imports = "from repro import manifest; from repro.stabilize import registry; registry.others()"
        done = as_nobody(imports, code, folder)
        (folder / "closed").chmod(0o700)
        says = (
            "3 of its outputs are not listed (they cannot be read, are nothing but holes, or lie too deep), as closed"
        )
        assert done.stdout == f"()|('closed', 'listed/b', 'locked')|{says}\n", done.stderr


def test_ignored_files_are_counted_and_stay(tmp_path: Path) -> None:
    for name in ("a.tmp", "ckpt/1/w", "ckpt/last", "sub/keep.tmp", "sub/b.tmp", "x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    listing = manifest.of(tmp_path, ["*.tmp", "!keep.tmp", "/ckpt/"])
    assert [file.path for file in listing.files] == ["sub/keep.tmp", "x"]
    assert listing.ignored == 4
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 6


def test_a_pattern_that_is_none_is_told() -> None:
    with pytest.raises(BadInputError, match=r"outputs\.ignore") as caught:
        manifest.matcher(["*.tmp", "!"])
    assert "'!'" in str(caught.value)


def test_holes_without_end_are_not_read_and_said(tmp_path: Path) -> None:
    for name, size in (("endless", manifest.HOLES * 64), ("small", 1 << 20)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    listing = manifest.of(tmp_path)
    assert [file.path for file in listing.files] == ["small"]
    assert listing.unread == ("endless",)


def test_a_tree_deeper_than_pythons_stack_and_than_a_path_is_survived(tmp_path: Path) -> None:
    before, depth = os.open(".", os.O_RDONLY), 2500
    try:
        os.chdir(tmp_path)
        Path("top").write_bytes(b"")
        for _level in range(depth):
            Path("dd").mkdir()
            os.chdir("dd")
        Path("bottom").write_bytes(b"")
    finally:
        os.fchdir(before)
        os.close(before)
    listing = manifest.of(tmp_path)
    assert [file.path for file in listing.files] == ["top"]
    assert listing.unread == ("/".join(["dd"] * (manifest.DEPTH + 1)),)
    assert len(listing.remark) < 400
    os.system(f"rm -rf '{tmp_path}/dd'")  # which Python's own rmtree cannot


def test_large_files_are_streamed_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "SAY_SECONDS", 0.0)
    with (tmp_path / "large").open("wb") as file:
        for _block in range(200):
            file.write(os.urandom(1 << 20))
    said: list[str] = []
    tracemalloc.start()
    try:
        (file_,) = manifest.of(tmp_path, say=said.append).files
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert file_.size == 200 << 20
    assert peak < 8 << 20
    assert said[-1] == "listing the outputs: 1 files, 0.2 GB"


def test_a_hundred_thousand_small_files_are_listed(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number:02}").mkdir()
        for each in range(1000):
            (tmp_path / f"{number:02}" / f"{each}").write_bytes(b"%d" % each)
    begun = time.monotonic()
    listing = manifest.of(tmp_path, ["*999"])
    print(f"{time.monotonic() - begun:.1f} s")  # docs/speed.md says how long it takes
    assert (len(listing.files), listing.ignored, listing.unread) == (99_900, 100, ())


@pytest.mark.parametrize(
    ("raw", "text", "line"),
    [
        ("plain ü\ttab", "plain ü\ttab", "plain ü\\ttab"),
        ("\x1b[31mred\x1b[0m", "red", "\\x1b[31mred\\x1b[0m"),
        ("a\x1b]0;title\x07b", "ab", "a\\x1b]0;title\\x07b"),
        ("a\x1b]52;c;cGF5\x1b\\b", "ab", "a\\x1b]52;c;cGF5\\x1b\\b"),
        ("\x1bPdcs\x1b\\x", "x", "\\x1bPdcs\\x1b\\x"),
        ("\x9b2Jx", "x", "\\x9b2Jx"),
        ("\x1bcreset", "reset", "\\x1bcreset"),
        ("bell\x07 back\x08", "bell\\x07 back\\x08", "bell\\x07 back\\x08"),
        ("one\ntwo\r", "one\ntwo\\x0d", "one\\ntwo\\x0d"),
        ("ltr\u202ertl", "ltr\\u202ertl", "ltr\\u202ertl"),
        ("half\udce9", "half\\udce9", "half\\udce9"),
        ("unfinished\x1b", "unfinished\\x1b", "unfinished\\x1b"),
        ("\x1b\x1b[31m[2J", "\\x1b[2J", "\\x1b\\x1b[31m[2J"),
    ],
)
def test_what_acts_upon_a_terminal_is_made_harmless(raw: str, text: str, line: str) -> None:
    for found in (printable.text(raw), printable.line(raw)):
        assert not any((ord(letter) < 32 and letter not in "\n\t") or 0x7F <= ord(letter) < 0xA0 for letter in found)
    assert (printable.text(raw), printable.line(raw)) == (text, line)


def test_the_last_lines_of_a_log_are_harmless(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    log.write_bytes(b"\x1b]0;owned\x07first\n\x1b[2J\x1b[Hsecond\x9b\n")
    assert report.last_lines(log) == ["first", "second\ufffd"]
