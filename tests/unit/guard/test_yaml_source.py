"""YAML with places: exact positions, and clean refusals of everything odd."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guard.errors import PolicyError
from guard.yaml_source import MAX_BYTES, read_source, source_from_text


def refusal(text):
    with pytest.raises(PolicyError) as caught:
        source_from_text(text, "p.yaml")
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("~", None),
        ("12", 12),
        ("-1.5e3", -1500.0),
        ("1.2.0", "1.2.0"),
        ("2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z"),
        ('"12"', "12"),
        ("!", None),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text, value):
    if text == "!":
        assert refusal("a: !!int 3").code == "tag"
    else:
        assert source_from_text(f"a: {text}", "p.yaml").root.plain() == {"a": value}


@pytest.mark.parametrize(
    "text",
    [
        "when: max(prompt.a) > 1 or BAD",
        'when: "max(prompt.a) > 1 or BAD"',
        "when: 'max(prompt.a) > 1 or BAD'",
        "when: max(prompt.a) > 1\n  or\n    BAD\n",
        "when: >-\n  max(prompt.a) > 1\n  or   BAD\n",
        "when: |\n    max(prompt.a) > 1 or\n    BAD and\n    more\n",
        "when: >  # BAD luck\n  max(prompt.a) > 1 or\n  BAD\nnext: 1\n",
        'when: "max(prompt.a) \\\n   > 1 or BAD"',
        "when: 'it''s BAD'",
        'when: "\\"quoted\\" BAD"',
        "# über\nwhen:   max(prompt.ä) BAD",
        "{id: x, when: max(prompt.a) BAD}",
    ],
)
def test_an_offset_in_a_scalar_is_found_in_the_file(text):
    source = source_from_text(text, "p.yaml")
    offset = source.root.plain()["when"].index("BAD")
    problem = source.problem(("when",), "x", "m", offset=offset)
    at = text.rindex("BAD")
    assert problem.line == text.count("\n", 0, at) + 1
    assert problem.source_line[problem.col - 1 :].startswith("BAD")


def test_a_path_to_nothing_points_at_its_parent():
    source = source_from_text("rules:\n  - id: a\n", "p.yaml")
    problem = source.problem(("rules", 0, "then", "block"), "x", "m")
    assert (problem.line, problem.col) == (2, 5)


def test_aliases_are_expanded():
    source = source_from_text("a: &x {b: 1}\nc: [*x, *x]\n", "p.yaml")
    assert source.root.plain() == {"a": {"b": 1}, "c": ({"b": 1}, {"b": 1})}


@pytest.mark.parametrize(
    ("text", "code", "line", "col"),
    [
        ("", "empty", 1, 1),
        ("# only a comment\n", "empty", 1, 1),
        ("a: 1\na: 2\n", "duplicate-key", 2, 1),
        ("a: 1\nb: !!python/object:os.system x\n", "tag", 2, 4),
        ("a: 1\n\tb: 2\n", "yaml", 2, 1),
        ("a: [1, 2\n", "yaml", 2, 1),
        ("a: 1\n---\nb: 2\n", "yaml", 3, 1),
        ("a: *nothing\n", "yaml", 1, 4),
        ("a: &x [*x]\n", "yaml", 1, 8),
        ("? [1, 2]\n: 3\n", "yaml", 1, 3),
        ("[" * 50 + "]" * 50, "too-deep", 1, 33),
        ("- 1\n" * 10_001, "too-large", 1, 1),
        ("a: \x01\n", "yaml", 1, 4),
        ('a: "\\UFFFFFFFF"\n', "yaml", 1, 1),
    ],
)
def test_refuses_with_a_place(text, code, line, col):
    problem = refusal(text)
    assert (problem.code, problem.line, problem.col) == (code, line, col)


def test_an_alias_bomb_is_counted_and_not_expanded():
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert refusal("\n".join(levels)).code == "too-large"


@pytest.mark.parametrize(
    ("data", "code", "line", "col"),
    [
        (b"a: 1\nb: \xff\n", "encoding", 2, 4),
        (b"a" * (MAX_BYTES + 1), "too-large", 1, 1),
    ],
)
def test_files_that_are_not_text(tmp_path, data, code, line, col):
    file = tmp_path / "p.yaml"
    file.write_bytes(data)
    with pytest.raises(PolicyError) as caught:
        read_source(file)
    (problem,) = caught.value.problems
    assert (problem.code, problem.line, problem.col) == (code, line, col)


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_source(file).root.plain() == {"a": 1, "b": 2}


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_an_unreadable_file(tmp_path, name):
    with pytest.raises(PolicyError, match="cannot read"):
        read_source(tmp_path / name)


pieces = st.sampled_from(["a: ", "- ", "\n", "  ", "{", "}", "[", "]", "&x ", "*x", "!t ", "'", '"', "\\", "|\n", "#", "%YAML 1.1\n", "---\n", "...", "? ", ": ", ",", "\t", "<<: ", "\u2028", "@"])  # fmt: skip


@given(st.one_of(st.text(max_size=40), st.lists(pieces, max_size=20).map("".join)))
@example("%YAML 9.9\n---\na")
@example("%TAG ! a\n---\n!x y")
@example('"\\x"')
@example("a: |99\n b")
def test_any_text_is_read_or_refused_cleanly(text):
    try:
        source_from_text(text, "p.yaml").root.plain()
    except PolicyError as error:
        assert error.problems  # noqa: PT017
