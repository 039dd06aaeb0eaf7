"""Data as users have it: what a line means, and what is told of one that can't be read."""

import json
from pathlib import Path

import pytest

from monitors.lab.dataset import Columns, DatasetError, Example, Message, dataset_digest, read_dataset

ASK = {"role": "user", "content": "How are you?"}
SAID = {"role": "assistant", "content": "Well."}
SYSTEM = {"role": "system", "content": "Be brief."}


def read(folder: Path, *lines: object, columns: Columns | None = None) -> tuple[Example, ...]:
    path = folder / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return read_dataset([path], columns)


def roles(example: Example) -> list[str]:
    return [message.role for message in example.messages]


def test_an_assistants_message_at_the_end_is_the_reply(tmp_path: Path):
    whole, apart = read(
        tmp_path,
        {"messages": [SYSTEM, ASK, SAID, ASK, SAID], "label": 1, "group": "g"},
        {"messages": [SYSTEM, ASK, SAID, ASK], "reply": "Well.", "label": 1, "group": "g"},
    )
    assert (roles(whole), whole.reply) == (["system", "user", "assistant", "user"], "Well.")
    assert whole.content == apart.content
    assert whole.plain_text == apart.plain_text


def test_one_that_is_not_at_the_end_or_replies_to_nothing_is_of_the_prompt(tmp_path: Path):
    earlier, alone = read(tmp_path, {"messages": [ASK, SAID, ASK]}, {"messages": [SAID]})
    assert (roles(earlier), earlier.reply) == (["user", "assistant", "user"], None)
    assert (alone.messages, alone.reply) == ((Message("assistant", "Well."),), None)


def test_two_replies_to_one_prompt_are_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"data.jsonl:1: .*give the last turn once"):
        read(tmp_path, {"messages": [ASK, SAID], "reply": "Well."})


def test_names_groups_and_data_sets_have_defaults(tmp_path: Path):
    first, second = read(
        tmp_path, {"text": "a"}, {"text": "b", "id": 7, "group": "g", "dataset": "other", "label": True}
    )
    assert (first.id, first.group, first.dataset, first.label) == ("data:1", "data:1", "data", None)
    assert (second.id, second.group, second.dataset, second.label) == ("7", "g", "other", 1)


def test_fields_of_other_names_and_labels_of_other_values(tmp_path: Path):
    (tmp_path / "data.csv").write_text("prompt,kind,topic\nhello,unsafe,x\nbye,safe,\n")
    found = read_dataset([tmp_path / "data.csv"], Columns("prompt", "kind", "topic", ("unsafe",)))
    assert [(e.text, e.label, e.group) for e in found] == [("hello", 1, "x"), ("bye", 0, "data:3")]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "data.jsonl:1: not JSON"),
        ("[]", "needs an object with 'messages' or 'text'"),
        ({"label": 1}, "needs 'messages'"),
        ({"text": 3}, "needs 'messages'"),
        ({"messages": [{"role": "user"}]}, r"messages.0.content: Field required"),
        ({"text": "secret words", "reply": 3}, "reply: Input should be a valid string"),
    ],
)
def test_a_line_that_can_not_be_read_is_named_and_its_text_is_not_told(
    tmp_path: Path, line: object, told: str
):
    with pytest.raises(DatasetError, match=told) as refused:
        read(tmp_path, line)
    assert "data.jsonl:1" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_files_without_examples_or_of_another_format_or_encoding(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"data\.jsonl: no examples"):
        read(tmp_path, "")
    for name, content, told in (
        ("data.txt", b"a", "give a .jsonl or a .csv file"),
        ("data.jsonl", b'{"text": "\xff"}', "data.jsonl: not UTF-8 text; save it as UTF-8"),
        ("data.csv", b"text\n\xff\n", "data.csv: not UTF-8 text"),
        ("data.csv", b'text\n"' + b"x" * 200_000, "data.csv: not CSV"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=told):
            read_dataset([tmp_path / name])


def test_the_digest_goes_by_content_labels_and_groups():
    example = Example("a", text="hello", label=0, group="g")
    same = Example("b", text="hello", label=0, group="g", tags={"x": "y"})
    assert dataset_digest([example]) == dataset_digest([same])
    others = (Example("a", text="hello", label=1, group="g"), Example("a", text="bye", label=0, group="g"))
    assert len({dataset_digest([e]) for e in (example, *others)}) == 3


def test_texts_never_show_in_a_repr():
    example = Example("a", messages=(Message("user", "secret"),), text="secret", reply="secret")
    assert "secret" not in repr(example)
