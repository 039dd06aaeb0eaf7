"""A minute of the soak in `bench/soak.py`: enough to find what every request leaves behind, not what one in a thousand does."""

import argparse
import asyncio
from dataclasses import replace

import pytest

from bench.soak import Sample, Server, complaints, soak

IDLE = Sample(
    minutes=0, requests=0, rss_mib=400.0, files=11, threads=8, tasks=11, kv_ratio=0.0, places=0, waiting=0
)


def test_a_server_that_was_used_hard_holds_what_it_held_before(tmp_path):
    server = Server(tmp_path)
    options = argparse.Namespace(clients=6, seed=0, minutes=0.5, round_s=7.0)
    with server.running() as process:
        samples, done = asyncio.run(soak(server, process.pid, options))
        assert process.poll() is None
    assert complaints(samples, most_growth=3000) == []  # 50 MiB a minute: it has hardly warmed up
    assert not [name for name in done if name.startswith("unexpected")]
    assert sum(done.values()) > 20
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"files": 12}, "files"),
        ({"tasks": 12}, "tasks"),
        ({"places": 1}, "places"),
        ({"waiting": 1}, "waiting"),
        ({"kv_ratio": 0.01}, "kv_ratio"),
    ],
)
def test_what_does_not_come_back_is_told(change, told):
    samples = [replace(IDLE, minutes=minute) for minute in range(9)]
    samples.append(replace(IDLE, minutes=9, **change))
    found = complaints(samples, most_growth=30)
    assert [complaint.split(":")[0] for complaint in found] == ([told] if told else [])


@pytest.mark.parametrize(
    ("mib_per_minute", "grows"), [(0.0, False), (0.2, False), (5.0, True), (-5.0, False)]
)
def test_memory_that_grows_is_told(mib_per_minute, grows):
    noise = (0.3, -0.2, 0.1, -0.3, 0.2)
    samples = [
        replace(IDLE, minutes=minute, rss_mib=400 + mib_per_minute * minute + noise[minute % 5])
        for minute in range(20)
    ]
    assert bool(complaints(samples, most_growth=30)) == grows
