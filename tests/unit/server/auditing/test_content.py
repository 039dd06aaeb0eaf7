"""What of the texts is recorded, and above all what is not."""

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.policy import policy_from_text
from server.auditing.content import ContentRules, PromptText, excerpt, read_key
from server.auditing.errors import AuditError

KEY = b"0123456789abcdef0123456789abcdef"


def policy(content):
    return policy_from_text(
        "apiVersion: interlock/v1\nkind: Policy\nmetadata: {name: p, version: '1'}\n"
        f"defaults: {{log: {{content: {content}}}}}\n"
    )


def content(asked, allowed, *reply, key=KEY, prompt="my prompt"):
    capture = ContentRules(allowed, key, 20).capture(policy(asked), lambda: PromptText.completion(prompt))
    for part in reply:
        capture.add_reply(part)
    return capture and capture.record()


def test_the_policy_gets_no_more_than_the_operator_allows():
    assert content("full", "hash").keys() == {"mode", "key", "prompt_hmac"}
    assert content("hash", "full").keys() == {"mode", "key", "prompt_hmac"}
    assert content("full", "none") is None


def test_without_content_the_prompt_is_not_even_asked_for():
    def prompt():
        raise AssertionError

    assert ContentRules("full", KEY).capture(policy("none"), prompt) is None


def test_hashes_are_plain_hmacs_of_the_texts():
    def expected(text):
        return "hmac-sha256:" + hmac.new(KEY, text.encode(), "sha256").hexdigest()

    told = content("hash", "hash", "one ", "two")
    assert told["prompt_hmac"] == expected("my prompt")
    assert told["reply_hmac"] == expected("one two")
    chat = PromptText.chat([{"role": "user", "content": "é"}])
    assert chat.whole == '[{"role":"user","content":"é"}]'


def test_the_key_is_named_but_never_told():
    told = content("hash", "hash", "reply")
    assert KEY.decode() not in str(told)
    assert content("hash", "hash", key=b"another key of 16 bytes or more")["key"] != told["key"]


def test_full_is_all_of_it_and_excerpts_are_its_beginning():
    told = content("full", "full", "a" * 300, "b" * 300)
    assert (told["prompt"], told["reply"]) == ("my prompt", "a" * 300 + "b" * 300)
    told = content("excerpt", "excerpt", "some words ", "and some more of them")
    assert told["reply_excerpt"] == "some words and some "


def test_excerpts_are_masked():
    text = "call +49 151 2345, mail joe.doe@example.com, key sk-abcdefghijklmnopqrstuv, ok"
    assert excerpt(text, 200) == "call +## ### ####, mail [email] key [token], ok"


@given(st.integers(0, 60), st.sampled_from([200, 20, 300, 456]))
def test_a_cut_does_not_uncover_what_a_mask_would_have_hidden(shift, num_chars):
    """The cut may run through the address, or the masks may pull its beginning in."""
    text = (
        "lorem " * 40 + "x" * 60 + " ipsum" * 20 + "." * shift + " secret.name@example.com " + "dolor " * 80
    )
    shown = excerpt(text, num_chars)
    assert len(shown) <= num_chars
    assert "secret" not in shown


@given(st.text(), st.integers(1, 50))
def test_no_digit_and_no_at_sign_gets_through(text, num_chars):
    shown = excerpt(text, num_chars)
    assert "@" not in shown
    assert not any(char.isdecimal() for char in shown)


@given(st.lists(st.text(max_size=200), max_size=10))
def test_a_streamed_reply_gives_the_excerpt_of_the_whole(parts):
    assert content("excerpt", "full", *parts)["reply_excerpt"] == excerpt("".join(parts), 20)


def test_hash_without_a_key_is_refused_with_a_remedy():
    rules = ContentRules("hash", None)
    with pytest.raises(AuditError, match="openssl rand -hex 32") as refused:
        rules.check(policy("hash"))
    assert "INTERLOCK__AUDIT_HMAC_KEY_FILE" in str(refused.value)
    with pytest.raises(AuditError):
        rules.check(policy("full"))  # lowered to hash
    rules.check(policy("none"))
    ContentRules("full", None).check(policy("excerpt"))


def test_keys_come_from_a_file_or_the_environment(tmp_path):
    file = tmp_path / "key"
    file.write_bytes(KEY + b"\n")
    assert read_key(None, file) == read_key(KEY.decode(), None) == KEY
    assert read_key(None, None) is None
    file.write_bytes(b"too short")
    with pytest.raises(AuditError, match="9 bytes; at least 16") as refused:
        read_key(None, file)
    assert "too short" not in str(refused.value)
    with pytest.raises(AuditError, match="No such file"):
        read_key(None, tmp_path / "nowhere")


def test_end_users_are_told_apart_but_not_named():
    assert ContentRules("none", KEY).subject("joe").startswith("hmac-sha256:")
    assert ContentRules("none", None).subject("joe") == ""
