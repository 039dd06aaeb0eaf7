"""The engines that can serve a model, as import strings, so that naming one does not import the others."""

from importlib import import_module
from typing import Any

ENGINES = {
    "transformers": "server.engines.transformers.engine:TransformersEngine",
}


def engine_class(name: str) -> Any:
    """The class that serves under this name. Raises ValueError, which lists the known ones."""
    if name not in ENGINES:
        raise ValueError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(import_module(module), attribute)
