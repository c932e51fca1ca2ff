"""How `repro rebuild --verify` tells what it found."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from repro.images import verification
from repro.images.sameness import Difference, LayerDifference
from repro.images.verification import Verification

SAME = Verification(
    tag="my-tf:0123456789abcdef",
    spec="0123456789abcdef" * 4,
    builder="classic",
    identical=True,
    layers=(("sha256:a", "sha256:b"), ("sha256:a", "sha256:b")),
    varied=("time (3 s later)",),
    not_varied=(),
    differences=(),
    present=None,
    present_differences=(),
)


def difference(path: str, cause: str = "a cause", **what: tuple[object, object]) -> Difference:
    return Difference(path=path, what=what or {"time": (1, 2)}, cause=cause, remedy=f"what helps against {cause}")


def layer(*differences: Difference, made_by: str = "RUN /bin/sh -c make # buildkit") -> LayerDifference:
    return LayerDifference(
        number=2, made_by=made_by, diff_ids=("sha256:b", "sha256:c"), paths=1234, differences=differences
    )


def different(*layers: LayerDifference) -> str:
    return verification.text(replace(SAME, identical=False, differences=layers))


def test_equal_layers_are_listed() -> None:
    assert verification.text(SAME).splitlines() == [
        "my-tf:0123456789abcdef  repeatable: two builds gave the same 2 layers, bit for bit",
        "  layer 1  sha256:a",
        "  layer 2  sha256:b",
        "varied      time (3 s later)",
    ]


def test_files_stand_below_their_cause_the_most_frequent_first() -> None:
    found = layer(difference("z", "rare"), difference("b", "usual"), difference("a", "usual", there=(False, True)))
    assert different(found).splitlines()[1:] == [
        "  layer 2  3 of 1,234 paths differ  make",
        "    2 paths: usual",
        "      a  (only in the second)",
        "      b  (time)",
        "      try  what helps against usual",
        "    1 path: rare",
        "      z  (time)",
        "      try  what helps against rare",
        "varied      time (3 s later)",
    ]


def test_of_many_files_with_one_cause_some_are_shown() -> None:
    text = different(layer(*(difference(f"f{number:04}") for number in range(2000))))
    assert "f0004" in text
    assert "f0005" not in text
    assert "and 1,995 more (--json lists all)" in text


def test_layers_whose_files_are_all_equal_are_told_as_such() -> None:
    assert "only their order in the layer" in different(layer())


@pytest.mark.parametrize(
    ("made_by", "shown"),
    [
        ("/bin/sh -c make all", "make all"),
        ("|2 A=1 B=2 /bin/sh -c make all", "make all"),
        ("RUN |1 A=1 /bin/sh -c make all # buildkit", "make all"),
        ("/bin/sh -c #(nop) COPY dir:0123 in / ", "COPY dir:0123 in /"),
        ("COPY /out/ / # buildkit", "COPY /out/ /"),
        ("", ""),
    ],
)
def test_an_instruction_is_shown_as_it_stands_in_the_dockerfile(made_by: str, shown: str) -> None:
    line = different(layer(made_by=made_by)).splitlines()[1]
    assert line == f"  layer 2  0 of 1,234 paths differ  {shown}"


@pytest.mark.parametrize(
    ("present", "more", "said"),
    [
        (True, (), "has these layers, too"),
        (False, (layer(difference("x", there=(False, True))),), "x  (only in the one that is here)"),
    ],
)
def test_the_image_that_is_here_is_compared_too(present: bool, more: tuple[LayerDifference, ...], said: str) -> None:
    assert said in verification.text(replace(SAME, present=present, present_differences=more))
