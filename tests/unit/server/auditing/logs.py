"""Small records, and a log to put them in."""

from datetime import UTC, datetime, timedelta

from server.auditing.files import LogFiles, Rotation

START = datetime(2026, 11, 23, 3, 15, tzinfo=UTC)


class Now:
    """A clock that is set by hand."""

    def __init__(self):
        self.time = START

    def __call__(self):
        return self.time

    def go_on(self, **time):
        self.time += timedelta(**time)


def record(number=0, **changes):
    return {
        "v": 1,
        "ts": (START + timedelta(seconds=number)).isoformat().replace("+00:00", "Z"),
        "decision_id": f"{number:08x}",
        "request_id": "r",
        "tenant": "acme",
        "key_id": "",
        "endpoint": "chat",
        "model": "m",
        "policy": {"name": "p", "version": "1", "digest": "d"},
        "action": "allow",
        "phase": None,
        "token": None,
        "matches": [],
        "shadow": [],
        "errors": [],
        "scores": {},
        **changes,
    }


def open_log(folder, *, max_bytes=10_000_000, keep=0, now=None, **options):
    rotation = Rotation(max_bytes, timedelta(days=1), keep)
    return LogFiles(folder / "decisions.jsonl", rotation, now=now or Now(), **options)


def write_log(folder, count, first=0, **options):
    """Write records and close the log."""
    log = open_log(folder, **options)
    for number in range(first, first + count):
        log.append(record(number))
    log.close()
    return folder / "decisions.jsonl"
