"""The index mirrors the folder, whatever rotation does, and questions are answered from the log itself."""

from datetime import UTC, datetime, timedelta

import pytest

from server.auditing import index
from server.auditing.query import Query, ScoreRange, find, parse_bound, parse_time
from tests.unit.server.auditing.logs import START, open_log, record, write_log


def match(rule):
    return {"rule": rule, "mode": "enforce", "action": "block", "phase": "prompt", "token": 3}


BLOCKED = record(
    1,
    action="block",
    phase="prompt",
    token=3,
    matches=[match("harm-prompt")],
    scores={
        "prompt": {"harm": {"n": 4, "max": 0.95}},
        "response": {"harm": {"n": 2, "max": 0.1}, "x": {"n": 0}},
    },
)
SHADOWED = record(2, tenant="beta", model="other", shadow=[match("deception-run")])


@pytest.fixture
def folder(tmp_path):
    log = open_log(tmp_path)
    for one in (record(0), BLOCKED, SHADOWED):
        log.append(one)
    log.close()
    return tmp_path


@pytest.fixture
def connection(folder):
    with index.opened(folder / "index.sqlite") as connection:
        index.update(connection, folder)
        yield connection


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(), [0, 1, 2]),
        (Query(limit=2), [1, 2]),
        (Query(since=START + timedelta(seconds=1)), [1, 2]),
        (Query(until=START + timedelta(seconds=1)), [0]),
        (Query(actions=["block", "steer"]), [1]),
        (Query(rule="harm-prompt"), [1]),
        (Query(rule="deception-*"), [2]),
        (Query(tenant="beta"), [2]),
        (Query(model="o*"), [2]),
        (Query(decision="00000001"), [1]),
        (Query(decision="0000000"), [0, 1, 2]),
        (Query(scores=[ScoreRange("harm", low=0.95)]), [1]),
        (Query(scores=[ScoreRange("harm", low=0.96)]), []),
        (Query(scores=[ScoreRange("harm", phase="response", low=0.5)]), []),
        (Query(scores=[ScoreRange("harm", phase="response", high=0.1)]), [1]),
        (Query(actions=["block"], tenant="beta"), []),
        (Query(tenant="x' OR 1 --"), []),
    ],
)
def test_questions(connection, folder, query, expected):
    found = [int(one["decision_id"], 16) for one in find(connection, folder, query)]
    assert found == expected


def test_records_come_back_as_they_were_written(connection, folder):
    (found,) = find(connection, folder, Query(decision="00000001"))
    assert found.items() >= BLOCKED.items()


def test_only_what_is_new_is_read(connection, folder):
    assert index.update(connection, folder) == index.Indexed()
    write_log(folder, 2, first=3)
    assert index.update(connection, folder).added == 2


def test_rotation_renames_and_removes_without_confusing_the_index(tmp_path):
    with index.opened(tmp_path / "index.sqlite") as connection:
        for first in range(0, 30, 3):
            write_log(tmp_path, 3, first=first, max_bytes=1_500, keep=3)
            index.update(connection, tmp_path)
            here = sum(file.read_bytes().count(b"\n") for file in tmp_path.glob("*.jsonl"))
            found = [int(one["decision_id"], 16) for one in find(connection, tmp_path, Query())]
            assert found == list(range(first + 3 - here, first + 3))
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (here,)


def test_an_unfinished_line_waits_for_its_end(tmp_path):
    path = write_log(tmp_path, 2)
    whole = path.read_bytes()
    with index.opened(tmp_path / "index.sqlite") as connection:
        path.write_bytes(whole[:-10])
        assert index.update(connection, tmp_path).added == 1
        path.write_bytes(whole)
        assert index.update(connection, tmp_path).added == 1


def test_lines_that_are_no_records_are_skipped(tmp_path):
    path = write_log(tmp_path, 1)
    with path.open("ab") as file:
        file.write(b'garbage\n{"hash": "h", "seq": 2, "policy": 3}\n')
    (tmp_path / "other.jsonl").write_text("not a log\n")
    with index.opened(tmp_path / "index.sqlite") as connection:
        assert index.update(connection, tmp_path) == index.Indexed(added=1, skipped=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": {"a": 1}},
        {"tenant": None},
        {"token": 2**63},
        {"matches": [match("r") | {"rule": ["r"]}]},
        {"matches": 3},
        {"scores": {"prompt": {"harm": {"max": "high"}}}},
        {"scores": []},
        {"policy": None},
    ],
)
def test_a_record_of_another_form_is_skipped_whole_and_the_others_found(tmp_path, changes):
    log = open_log(tmp_path)
    for one in (record(0), record(1, **changes), BLOCKED):
        log.append(one)
    with index.opened(tmp_path / "index.sqlite") as connection:
        assert index.update(connection, tmp_path) == index.Indexed(added=2, skipped=1)
        assert connection.execute("SELECT count(*) FROM matches").fetchone() == (1,)


def test_a_truncated_file_is_read_anew(connection, folder):
    path = folder / "decisions.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    index.update(connection, folder)
    assert len(list(find(connection, folder, Query()))) == 1


def test_the_index_is_for_its_owner_only_and_rebuilt_when_its_form_is_another(folder):
    database = folder / "index.sqlite"
    with index.opened(database) as connection:
        index.update(connection, folder)
        connection.execute("PRAGMA user_version = 99")
    assert database.stat().st_mode & 0o777 == 0o600
    with index.opened(database) as connection:
        assert index.update(connection, folder).added == 3


def test_times_and_bounds_as_people_write_them():
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    assert parse_time("2h", now) == now - timedelta(hours=2)
    assert parse_time("2026-11-22", now) == datetime(2026, 11, 22, tzinfo=UTC)
    assert parse_time("2026-11-22T17:35:00+01:00", now).astimezone(UTC).hour == 16
    assert parse_bound("harm=0.8") == ("harm", "*", 0.8)
    assert parse_bound("prompt.harm=-1e-3") == ("harm", "prompt", -0.001)
    for wrong in ("", "2 hours", "tomorrow", "h", "99999999999999d"):
        with pytest.raises(ValueError, match="is no time; write"):
            parse_time(wrong, now)
    for wrong in ("", "harm", "harm=", "harm=high", "=1", "reply.harm=1", "harm=nan"):
        with pytest.raises(ValueError, match="is no score; write"):
            parse_bound(wrong)
