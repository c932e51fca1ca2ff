"""pylock.toml -> what pip takes, for one target."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from repro.errors import BadInputError
from repro.recipe import pylock
from repro.recipe.pylock import Target

TARGET = Target(python="3.11.2", platform="linux/amd64", libc="glibc 2.36")
ONE, TWO, THREE = (str(number) * 64 for number in (1, 2, 3))
LOCK = f"""\
lock-version = "1.0"
created-by = "uv"

[[packages]]
name = "pure"
version = "1.0"
sdist = {{ url = "https://example.com/pure-1.0.tar.gz", size = 3, hashes = {{ sha256 = "{THREE}" }} }}
wheels = [{{ url = "https://example.com/pure-1.0-py3-none-any.whl", size = 1, hashes = {{ sha256 = "{ONE}" }} }}]

[[packages]]
name = "compiled"
version = "2.0"
wheels = [
    {{ url = "https://example.com/compiled-2.0-cp311-cp311-%s.whl", hashes = {{ sha256 = "{ONE}" }} }},
    {{ url = "https://example.com/compiled-2.0-cp312-cp312-linux_x86_64.whl", hashes = {{ sha256 = "{TWO}" }} }},
    {{ url = "https://example.com/compiled-2.0-cp311-cp311-win_amd64.whl", hashes = {{ sha256 = "{THREE}" }} }},
]
"""
MADE = "manylinux_2_17_x86_64.manylinux2014_x86_64"


def only(package: str) -> str:
    return f'lock-version = "1.0"\ncreated-by = "uv"\n[[packages]]\nname = "a"\n{package}\n'


def test_each_package_is_the_one_file_that_the_target_takes() -> None:
    found = pylock.packages(LOCK % MADE, TARGET, "pylock.toml")
    assert [(each.name, each.version, each.file, each.sha256, each.size, each.wheel) for each in found] == [
        ("compiled", "2.0", f"compiled-2.0-cp311-cp311-{MADE}.whl", ONE, None, True),
        ("pure", "1.0", "pure-1.0-py3-none-any.whl", ONE, 1, True),
    ]


@pytest.mark.parametrize(
    ("libc", "platform", "tag", "taken"),
    [
        ("glibc 2.36", "linux/amd64", "manylinux_2_36_x86_64", True),
        ("glibc 2.36", "linux/amd64", "manylinux_2_37_x86_64", False),
        ("glibc 2.36", "linux/amd64", "manylinux1_x86_64", True),
        ("glibc 2.36", "linux/amd64", "musllinux_1_2_x86_64", False),
        ("musl 1.2", "linux/amd64", "musllinux_1_2_x86_64", True),
        ("musl 1.2", "linux/amd64", "manylinux_2_17_x86_64", False),
        ("glibc 2.36", "linux/arm64", "manylinux_2_17_aarch64", True),
        ("glibc 2.36", "linux/arm64", "manylinux_2_17_x86_64", False),
    ],
)
def test_wheels_are_chosen_by_the_platform_and_c_library_of_the_image(
    libc: str, platform: str, tag: str, taken: bool
) -> None:
    target = Target(python="3.11.2", platform=platform, libc=libc)
    if taken:
        assert pylock.packages(LOCK % tag, target, "x")[0].file.endswith(f"{tag}.whl")
        return
    with pytest.raises(BadInputError, match="cannot be used"):
        pylock.packages(LOCK % tag, target, "x")


def test_a_marker_for_another_system_leaves_a_package_out() -> None:
    text = LOCK % MADE + (
        '[[packages]]\nname = "zwin"\nversion = "1"\nmarker = "sys_platform == \'win32\'"\n'
        f'wheels = [{{ url = "https://example.com/zwin-1-py3-none-any.whl", hashes = {{ sha256 = "{ONE}" }} }}]\n'
    )
    assert [each.name for each in pylock.packages(text, TARGET, "x")] == ["compiled", "pure"]


def test_pip_gets_one_line_and_one_hash_for_each_package() -> None:
    written = "--extra-index-url https://wheels.example.com/simple\n-r more.txt\npure\n  --pre  # all\n"
    found = pylock.packages(LOCK % MADE, TARGET, "pylock.toml")
    assert pylock.requirements(found, written, "pylock.tf.toml").splitlines() == [
        "# pylock.tf.toml, made by `repro lock`: pip accepts these files alone",
        "--extra-index-url https://wheels.example.com/simple",
        "--pre  # all",
        f"compiled==2.0 --hash=sha256:{ONE}",
        f"pure==1.0 --hash=sha256:{ONE}",
    ]


def test_a_file_of_the_project_is_named_as_the_requirements_name_it() -> None:
    text = only(f'version = "1"\narchive = {{ path = "wheels/a-1-py3-none-any.whl", hashes = {{ sha256 = "{ONE}" }} }}')
    (found,) = pylock.packages(text, TARGET, "x")
    assert (found.url, found.path, found.wheel) == (None, "wheels/a-1-py3-none-any.whl", True)
    lines = pylock.requirements((found,), "./docker/wheels/a-1-py3-none-any.whl\n", "x").splitlines()
    assert lines[-1] == f"./docker/wheels/a-1-py3-none-any.whl --hash=sha256:{ONE}"


def test_files_of_the_project_whose_names_end_alike_are_kept_apart() -> None:
    files = [("foo", "foo-1-py3-none-any.whl", ONE), ("my-foo", "my_foo-1-py3-none-any.whl", TWO)]
    found = tuple(
        pylock.Package(name=name, version="1", file=file, url=None, path=f"w/{file}", sha256=sha256, size=1, wheel=True)
        for name, file, sha256 in files
    )
    lines = pylock.requirements(found, "./w/my_foo-1-py3-none-any.whl\n./w/foo-1-py3-none-any.whl\n", "x").splitlines()
    assert lines[1:] == [
        f"./w/foo-1-py3-none-any.whl --hash=sha256:{ONE}",
        f"./w/my_foo-1-py3-none-any.whl --hash=sha256:{TWO}",
    ]


def test_a_file_that_the_requirements_name_by_url_is_taken_from_there() -> None:
    url = "https://example.com/a-1-py3-none-any.whl"
    (found,) = pylock.packages(
        only(f'version = "1"\narchive = {{ url = "{url}", hashes = {{ sha256 = "{ONE}" }} }}'), TARGET, "x"
    )
    assert pylock.requirements((found,), f"a @ {url}\n", "x").splitlines()[-1] == f"a @ {url} --hash=sha256:{ONE}"
    offline = pylock.requirements((found,), f"a @ {url}\n", "x", wheels_given=True)
    assert offline.splitlines()[-1] == f"a==1 --hash=sha256:{ONE}"


@pytest.mark.parametrize(
    "package",
    [
        'directory = { path = "../a", editable = true }',
        f'vcs = {{ type = "git", url = "https://example.com/a.git", commit-id = "{"a" * 40}" }}',
        f'version = "1"\nsdist = {{ url = "https://example.com/a-1.tar.gz", hashes = {{ md5 = "{"a" * 32}" }} }}',
    ],
)
def test_what_no_hash_can_pin_is_refused_with_what_to_do(package: str) -> None:
    with pytest.raises(BadInputError, match="a cannot be locked") as caught:
        pylock.packages(only(package), TARGET, "x")
    assert "RUN pip install --no-deps" in str(caught.value)


@pytest.mark.parametrize("text", ["<<<<", 'lock-version = "9.0"\n', 'lock-version = "1.0"\n', only("wheels = 3")])
def test_a_file_that_is_no_lock_is_said_to_be_none(text: str) -> None:
    with pytest.raises(BadInputError, match=r"pylock\.x\.toml cannot be used"):
        pylock.packages(text, TARGET, "pylock.x.toml")


@pytest.mark.parametrize(
    ("libc", "called"),
    [
        ("glibc 2.17", "x86_64-manylinux_2_17"),
        ("glibc 2.29", "x86_64-manylinux_2_28"),
        ("glibc 2.36", "x86_64-manylinux_2_36"),
        ("glibc 2.99", "x86_64-manylinux_2_40"),
        ("musl 1.2", "x86_64-unknown-linux-musl"),
    ],
)
def test_uv_is_told_a_platform_that_it_knows(libc: str, called: str) -> None:
    assert pylock.uv_platform(Target(python="3.11.2", platform="linux/amd64", libc=libc)) == called


def test_times_in_a_lock_do_not_keep_it_from_being_read() -> None:
    moment = datetime(2026, 1, 1, tzinfo=timezone.utc).isoformat()
    wheel = f'url = "https://example.com/a-1-py3-none-any.whl", upload-time = {moment}, hashes = {{ sha256 = "{ONE}" }}'
    assert len(pylock.packages(only(f'version = "1"\nwheels = [{{ {wheel} }}]'), TARGET, "x")) == 1
