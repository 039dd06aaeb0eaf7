"""What `interlock serve` is told reaches the settings."""

import inspect

import pytest

from server import serve_cli
from server.config import ServerConfig


class _CaughtError(Exception):
    pass


def test_every_option_reaches_the_settings_under_its_own_name(monkeypatch):
    """An option that is forgotten on the way would be accepted and do nothing."""
    caught = {}

    def catch(given, *, no_audit):
        caught.update(given)
        raise _CaughtError

    monkeypatch.setattr(serve_cli, "_config", catch)
    options = set(inspect.signature(serve_cli.serve).parameters) - {"no_audit", "verbose"}
    with pytest.raises(_CaughtError):
        serve_cli.serve(**{name: name for name in options})
    assert caught == {name: name for name in options}
    assert options <= set(ServerConfig.model_fields)
