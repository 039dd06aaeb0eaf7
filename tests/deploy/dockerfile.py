"""Reads a Dockerfile: its stages, and of each its instructions."""

import json
import re
import shlex
from pathlib import Path


class Stage:
    def __init__(self, base: str) -> None:
        self.base = base
        self.instructions: list[tuple[str, str]] = []

    def all(self, name: str) -> list[str]:
        return [rest for found, rest in self.instructions if found == name]

    def the(self, name: str) -> str:
        return self.all(name)[-1]

    @property
    def environment(self) -> dict[str, str]:
        pairs = (part.partition("=") for rest in self.all("ENV") for part in shlex.split(rest))
        return {name: value for name, _, value in pairs}

    @property
    def command(self) -> list[str]:
        return [*json.loads(self.the("ENTRYPOINT")), *json.loads(self.the("CMD"))]

    @property
    def copies(self) -> list[tuple[list[str], str]]:
        """Sources and destination of what comes from the build context."""
        split = (rest.split() for rest in self.all("COPY") if not rest.startswith("--from"))
        return [(parts[:-1], parts[-1]) for parts in split]


def stages(path: Path) -> list[Stage]:
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[Stage] = []
    arguments: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "ARG":
            key, _, value = rest.partition("=")
            arguments[f"${{{key}}}"] = value
        elif name == "FROM":
            image = rest.split()[0]
            found.append(Stage(arguments.get(image, image)))
        else:
            found[-1].instructions.append((name, rest.strip()))
    return found
