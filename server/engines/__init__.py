"""Engines by name, as import strings, so that naming one does not import the others."""

ENGINES = {
    "scripted": "server.engines.scripted:ScriptedEngine",
    "transformers": "server.engines.transformers.engine:TransformersEngine",
}
