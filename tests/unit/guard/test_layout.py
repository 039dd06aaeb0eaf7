"""The canonical layout never changes meaning, keeps every comment where it belongs, and is stable."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.errors import PolicyError
from guard.layout import formatted
from guard.policy import policy_from_text

HERE = Path(__file__).parent
PAGE = (HERE.parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
FILES = [
    *(path.read_text(encoding="utf-8") for path in sorted((HERE / "policies").glob("*.yaml"))),
    *re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL),
]

UNTIDY = """\
# top
kind: Policy
apiVersion: interlock/v1
# about the metadata
metadata: {version: "1", name: p} # eol

rules:
# first rule
- when: max(prompt.harm)  >  0.90
  # why it is called a
  id: a
  then: {block: {message: "it's # no"}}

# second
-   id: b
    then:
        steer:
           strength: 1.50   # strong
           vector: v
    description: |
       hello
         # not a comment
       bye
    # after the text
    when: >
      max(prompt.harm) > 0.5 and
      max(prompt.x) > 1e-1
tests:
  - expect: {action: block}
    name: x
    given:
      now: 2026-11-20T02:00:00+02:00
      prompt: {harm: "0.95",
         x: 0.5}
# the end
"""

TIDY = """\
# top
apiVersion: interlock/v1
kind: Policy
# about the metadata
metadata: {name: p, version: "1"}  # eol

rules:
  # first rule
  # why it is called a
  - id: a
    when: max(prompt.harm)  >  0.90
    then: {block: {message: "it's # no"}}

  # second
  - id: b
    description: |
      hello
        # not a comment
      bye
    # after the text
    when: >
      max(prompt.harm) > 0.5 and
      max(prompt.x) > 1e-1
    then:
      steer:
        vector: v
        strength: 1.50  # strong
tests:
  - name: x
    given:
      now: 2026-11-20T02:00:00+02:00
      prompt: {harm: "0.95", x: 0.5}
    expect: {action: block}
# the end
"""


def test_keys_are_ordered_lines_indented_and_comments_kept():
    assert formatted(UNTIDY, "p.yaml") == TIDY


@pytest.mark.parametrize("text", [*FILES, TIDY])
def test_the_layout_is_stable_and_means_the_same(text):
    once = formatted(text, "p.yaml")
    assert formatted(once, "p.yaml") == once
    if "kind: Policy" in text:
        assert policy_from_text(once).digest == policy_from_text(text).digest


def test_line_ends_of_windows_and_a_byte_order_mark_go():
    assert formatted(UNTIDY.replace("\n", "\r\n"), "p.yaml") == TIDY
    assert formatted("\ufeff" + UNTIDY, "p.yaml") == TIDY


def test_anchors_stay_before_their_aliases():
    text = TIDY.replace(
        "then: {block: {message", "match: &m {tenants: [x]}\n    then: {block: {message"
    ).replace("    description: |", "    match: *m\n    description: |")
    assert policy_from_text(formatted(text, "p.yaml")).digest == policy_from_text(text).digest


def test_a_file_that_is_not_a_policy_is_refused_with_its_problems():
    with pytest.raises(PolicyError, match="unknown key 'whne'"):
        formatted(UNTIDY.replace("when:", "whne:"), "p.yaml")


COMMENTED = [i for i, line in enumerate(UNTIDY.split("\n")) if line and "hello" not in line]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(COMMENTED),
            st.sampled_from(["# c{}", "  # c{}", "    # c{}", "         # c{}", "", "   ", "\t# c{}"]),
        ),
        max_size=6,
    ),
    st.lists(
        st.tuples(st.sampled_from(COMMENTED), st.sampled_from(["  # e{}", "   ", "\t", " #e{} # '"])),
        max_size=4,
    ),
)
def test_whatever_comments_there_are_nothing_is_lost_or_it_is_refused(inserted, appended):
    """The promise is kept by the check at the end of `formatted`; most layouts get through it."""
    lines = UNTIDY.split("\n")
    for n, (at, extra) in enumerate(appended):
        lines[at] += extra.format(n)
    for n, (at, comment) in enumerate(sorted(inserted, reverse=True)):
        lines.insert(at, comment.format(n))
    text = "\n".join(lines)
    try:
        before = policy_from_text(text)
        once = formatted(text, "p.yaml")
    except PolicyError:
        return
    assert policy_from_text(once).digest == before.digest
    for comment in re.findall(r"# ?[ce]\d", text):
        assert comment in once
    assert formatted(once, "p.yaml") == once
