"""The files of the log: restarts, rotation, unfinished lines, full disks, and what others do to the files meanwhile."""

import errno
import os
import stat

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.auditing.errors import AuditError
from server.auditing.files import rotated_files
from server.auditing.verify import verify
from tests.unit.server.auditing.logs import Now, open_log, record, write_log


def numbers(path):
    return [orjson.loads(line)["seq"] for line in path.read_bytes().splitlines()]


def whole(folder):
    report = verify([folder])
    assert report.broken is None
    return report


def test_a_restart_goes_on_from_the_last_record(tmp_path):
    path = write_log(tmp_path, 2)
    write_log(tmp_path, 2)
    assert numbers(path) == [1, 2, 3, 4]
    assert whole(tmp_path).num_records == 4


def test_files_are_for_their_owner_only(tmp_path):
    path = tmp_path / "new" / "decisions.jsonl"
    path.parent.mkdir()
    path.touch(0o644)
    write_log(path.parent, 3, max_bytes=100)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_rotation_by_size_keeps_the_chain_and_the_newest_files(tmp_path):
    now = Now()
    log = open_log(tmp_path, max_bytes=2_000, keep=2, now=now)
    for number in range(30):
        log.append(record(number))
        now.go_on(seconds=1)
    files = [*rotated_files(tmp_path / "decisions.jsonl"), tmp_path / "decisions.jsonl"]
    assert [file.name for file in files[:2]] == sorted(file.name for file in files[:2])
    assert len(files) == len(list(tmp_path.iterdir())) == 3
    assert all(file.stat().st_size <= 2_000 for file in files)
    report = whole(tmp_path)
    assert report.last["seq"] == 30
    assert "are not in these files" in report.notes[0]


def test_rotation_by_age_names_the_file_by_the_time(tmp_path):
    now = Now()
    log = open_log(tmp_path, now=now)
    log.append(record())
    now.go_on(days=1)
    log.append(record())
    assert [file.name for file in rotated_files(tmp_path / "decisions.jsonl")] == [
        "decisions-20261124T031500Z-0001.jsonl"
    ]
    assert whole(tmp_path).num_records == 2


def test_two_rotations_in_a_second_don_t_overwrite_each_other(tmp_path):
    write_log(tmp_path, 5, max_bytes=1)
    assert [file.stem[-4:] for file in rotated_files(tmp_path / "decisions.jsonl")] == [
        "0001",
        "0002",
        "0003",
        "0004",
    ]
    assert whole(tmp_path).num_records == 5


def test_a_clock_that_is_set_back_does_not_change_the_order_of_files(tmp_path):
    now = Now()
    log = open_log(tmp_path, max_bytes=1, keep=2, now=now)
    for number in range(6):
        log.append(record(number))
        now.go_on(hours=-1)
    assert [numbers(file) for file in rotated_files(tmp_path / "decisions.jsonl")] == [[4], [5]]


def test_a_restart_after_a_rotation_finds_the_last_record_in_the_rotated_file(tmp_path):
    path = write_log(tmp_path, 3)
    path.rename(tmp_path / "decisions-20261123T031500Z-0001.jsonl")
    write_log(tmp_path, 1)
    assert whole(tmp_path).num_records == 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(st.data())
def test_wherever_a_write_is_cut_the_next_start_goes_on(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("log")
    for _ in range(data.draw(st.integers(1, 3))):
        path = write_log(folder, 2)
        lines = path.read_bytes().splitlines(keepends=True)
        last_line_start = sum(map(len, lines[:-1]))
        os.truncate(path, data.draw(st.integers(last_line_start, path.stat().st_size)))
    write_log(folder, 1)
    whole(folder)


def test_an_unfinished_line_is_kept_and_the_next_record_vouches_for_it(tmp_path):
    path = write_log(tmp_path, 2)
    os.truncate(path, path.stat().st_size - 5)
    report = verify([path])
    assert str(report.broken).startswith(f"{path}:2: torn: ")
    write_log(tmp_path, 1)
    report = whole(tmp_path)
    assert report.notes[0].startswith(f"{path}:2: torn: ")
    assert report.num_records == 2
    path.write_bytes(
        path.read_bytes().replace(b"acme", b"evil", 2)
    )  # the second one lies in the unfinished line
    assert verify([path]).broken is not None


class Disk:
    """Takes `room` bytes in all, then is full."""

    def __init__(self, room):
        self.room = room

    def write(self, fd, data):
        taken = os.write(fd, data[: self.room]) if self.room else 0
        self.room -= taken
        if taken == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return taken


def test_a_full_disk_leaves_no_part_of_a_record_and_loses_none(tmp_path):
    disk = Disk(1_000)
    log = open_log(tmp_path, write=disk.write)
    failed_at = None
    for number in range(10):
        try:
            log.append(record(number))
        except OSError:
            failed_at = number
            break
    assert failed_at
    assert numbers(tmp_path / "decisions.jsonl") == list(range(1, failed_at + 1))
    disk.room = 100_000
    log.append(record(failed_at))
    assert whole(tmp_path).num_records == failed_at + 1


def test_the_log_goes_on_where_its_file_is_removed_under_it(tmp_path):
    log = open_log(tmp_path)
    log.append(record(0))
    (tmp_path / "decisions.jsonl").unlink()
    log.append(record(1))
    assert numbers(tmp_path / "decisions.jsonl") == [2]
    assert "the 1 before it are not in these files" in whole(tmp_path).notes[0]


def test_the_log_goes_on_where_its_file_is_moved_by_others(tmp_path):
    log = open_log(tmp_path)
    log.append(record(0))
    (tmp_path / "decisions.jsonl").rename(tmp_path / "moved.jsonl")
    log.append(record(1))
    assert whole(tmp_path).num_records == 2


@pytest.mark.parametrize("left", [0, 100])
def test_a_file_that_loses_its_beginning_under_the_log_says_how_much_is_not_there(tmp_path, left):
    log = open_log(tmp_path)
    log.append(record(0))
    log.append(record(1))
    os.truncate(tmp_path / "decisions.jsonl", left)
    log.append(record(2))
    log.append(record(3))
    report = whole(tmp_path)
    assert (report.first["seq"], report.last["seq"]) == (3, 4)
    assert "the 2 before it are not in these files" in report.notes[0]


def test_a_file_that_loses_its_end_under_the_log_is_broken(tmp_path):
    log = open_log(tmp_path)
    for number in range(3):
        log.append(record(number))
    path = tmp_path / "decisions.jsonl"
    os.truncate(path, len(path.read_bytes().splitlines(keepends=True)[0]) + 50)
    log.append(record(3))
    report = verify([tmp_path])
    assert (report.broken.kind, report.broken.place.line) == ("missing", 3)


def test_one_file_has_one_writer(tmp_path):
    log = open_log(tmp_path)
    with pytest.raises(AuditError, match="another process writes it"):
        open_log(tmp_path)
    log.close()
    open_log(tmp_path).close()


def refuse(*_):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_file_that_may_not_be_written_is_told_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("server.auditing.files.os.open", refuse)
    with pytest.raises(
        AuditError, match="Permission denied; name a file that this user may write with --audit"
    ):
        open_log(tmp_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: path.write_text('{"v": 1}\n'), "move the file away"),
        (lambda path: path.symlink_to("/nowhere/at/all"), "No such file or directory; name a file"),
    ],
)
def test_a_path_that_can_t_be_a_log_is_told_at_the_start(tmp_path, make, said):
    make(tmp_path / "decisions.jsonl")
    with pytest.raises(AuditError, match=said):
        open_log(tmp_path)


def test_a_rotation_that_fails_does_not_lose_records(tmp_path, monkeypatch):
    log = open_log(tmp_path, max_bytes=1)
    monkeypatch.setattr("pathlib.Path.rename", refuse)
    for number in range(3):
        log.append(record(number))
    assert numbers(tmp_path / "decisions.jsonl") == [1, 2, 3]
