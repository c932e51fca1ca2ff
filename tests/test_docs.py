"""The documents: links lead somewhere, and what they tell a user to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from repro import cli, experiment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def verbs() -> set[str]:
    """Those that `repro --help` lists."""
    (listed,) = re.findall(r"^  \{?VERB\}?\n((?:    .*\n)+)", cli.parser().format_help(), re.MULTILINE)
    return set(re.findall(r"^    ([\w-]+)", listed, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_to_files(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_verb_that_is_named_exists(page: Path) -> None:
    named = set(re.findall(r"(?:^|[`;(] ?)repro ([a-z]+(?:-[a-z]+)*)", page.read_text(), re.MULTILINE))
    assert named - verbs() == set()


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        (experiment.Experiment, ""),
        (experiment.Resources, "resources."),
        (experiment.Outputs, "outputs."),
        (experiment.Tracking, "tracking."),
        (experiment.ImageConfig, "image."),
        (experiment.BuildConfig, "build."),
    ],
)
def test_every_key_is_in_the_reference(kind: type[msgspec.Struct], prefix: str) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    groups = {"image", "build", "data", "resources", "outputs", "tracking"} if not prefix else set()
    keys = {prefix + field.name for field in msgspec.structs.fields(kind) if field.name not in groups}
    assert {key for key in keys if f"`{key}`" not in text} == set()
