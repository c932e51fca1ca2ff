"""No secret leaves a masker, however it is cut, and nothing else is changed."""

from __future__ import annotations

import base64
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.secrets.masking import Masker

SECRET = b"hunter2-hunter2!"


def through(values: list[bytes], chunks: list[bytes]) -> bytes:
    masker = Masker(values)
    return b"".join(map(masker.feed, chunks)) + masker.flush()


def pieces(text: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[begin:end] for begin, end in itertools.pairwise(ends)]


def test_a_secret_becomes_as_many_asterisks_as_it_has_bytes() -> None:
    assert through([SECRET], [b"token=" + SECRET + b"\n"]) == b"token=" + b"*" * len(SECRET) + b"\n"
    assert through([b"geheim\xc3\xbc"], [b"<geheim\xc3\xbc>"]) == b"<********>"


@pytest.mark.parametrize("size", range(1, 20))
def test_it_is_found_across_pieces_of_any_size(size: int) -> None:
    text = b"a" + SECRET + b"b" + SECRET + SECRET + b"hunter2-hunt"
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    stars = b"*" * len(SECRET)
    assert through([SECRET], chunks) == b"a" + stars + b"b" + stars + stars + b"hunter2-hunt"


# few letters, so that secrets overlap with one another and with themselves
letters = st.binary(min_size=4, max_size=7).map(lambda raw: bytes(b"ab"[byte % 2] for byte in raw))
texts = st.lists(st.one_of(letters, st.just(b"\n"), st.just(b"abxba")), max_size=12).map(b"".join)


@given(values=st.lists(letters, min_size=1, max_size=3), text=texts, cuts=st.lists(st.integers(0, 90), max_size=9))
def test_every_byte_of_an_occurrence_and_no_other_is_masked(values: list[bytes], text: bytes, cuts: list[int]) -> None:
    expected = bytearray(text)
    for pattern in Masker(values).patterns:
        for at in range(len(text)):
            if text.startswith(pattern, at):
                expected[at : at + len(pattern)] = b"*" * len(pattern)
    assert through(values, pieces(text, cuts)) == bytes(expected)


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_what_has_come_out_is_never_behind_by_more_than_a_secret(chunks: list[bytes]) -> None:
    masker = Masker([SECRET])
    came = went = 0
    for chunk in chunks:
        came, went = came + len(chunk), went + len(masker.feed(chunk))
        assert 0 <= came - went < len(SECRET)


def test_text_that_cannot_become_a_secret_is_not_held_back() -> None:
    assert Masker([SECRET]).feed(b"step 1 of 10") == b"step 1 of 10"
    assert Masker([SECRET]).feed(b"step 1 hunter") == b"step 1 "


def test_a_secret_of_several_lines_is_masked_line_by_line_and_short_lines_are_not() -> None:
    key = b"-----BEGIN KEY-----\nMIIEvQIBADAN\nab\n-----END KEY-----\n"
    assert through([key], [b"x MIIEvQIBADAN\r\nab\n"]) == b"x ************\r\nab\n"
    kept = json.dumps({"private_key": key.decode()}).encode()
    assert b"MIIEvQIBADAN" not in through([kept], [key])


def test_values_under_four_bytes_are_left_alone() -> None:
    assert through([b"abc", b""], [b"abc abcd"]) == b"abc abcd"
    assert through([], [b"abc"]) == b"abc"


@pytest.mark.parametrize("name", ["", "a", "ab", "abc", "a longer name"])
def test_basic_authentication_shows_no_secret(name: str) -> None:
    value = b"p\xff?>ssw0rd-of-somebody"
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        header = encode(name.encode() + b":" + value + b"\n")
        shown = through([value], [header])
        assert len(shown) == len(header)
        assert shown.count(b"*") >= len(value) * 8 // 6 - 2
        assert not any(value[at : at + 4] in base64.b64decode(shown.replace(b"*", b"A"), b"-_") for at in range(18))


def test_the_form_of_a_secret_in_an_address_is_masked() -> None:
    assert through([b"p@ss/word"], [b"https://me:p%40ss%2Fword@example.com"]) == b"https://me:*************@example.com"


def test_parts_of_a_file_of_passwords_are_masked() -> None:
    netrc = b"machine example.com login me password hunter2\n"
    assert through([netrc], [b"got hunter2"]) == b"got *******"
    assert through([b'TOKEN="abcdefgh"\n'], [b"abcdefgh"]) == b"********"


def test_a_flood_is_masked_as_fast_as_engines_send_it() -> None:
    """No time is asserted; the pytest timeout ends what is quadratic."""
    key = b"".join(b"%064x\n" % (number * 2**200) for number in range(1, 60))
    masker = Masker([key, b"x" * 100_000])
    line = b"step 12345 loss 0.123456789 " * 2340
    assert sum(len(masker.feed(line)) for _ in range(200)) >= 200 * len(line) - 100_000
