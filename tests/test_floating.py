"""What of a spec is still open is counted, and what is pinned is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from repro.experiment import BaseRecipe, BuildConfig, ImageConfig
from repro.recipe import floating
from repro.recipe.pylock import Target
from repro.recipe.spec import ImageSpec, LockedPackages

DIGEST = "sha256:" + "1" * 64
START = "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n"
PACKAGES = LockedPackages(
    name="pylock.v.toml", content=b"x", target=Target(python="3.11.2", platform="linux/amd64", libc="glibc 2.36")
)


def spec(root: Path, lines: str = "", requirements: str = "", **options: object) -> ImageSpec:
    (root / "docker").mkdir(exist_ok=True)
    (root / "docker" / "Dockerfile").write_text(START + lines)
    (root / "docker" / "requirements.txt").write_text(requirements)
    build = options.pop("build", BuildConfig())
    config = ImageConfig(variant="v", **{"base": f"tf@{DIGEST}", **options})  # type: ignore[arg-type]
    return ImageSpec.read(config, root, build)  # type: ignore[arg-type]


def test_nothing_floats_where_everything_has_its_hash(tmp_path: Path) -> None:
    assert floating.pieces(spec(tmp_path)) == ()


@pytest.mark.parametrize(
    ("requirements", "found"),
    [
        ("", ()),
        ("# nothing\n--index-url https://example.com\n", ()),
        ("numpy==2.0\nscipy\npandas>=2\n", ("2 packages",)),
        ("numpy\n", ("1 package",)),
        ("numpy==2.0\nscipy===1.0 ; python_version > '3'\n", ("what the packages depend on",)),
        ("numpy==2.* \n", ("1 package",)),
        (f"numpy==2.0 --hash={DIGEST}\nscipy==1.0 \\\n  --hash={DIGEST}\n", ()),
    ],
)
def test_requirements_float_until_each_has_a_hash(tmp_path: Path, requirements: str, found: tuple[str, ...]) -> None:
    assert floating.pieces(spec(tmp_path, requirements=requirements)) == found


def test_included_requirements_count_and_locked_ones_do_not_float(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "more.txt").write_text("a\nb\n")
    found = spec(tmp_path, requirements="-r more.txt\nc\n")
    assert floating.pieces(found) == ("3 packages",)
    assert floating.pieces(replace(found, packages=PACKAGES)) == ()


def test_images_float_by_name_and_not_by_digest(tmp_path: Path) -> None:
    found = spec(tmp_path, "COPY --from=uv:1 /a /b\nCOPY --from=mc:2 /a /b\n", base="tf:1")
    assert floating.pieces(found) == ("base", "2 other images")
    assert floating.pieces(replace(found, pins={"tf:1": f"tf@{DIGEST}", "uv:1": f"uv@{DIGEST}"})) == ("1 other image",)
    assert floating.text(floating.pieces(found)) == "floating: base, 2 other images"


def test_a_base_without_a_registry_floats_unless_the_image_stands_on_the_locked_one(tmp_path: Path) -> None:
    recipe = BaseRecipe(suite="bookworm", packages=(), source_date_epoch=0)
    found = spec(tmp_path, base="debian:bookworm", bootstrap=recipe)
    assert floating.pieces(found) == ("base",)
    locked = replace(found, expected={found.base_reference: DIGEST})
    assert floating.pieces(locked) == ()
    assert floating.pieces(locked, DIGEST) == ()
    assert floating.pieces(locked, "sha256:other") == ("base",)


def test_what_steps_fetch_floats_unless_they_have_no_network(tmp_path: Path) -> None:
    lines = "RUN apt-get update && apt-get install -y git\nADD https://example.com/x.tar /x\n"
    assert floating.pieces(spec(tmp_path, lines)) == ("apt-get install", "1 URL")
    assert floating.pieces(spec(tmp_path, lines, build=BuildConfig(network="none"))) == ("1 URL",)
