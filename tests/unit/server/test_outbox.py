"""A stream's buffer: bounded, in order, and given up only when the client takes nothing."""

import asyncio

import pytest

from server.api.outbox import MAX_BYTES, MAX_FRAMES, ClientStalledError, Outbox

pytestmark = pytest.mark.anyio
FOR_EVER = 1e6


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Client:
    """Takes what is sent, as long as its gate is open."""

    def __init__(self):
        self.reads = asyncio.Event()
        self.reads.set()
        self.got = []
        self.ended = False

    async def send(self, message):
        await self.reads.wait()
        self.got.append(message["body"])
        self.ended = not message["more_body"]


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_all_frames_arrive_in_order_and_the_last_ends_the_stream():
    client = Client()
    outbox = Outbox(client.send, FOR_EVER)
    sending = asyncio.create_task(outbox.run())
    for index in range(2000):
        await outbox.put(b"%d " % index)
    assert not client.ended
    await outbox.finish(b"end")
    await sending
    assert b"".join(client.got) == b"".join(b"%d " % index for index in range(2000)) + b"end"
    assert client.ended


@pytest.mark.parametrize("size", [1, 10_000])
async def test_it_is_bounded_and_goes_on_when_half_of_it_was_taken(size):
    client = Client()
    client.reads.clear()
    outbox = Outbox(client.send, FOR_EVER)
    sending = asyncio.create_task(outbox.run())
    count = 0

    async def fill():
        nonlocal count
        for _ in range(3 * MAX_FRAMES):
            await outbox.put(b"x" * size)
            count += 1

    filling = asyncio.create_task(fill())
    await settled()
    assert not filling.done()
    assert count < MAX_FRAMES
    assert count * size <= MAX_BYTES
    client.reads.set()
    await asyncio.wait_for(filling, 30)
    await outbox.finish(b"")
    await sending
    assert len(b"".join(client.got)) == 3 * MAX_FRAMES * size


async def test_a_client_that_takes_nothing_is_given_up_when_the_buffer_is_full_and_not_before():
    client = Client()
    client.reads.clear()
    outbox = Outbox(client.send, 0.05)
    sending = asyncio.create_task(outbox.run())
    for _ in range(MAX_FRAMES - 1):
        await outbox.put(b"x")
    await asyncio.sleep(0.2)  # longer than it may stay full
    with pytest.raises(ClientStalledError):
        await outbox.put(b"x")
    sending.cancel()


async def test_a_client_that_takes_nothing_of_the_end_is_given_up():
    client = Client()
    client.reads.clear()
    outbox = Outbox(client.send, 0.05)
    sending = asyncio.create_task(outbox.run())
    with pytest.raises(ClientStalledError):
        await outbox.finish(b"end")
    sending.cancel()


async def test_a_client_that_is_slow_at_the_end_gets_it_all():
    """Each part may take its time."""

    class Slow(Client):
        async def send(self, message):
            await asyncio.sleep(0.05)
            await super().send(message)

    client = Slow()
    outbox = Outbox(client.send, 1.0)
    sending = asyncio.create_task(outbox.run())
    for _ in range(20):
        await outbox.put(b"x" * 10_000)
    await outbox.finish(b"end")
    await sending
    assert len(b"".join(client.got)) == 200_003
