"""Text out of tokens: characters of several tokens, texts that end a reply, and what is held back meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_ray.inference.chat import ChatTokenizer
from selfplay_ray.inference.requests import TokenChunk
from selfplay_ray.inference.server.reply import Detokenizer, Piece, Reply, ReplyReader, StopTexts
from selfplay_ray.types import FinishReason

EOS = 0


def decode(token_ids: Sequence[int]) -> str:
    """Each token a byte."""
    return bytes(token_ids).decode("utf-8", "replace")


def chunk(text: bytes, finish: FinishReason | None = None) -> TokenChunk:
    size = len(text)
    return TokenChunk(tuple(text), tuple(-float(b) for b in text), (0,) * size, ((),) * size, finish)


def read(reader: ReplyReader, *chunks: TokenChunk) -> tuple[Reply, list[Piece]]:
    reply, pieces = Reply(), []
    for one in chunks:
        pieces.append(reader.read(one))
        reply.add(pieces[-1])
        if pieces[-1].finish_reason:
            break
    return reply, pieces


def test_a_character_is_shown_when_its_bytes_are_there():
    detokenizer = Detokenizer(decode)
    shown = [detokenizer.add([byte]) for byte in "aé€!".encode()]
    assert shown == ["a", "", "é", "", "", "€", "!"]


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    detokenizer = Detokenizer(decode)
    assert detokenizer.add([0xE2]) == ""
    assert detokenizer.add([0x82], last=True) == "\ufffd"


@given(st.text(max_size=30), st.lists(st.integers(1, 5), max_size=60))
def test_the_pieces_are_the_text(text: str, sizes: list[int]):
    data, detokenizer, shown = text.encode(), Detokenizer(decode), ""
    for size in sizes:
        shown += detokenizer.add(data[:size])
        data = data[size:]
    assert shown + detokenizer.add(data, last=True) == text


def test_the_real_tokenizer_piece_by_piece(chat: ChatTokenizer):
    text = "Grüße 你好 👩‍👩‍👧 “quoted”  spaces\n\nend"
    detokenizer = Detokenizer(lambda tokens: chat.text_of(tokens, skip_special_tokens=True))
    tokens = chat.encode_text(text)
    assert (
        "".join(detokenizer.add([token], last=i == len(tokens) - 1) for i, token in enumerate(tokens)) == text
    )


def test_what_may_begin_a_stop_text_is_held_back():
    stops = StopTexts(("END",), include=False)
    # "E" and "EN" may become END; "ENx" can't.
    assert [stops.add(part) for part in ("aE", "N", "x", "E", "ND b")] == [
        ("a", None),
        ("", None),
        ("ENx", None),
        ("", None),
        ("", "END"),
    ]


@pytest.mark.parametrize(("include", "text"), [(False, "one "), (True, "one two")])
def test_the_first_stop_text_ends_the_reply(include: bool, text: str):
    reader = ReplyReader(decode, ["three", "two"], include_stop=include)
    reply, _ = read(reader, chunk(b"one t"), chunk(b"wo three"), chunk(b"never"))
    assert (reply.text, reply.finish_reason, reply.stop_reason) == (text, "stop", "two")
    # The tokens are those sampled, up to the one that completed the stop text.
    assert bytes(reply.token_ids) == b"one two"
    assert reply.logprobs == [-float(byte) for byte in b"one two"]


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3))
def test_a_stop_text_cuts_as_if_the_whole_text_had_been_searched_token_by_token(text: str, stops: list[str]):
    reply, _ = read(
        ReplyReader(decode, stops), *(chunk(bytes([b])) for b in text.encode()), chunk(b"", "length")
    )
    ends = [end for end in range(1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if not ends:
        assert (reply.text, reply.finish_reason) == (text, "length")
        return
    seen = text[: ends[0]]
    assert reply.text == seen[: min(seen.find(stop) for stop in stops if stop in seen)]
    assert reply.finish_reason == "stop"


def test_a_stop_text_does_not_count_before_min_tokens():
    reply, _ = read(ReplyReader(decode, ["x"], min_tokens=3), chunk(b"ax"), chunk(b"bx"), chunk(b"c"))
    assert (reply.text, reply.stop_reason) == ("axb", "x")


def test_the_token_that_ends_a_reply_is_a_token_but_no_text():
    reply, _ = read(ReplyReader(decode, end_of_turn={EOS}), chunk(b"hi"), chunk(b"!\x00", "stop"))
    assert (reply.text, reply.token_ids, reply.stop_reason) == ("hi!", [*b"hi!\x00"], None)
    other, _ = read(ReplyReader(decode, end_of_turn={EOS}), chunk(b"hi!", "stop"))
    assert (other.text, other.stop_reason) == ("hi", ord("!"))
    shown, _ = read(ReplyReader(decode, include_stop=True), chunk(b"hi!", "stop"))
    assert shown.text == "hi!"


def test_what_was_held_back_is_shown_when_the_reply_ends_otherwise():
    reply, pieces = read(ReplyReader(decode, ["END"]), chunk(b"the E"), chunk(b"N", "length"))
    assert [piece.text for piece in pieces] == ["the ", "EN"]
    assert (reply.text, reply.finish_reason, reply.stop_reason) == ("the EN", "length", None)
