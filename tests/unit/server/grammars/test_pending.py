"""One tenant's schemas do not fill the queue of all."""

from contextlib import ExitStack

import pytest

from server.engines.base import EngineBusy
from server.grammars.pending import PendingSchemas


def test_a_tenant_may_have_so_many_and_another_is_not_held_up():
    pending = PendingSchemas(2)
    with ExitStack() as held:
        for source in ("a", "b", "b"):
            held.enter_context(pending.one("acme", source))
        with pytest.raises(EngineBusy), pending.one("acme", "c"):
            pass
        with pending.one("clinic", "c"):
            pass
    with pending.one("acme", "c"):
        pass
    assert pending._by_tenant == {}


def test_what_fails_gives_its_place_back():
    pending = PendingSchemas(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="wrong"), pending.one("acme", "a"):
            raise ValueError("wrong")
    assert pending._by_tenant == {}
