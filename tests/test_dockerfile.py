"""A Dockerfile is read as the builders read it: what it takes from the context, and what it needs of a builder."""

from __future__ import annotations

import pytest

from repro.build import dockerfile
from repro.errors import BadInputError


def sources(lines: str, *, target: str | None = None, **build_args: str) -> list[str]:
    copies = dockerfile.local_copies(f"FROM base\n{lines}\n", build_args, target)
    return [source for copy in copies for source in copy.sources]


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("COPY a.txt /x/", ["a.txt"]),
        ("copy a.txt /x/", ["a.txt"]),
        ("COPY a.txt b/c.txt /x/", ["a.txt", "b/c.txt"]),
        ("COPY ./a/ /a/b.txt //c /x/", ["a", "a/b.txt", "c"]),
        ("COPY . /x/", ["."]),
        ("COPY ./ /x/", ["."]),
        ("COPY / /x/", ["."]),
        ("COPY docker/*.txt /x/", ["docker/*.txt"]),
        ('COPY ["a b.txt", "/x/"]', ["a b.txt"]),
        ("COPY --chown=1:1 a.txt /x/", ["a.txt"]),
        ("COPY \\\n  a.txt \\\n  # remark\n  /x/", ["a.txt"]),
        ("ADD a.tar.gz /x/", ["a.tar.gz"]),
        ("COPY --from=build /a /b", []),
        ("ADD https://example.com/a.tgz /x/", []),
        ("ADD git@example.com:a/b.git /x/", []),
        ("COPY <<EOF /x\nCOPY not-this /y\nEOF", []),
        ("COPY a.txt <<EOF /x/\nhello\nEOF", ["a.txt"]),
        ("RUN <<EOF\nCOPY not-this /y\nEOF", []),
        ("# COPY not-this /y", []),
        ("RUN --mount=type=bind,source=wheels,target=/w pip install /w/*", ["wheels"]),
        ("RUN --mount=type=bind,from=build,source=wheels,target=/w true", []),
        ("RUN --mount=type=cache,target=/root/.cache true", []),
    ],
)
def test_what_an_instruction_takes_from_the_context(line: str, taken: list[str]) -> None:
    assert sources(line) == taken


@pytest.mark.parametrize(
    ("lines", "taken"),
    [
        ("ARG F=a.txt\nCOPY $F /x/", ["a.txt"]),
        ("ARG F=a.txt\nCOPY ${F} /x/", ["a.txt"]),
        ('ARG F="a.txt"\nCOPY sub/$F /x/', ["sub/a.txt"]),
        ("ENV F=a.txt\nCOPY $F /x/", ["a.txt"]),
        ("ENV F a.txt\nCOPY $F /x/", ["a.txt"]),
        ("ARG F=a.txt\nENV F=b.txt\nCOPY $F /x/", ["b.txt"]),
        ("ARG D=a\nARG F=$D/b.txt\nCOPY $F /x/", ["a/b.txt"]),
        ("ARG F=a.txt\nCOPY ${F:-b.txt} /x/", ["a.txt"]),
        ("ARG TARGETARCH\nCOPY $TARGETARCH/a /x/", ["$TARGETARCH/a"]),
    ],
)
def test_variables_that_the_dockerfile_decides_are_replaced_and_others_stay(lines: str, taken: list[str]) -> None:
    assert sources(lines) == taken


def test_a_build_argument_wins_over_the_default_only_where_it_is_declared() -> None:
    assert sources("ARG F=a.txt\nCOPY $F /x/", F="given.txt") == ["given.txt"]
    assert sources("ENV F=a.txt\nCOPY $F /x/", F="given.txt") == ["a.txt"]


def test_an_argument_before_the_first_from_reaches_the_stages_that_ask_for_it() -> None:
    text = "ARG F=a.txt\nFROM one\nARG F\nCOPY $F /x/\n"
    assert dockerfile.local_copies(text, {})[0].sources == ("a.txt",)


def test_stages_behind_the_target_do_not_count() -> None:
    lines = "COPY a.txt /x/\nFROM base AS wanted\nCOPY b.txt /x/\nFROM base\nCOPY c.txt /x/"
    assert sources(lines) == ["a.txt", "b.txt", "c.txt"]
    assert sources(lines, target="wanted") == ["a.txt", "b.txt"]
    assert sources(lines, target="0") == ["a.txt"]


def test_a_copy_knows_its_line_and_text() -> None:
    (copy,) = dockerfile.local_copies("# remark\n\nFROM base\nRUN a \\\n && b\nCOPY x /y\n", {})
    assert (copy.line, copy.text) == (6, "COPY x /y")


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("# syntax=docker/dockerfile:1\nFROM base\n", 1, "docker/dockerfile:1"),
        ("# check=skip=all\n# syntax = x/y\nFROM base\n", 2, "x/y"),
        ("FROM base\nRUN --mount=type=cache,target=/c true\n", 2, "RUN --mount"),
        ("FROM base\nRUN --network=none true\n", 2, "RUN --network"),
        ("FROM base\nRUN <<EOF\ntrue\nEOF\n", 2, "here-document in RUN"),
        ("FROM base\nCOPY <<EOF /x\nhi\nEOF\n", 2, "here-document in COPY"),
        ("FROM base\nCOPY --link a /x\n", 2, "COPY --link"),
        ("FROM base\nCOPY --chmod=755 a /x\n", 2, "COPY --chmod"),
        ("FROM base\nADD --checksum=sha256:0 https://example.com/a /x\n", 2, "ADD --checksum"),
    ],
)
def test_what_only_buildkit_can_do_is_found_with_its_line(text: str, line: int, what: str) -> None:
    need = dockerfile.needs_buildkit(text)
    assert need is not None
    assert need.line == line
    assert what in need.what


@pytest.mark.parametrize(
    "text",
    [
        "FROM base\nCOPY --chown=1:1 --from=base a /x\nRUN echo --mount=x <file\n",
        "FROM base\n# syntax=x\n",
        "# a remark\n# syntax=x\nFROM base\n",
    ],
)
def test_what_the_classic_builder_knows_needs_nothing(text: str) -> None:
    assert dockerfile.needs_buildkit(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ""),
        ("RUN true\n", "no FROM"),
        ("FROM base\nCOPY a\n", "line 2"),
        ("FROM base\nCOPY <<EOF /x\nnever ends\n", ""),
    ],
)
def test_what_is_no_dockerfile_is_the_users_to_correct(text: str, said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        dockerfile.local_copies(text, {})
    assert "the Dockerfile cannot be read" in caught.value.what
    assert said in str(caught.value)


def test_a_step_is_found_by_its_number_and_by_its_text() -> None:
    text = "# remark\nFROM base\n\nRUN one \\\n  two\nENV a=b\n"
    assert [dockerfile.line_of_step(text, step) for step in (0, 1, 2, 3, 4)] == [None, 2, 4, 6, None]
    assert dockerfile.line_of(text, "RUN one   two") == 4
    assert dockerfile.line_of(text, "RUN other") is None


# images from outside ---------------------------------------------------------------------------------------------

OUTSIDE = """\
# syntax=docker/dockerfile:1
ARG BASE_IMAGE
ARG OTHER=debian:12
FROM ${BASE_IMAGE} AS one
RUN --mount=type=bind,from=busybox:1,target=/b \\
    apt-get update && apt-get install -y git \\
    && curl -O x
COPY --from=registry.example.com:5000/uv:0.9 /uv /bin/
COPY --from=one /a /b
FROM scratch AS nothing
FROM ${OTHER}-slim AS last
COPY --from=0 /a /b
FROM never:1
"""


def test_every_image_from_outside_is_found_up_to_the_target() -> None:
    found = dockerfile.references(OUTSIDE, {"BASE_IMAGE": "tf:1"}, "last")
    assert [(each.line, each.kind, each.image) for each in found] == [
        (1, "syntax", "docker/dockerfile:1"),
        (4, "FROM", "tf:1"),
        (5, "RUN", "busybox:1"),
        (8, "COPY", "registry.example.com:5000/uv:0.9"),
        (11, "FROM", "debian:12-slim"),
    ]
    assert dockerfile.references(OUTSIDE, {"BASE_IMAGE": "tf:1"})[-1].image == "never:1"


def test_pins_take_the_place_of_names_and_no_line_moves() -> None:
    found = dockerfile.references(OUTSIDE, {"BASE_IMAGE": "tf:1"}, "last")
    pinned = dockerfile.pinned(OUTSIDE, found, {each.image: f"pin{number}" for number, each in enumerate(found)})
    before, after = OUTSIDE.splitlines(), pinned.splitlines()
    assert {number: line for number, (line, old) in enumerate(zip(after, before, strict=True), 1) if line != old} == {
        1: "# syntax=pin0",
        4: "FROM pin1 AS one",
        5: "RUN --mount=type=bind,from=pin2,target=/b \\",
        8: "COPY --from=pin3 /uv /bin/",
        11: "FROM pin4 AS last",
    }
    assert dockerfile.pinned(OUTSIDE, found, {}) == OUTSIDE


def test_a_pin_goes_where_the_reference_stands_and_not_into_a_name_that_begins_like_it() -> None:
    text = "FROM a:1 AS a\nRUN --mount=type=bind,from=b,target=/b \\\n  --mount=type=bind,source=b,target=/c true\n"
    found = dockerfile.references(text, {})
    assert dockerfile.pinned(text, found, {"a:1": "P", "b": "Q"}) == text.replace("a:1", "P").replace(
        "from=b", "from=Q"
    )


def test_a_pin_leaves_other_words_of_the_instruction_alone() -> None:
    text = (
        "FROM a\nCOPY --chown=node --from=node /a /b\nRUN --mount=type=cache,id=tools,from=tools,target=/node tools\n"
        'COPY --from="node" /c /d\n'
    )
    pinned = dockerfile.pinned(text, dockerfile.references(text, {}), {"node": "P", "tools": "Q"})
    assert "--chown=node --from=P /a" in pinned
    assert "id=tools,from=Q,target=/node tools" in pinned


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("apk --no-cache add git", "apk add"),
        ("dnf -y install git", "dnf install"),
        ("apt-get update && \\\n  apt-get install -y git", "apt-get install"),
        ("pip install numpy", "pip install"),
        ("pip install -r /tmp/r.txt", None),
        ("pip install --no-deps ./x", None),
        ("pip install --no-index x", None),
        ('pip install --no-deps "$@"', None),
        ("echo pip installed", None),
    ],
)
def test_commands_that_fetch_are_known_with_their_options(command: str, told: str | None) -> None:
    assert dockerfile.network_commands(f"FROM a\nRUN {command}\n") == ((told,) if told else ())


def test_what_the_network_gives_is_told() -> None:
    assert dockerfile.network_commands(OUTSIDE) == ("apt-get install", "curl")
    assert dockerfile.network_commands("FROM a\nRUN --network=none curl x\nRUN echo curly\n") == ()
    text = "FROM a\nADD https://x/y.tar /t\nADD --checksum=sha256:0a https://x/z.tar /t\nADD local.tar /t\n"
    assert dockerfile.unpinned_urls(text, {}) == ("https://x/y.tar",)
