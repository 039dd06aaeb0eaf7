"""Settled text: what may be shown, and when."""

from hypothesis import example, given
from hypothesis import strategies as st

from server.engines.base import Token
from server.engines.detokenize import SettledText, stream_decoder, token_bytes
from tests.tiny_tokenizer import tiny_tokenizer


def settle(pieces, stop=()):
    """Feed pieces (None: bytes of an unfinished character); return what settled after each, and at the end."""
    text = SettledText(lambda index: pieces[index], stop)
    shown = []
    for index in range(len(pieces)):
        shown.append([token.text for token in text.push(Token(index, ""))])
        if text.stopped:
            return shown, None
    return shown, [token.text for token in text.flush()]


def test_without_stop_strings_each_token_settles_at_once():
    assert settle(["a", "b"]) == ([["a"], ["b"]], [])


def test_an_unfinished_character_waits_for_its_last_byte():
    assert settle([None, None, "é", "x"]) == ([[], [], ["", "", "é"], ["x"]], [])


def test_a_possible_stop_string_waits_until_it_is_sure():
    assert settle(["a", "<", "b"], stop=["</s>"]) == ([["a"], [], ["<", "b"]], [])
    assert settle(["a", "<"], stop=["</s>"]) == ([["a"], []], ["<"])


def test_a_stop_string_cuts_within_a_token_and_across_tokens():
    assert settle(["ab", "c</", "s> tail"], stop=["</s>"]) == ([["ab"], [], ["c"]], None)
    assert settle(["one STOP two"], stop=["STOP"]) == ([["one "]], None)


def test_the_earliest_of_several_stop_strings_wins():
    assert settle(["a.b,c"], stop=[",", "."]) == ([["a"]], None)


@given(
    st.lists(st.text("abc", max_size=3), max_size=8),
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=2),
)
@example(["ab", "a"], ["b", "aba"])
def test_what_settles_is_the_text_up_to_the_first_stop_string_that_completes(pieces, stop):
    shown, rest = settle(pieces, stop)
    told = "".join(text for texts in [*shown, rest or []] for text in texts)
    assert told == cut(pieces, stop)


def cut(pieces, stop):
    """The plain definition: generate until some stop string is in the text, then cut before it."""
    text = ""
    for piece in pieces:
        text += piece
        ends = [at for s in stop if (at := text.find(s)) >= 0]
        if ends:
            return text[: min(ends)]
    return text


@given(
    st.lists(st.text("abc", max_size=3), max_size=8),
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=2),
)
def test_nothing_that_was_shown_is_taken_back(pieces, stop):
    """At each point, what is shown is a prefix of the final text, and no token is shown before it was fed."""
    shown, rest = settle(pieces, stop)
    final = "".join(text for texts in [*shown, rest or []] for text in texts)
    sofar = ""
    for fed, texts in enumerate(shown, start=1):
        sofar += "".join(texts)
        assert final.startswith(sofar)
        assert "".join(pieces[:fed]).startswith(sofar)


def test_the_stream_decoder_equals_decoding_the_whole():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("Hello there, you.")["input_ids"]
    decode = stream_decoder(tokenizer, [1, 9])
    assert "".join(decode(i) or "" for i in ids) == "Hello there, you."


def test_a_special_token_has_no_text_and_does_not_wait():
    assert stream_decoder(tiny_tokenizer(), [1])(2) == ""


def test_token_bytes():
    assert token_bytes("a", "a") == b"a"
    assert token_bytes("<0xE2>", "\ufffd") == b"\xe2"
    assert token_bytes("âĤ", "\ufffd") == b"\xe2\x82"
