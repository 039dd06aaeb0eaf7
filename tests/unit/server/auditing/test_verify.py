"""Whatever is done to a log, verify says where it first shows, and what it is."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.audit import chained
from server.auditing.verify import verify
from tests.unit.server.auditing.logs import write_log


@pytest.fixture
def log(tmp_path):
    return write_log(tmp_path, 6)


def lines(log):
    return log.read_bytes().splitlines(keepends=True)


def verdict(log, changed):
    log.write_bytes(b"".join(changed))
    report = verify([log])
    return report.broken and (report.broken.kind, report.broken.place.line)


def test_what_was_written_is_whole_in_any_order_of_files(tmp_path):
    write_log(tmp_path, 20, max_bytes=2_000)
    report = verify(sorted(tmp_path.iterdir(), reverse=True))
    assert (report.broken, report.num_records, report.notes) == (None, 20, [])


def test_a_changed_record(log):
    at = lines(log)
    at[2] = at[2].replace(b"acme", b"evil")
    assert verdict(log, at) == ("changed", 3)


def test_a_changed_record_with_a_fitting_hash_shows_in_the_next(log):
    at = lines(log)
    record = {**orjson.loads(at[2]), "tenant": "evil"}
    at[2] = orjson.dumps(chained(record, record["prev"])) + b"\n"
    assert verdict(log, at) == ("changed", 4)


def test_a_key_that_is_there_twice(log):
    at = lines(log)
    at[2] = at[2].replace(b'{"v":1', b'{"action":"allow","v":1')
    assert verdict(log, at) == ("changed", 3)


def test_a_missing_record(log):
    at = lines(log)
    assert verdict(log, at[:2] + at[4:]) == ("missing", 3)
    log.write_bytes(b"".join(at[:2] + at[4:]))
    assert "2 records are missing" in verify([log]).broken.why


def test_a_missing_file(tmp_path):
    write_log(tmp_path, 9, max_bytes=1_000)
    files = sorted(tmp_path.iterdir())
    assert verify([*files[:1], *files[2:]]).broken.kind == "missing"


def test_records_in_another_order(log):
    at = lines(log)
    assert verdict(log, [at[0], at[2], at[1], *at[3:]]) == ("reordered", 2)
    assert verdict(log, [*at[:3], at[1], *at[3:]]) == ("reordered", 4)


def test_a_line_that_is_no_record(log):
    at = lines(log)
    assert verdict(log, [*at[:3], b"{\n", *at[3:]]) == ("torn", 4)
    assert verdict(log, [*at[:3], b"[]\n", *at[3:]]) == ("torn", 4)
    assert verdict(log, [*at, b'{"v":1,']) == ("torn", 7)


def test_records_that_are_cut_off_show_only_against_a_hash_kept_elsewhere(log):
    kept = verify([log]).last["hash"]
    at = lines(log)
    assert verdict(log, at[:-1]) is None
    assert verify([log], expected_hash=kept).broken.kind == "missing"
    log.write_bytes(b"".join(at))
    assert verify([log], expected_hash=kept).broken is None


def test_a_record_that_is_nested_too_deeply(log):
    at = lines(log)
    for depth in (900, 1_000, 1_020, 5_000):
        at[2] = b'{"prev":"p","seq":3,"hash":"h","x":' + b"[" * depth + b"]" * depth + b"}\n"
        assert verdict(log, at)[1] == 3


def test_an_empty_folder_and_an_empty_file(tmp_path):
    with pytest.raises(ValueError, match=r"no \*.jsonl files there"):
        verify([tmp_path])
    (tmp_path / "decisions.jsonl").touch()
    assert verify([tmp_path]).broken is None
    assert verify([tmp_path], expected_hash="sha256:0").broken.kind == "missing"


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_no_file_is_too_strange_to_be_read(tmp_path_factory, contents):
    path = tmp_path_factory.mktemp("log") / "x.jsonl"
    path.write_bytes(b"\n".join(contents))
    verify([path])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ),
    st.sampled_from(["hash", "prev", "seq", "torn", "ts"]),
)
def test_no_record_is_too_strange_to_be_read(tmp_path_factory, value, key):
    folder = tmp_path_factory.mktemp("log")
    path = write_log(folder, 2)
    at = lines(path)
    at[1] = json.dumps({**json.loads(at[1]), key: value}).encode(errors="replace") + b"\n"
    path.write_bytes(b"".join(at))
    verify([path])
