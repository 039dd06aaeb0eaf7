"""The queue and its thread: nothing blocks the server, and a disk that is full, broken or stuck is seen and survived."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time

import orjson
import pytest

from server.auditing.verify import verify
from server.auditing.writer import AuditLog, LogSettings
from tests.unit.server.auditing.logs import record
from tests.waiting import until


class Disk:
    """Fails or blocks on demand."""

    def __init__(self):
        self.failing = False
        self.answers = threading.Event()
        self.answers.set()

    def write(self, fd, data):
        self.answers.wait()
        if self.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(fd, data)


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "decisions.jsonl"


@pytest.fixture
def opened(path, disk):
    with contextlib.ExitStack() as stack:

        def start(**settings):
            dropped = []
            log = AuditLog(
                path,
                LogSettings(**settings),
                on_dropped=dropped.append,
                write=disk.write,
            )
            log.dropped = dropped
            stack.callback(log.close)
            stack.callback(disk.answers.set)
            return log

        yield start


def recorded(path):
    return [orjson.loads(line)["decision_id"] for line in path.read_bytes().splitlines()]


def test_records_are_on_disk_when_the_log_is_closed(opened, path):
    log = opened()
    for number in range(100):
        log.write(record(number))
    log.close()
    assert recorded(path) == [f"{number:08x}" for number in range(100)]
    log.write(record(100))
    assert len(log.dropped) == 1


@pytest.mark.parametrize("on_full", ["closed", "open"])
def test_a_full_disk_is_told_and_nothing_is_lost_once_there_is_room(opened, path, disk, on_full):
    log = opened(on_full=on_full)
    disk.failing = True
    log.write(record(0))
    log.write(record(1))
    until(lambda: log.trouble is not None)
    assert log.trouble == "No space left on device"
    assert log.refuses == (on_full == "closed")
    disk.failing = False
    until(lambda: log.queued == 0)
    assert (log.trouble, log.refuses, log.dropped) == (None, False, [])
    assert recorded(path) == ["00000000", "00000001"]


def test_a_stuck_disk_holds_nobody_up_and_is_told(opened, disk):
    log = opened(stalled_s=0.05)
    disk.answers.clear()
    log.write(record(0))  # returns, although the disk does not
    until(lambda: log.trouble == "the disk does not answer")
    assert log.refuses
    disk.answers.set()
    until(lambda: log.trouble is None)


def test_closing_does_not_wait_for_ever_for_a_stuck_disk_and_counts_what_is_lost(opened, disk):
    log = opened()
    disk.answers.clear()
    for number in range(3):
        log.write(record(number))
    log.close(timeout_s=0.05)
    assert len(log.dropped) == 3


def test_closing_on_a_full_disk_counts_what_is_lost(opened, disk):
    log = opened()
    disk.failing = True
    for number in range(3):
        log.write(record(number))
    log.close()
    assert len(log.dropped) == 3


def test_open_drops_allowed_replies_first(opened, disk):
    log = opened(on_full="open", max_queued=2)
    disk.answers.clear()
    for number in range(4):
        log.write(record(number))
    for number in range(4, 8):
        log.write(record(number, action="block"))
    assert [lost["decision_id"] for lost in log.dropped] == ["00000002", "00000003", "00000006", "00000007"]
    assert (log.trouble, log.refuses) == ("the queue is full", False)


def test_closed_refuses_new_requests_and_keeps_those_in_flight(opened, path, disk):
    log = opened(on_full="closed", max_queued=2)
    disk.answers.clear()
    for number in range(5):
        log.write(record(number))
    assert (log.trouble, log.refuses, log.dropped) == ("the queue is full", True, [])
    disk.answers.set()
    log.close()
    assert len(recorded(path)) == 5


def test_a_record_that_json_can_t_hold_does_not_stop_the_others(opened, path):
    log = opened()
    log.write(record(0, tenant=object()))
    log.write(record(1))
    log.close()
    assert recorded(path) == ["00000001"]
    assert len(log.dropped) == 1
    assert verify([path]).broken is None


@pytest.mark.parametrize("fsync_s", [0, 0.05])
def test_a_disk_that_can_t_sync_is_told_and_tried_again(opened, monkeypatch, fsync_s):
    syncs, failing = [], True

    def sync(fd):
        syncs.append(fd)
        if failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("server.auditing.files.os.fdatasync", sync)
    log = opened(fsync_s=fsync_s)
    log.write(record(0))
    until(lambda: log.trouble == "Input/output error")
    failing = False
    until(lambda: log.trouble is None)
    count = len(syncs)
    time.sleep(0.2)
    assert len(syncs) == count  # an idle log is not synced again


WRITE_UNTIL_KILLED = """
import sys
from pathlib import Path
from server.auditing.files import Rotation
from server.auditing.writer import AuditLog, LogSettings
from tests.unit.server.auditing.logs import record
from tests.waiting import until

log = AuditLog(Path(sys.argv[1]), LogSettings(fsync_s=60, rotation=Rotation(max_bytes=200_000)))
print("ready", flush=True)
number = 0
while True:
    if log.queued < 100:
        log.write(record(number, filler="x" * (number % 5000)))
        number += 1
        if number % 100 == 0:
            print(number, flush=True)
"""


def test_a_server_that_is_killed_while_writing_loses_at_most_the_unfinished_line(path):
    """Killed five times over; each start goes on where the one before was cut off."""
    for run in range(5):
        process = subprocess.Popen(  # noqa: S603  # our own command
            [sys.executable, "-c", WRITE_UNTIL_KILLED, str(path)], stdout=subprocess.PIPE
        )
        with process:
            assert process.stdout.readline() == b"ready\n"
            for _ in range(2 + run):
                assert process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        report = verify([path.parent])
        if report.broken:  # nothing but the line that was being written
            assert report.broken.kind == "torn"
            assert report.broken.place.line == report.broken.place.file.read_bytes().count(b"\n") + 1
    log = AuditLog(path)
    log.write(record())
    log.close()
    report = verify([path.parent])
    assert report.broken is None
    assert report.num_records > 100
