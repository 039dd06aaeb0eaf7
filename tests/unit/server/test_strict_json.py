"""Bodies as `server/api/routing.py` reads them: whatever they are made of, in time that grows with their length only."""

import json

import pytest
from starlette.exceptions import HTTPException

from server.api.routing import read

DEEP = "[" * 129
SIZE = 4_000_000  # pairs of characters: as much as a body may be


def nested(depth, inner="1"):
    return "[" * depth + inner + "]" * depth


def refusal(body):
    with pytest.raises(HTTPException) as refused:
        read(body.encode())
    assert refused.value.status_code == 400
    return refused.value.detail


def test_what_stands_in_a_text_nests_nothing():
    body = {"a": DEEP, 'quoted "[[[': r"\"" + DEEP, "ends with a backslash\\": [DEEP + "\\"]}
    assert read(json.dumps(body).encode()) == body


@pytest.mark.parametrize("inner", ["1", '"]]]"', r'"\"]]"', r'"\\"', r'"\\\"]]"'])
def test_a_body_may_be_nested_so_deep_and_no_deeper(inner):
    assert read(nested(128, inner).encode()) == json.loads(nested(128, inner))
    assert "more than 128 deep" in refusal(nested(129, inner))


@pytest.mark.parametrize("filling", [r"\"", "\\\\", '""', "aa", "[]"])
def test_a_text_that_never_ends_takes_no_longer_than_one_that_does(filling):
    """Looked through once. From each quote on, it would take days."""
    assert "more than 128 deep" in refusal(DEEP + '"' + filling * SIZE)
