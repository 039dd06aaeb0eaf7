"""What systemd is told, on a socket as systemd makes one."""

import asyncio
import errno
import os
import socket

import pytest

from server.service_manager import ServiceManager


@pytest.fixture
def heard(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "notify"))
        server.settimeout(60)
        yield server


def manager(heard, **more):
    return ServiceManager({"NOTIFY_SOCKET": heard.getsockname(), **more})


def test_a_state_is_told_in_one_message(heard):
    manager(heard).tell("READY=1")
    assert heard.recv(100) == b"READY=1"


def test_a_socket_without_a_file_is_found():
    name = "interlock-test-of-abstract-sockets"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind("\0" + name)
        server.settimeout(60)
        ServiceManager({"NOTIFY_SOCKET": "@" + name}).tell("STOPPING=1")
        assert server.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere/notify"}])
def test_nobody_who_listens_is_no_reason_to_fail(environment):
    ServiceManager(environment).tell("READY=1")


def test_a_process_without_file_descriptors_goes_on(heard, monkeypatch):
    def none_left(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", none_left)
    manager(heard).tell("STOPPING=1")


def test_the_watchdog_is_fed_until_the_server_is_hopeless(heard):
    alive = [True, True, False, False]

    def is_alive():
        if not alive:
            raise asyncio.CancelledError
        return alive.pop(0)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(manager(heard, WATCHDOG_USEC="3000").keep_alive(is_alive))
    assert [heard.recv(100), heard.recv(100)] == [b"WATCHDOG=1"] * 2
    heard.settimeout(0)
    with pytest.raises(BlockingIOError):
        heard.recv(100)


def test_without_a_watchdog_there_is_nothing_to_feed(heard):
    asyncio.run(manager(heard).keep_alive(lambda: True))
