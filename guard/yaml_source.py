"""A YAML 1.2 file as plain data in which every key and value knows its place. Built from ruamel's parser events.

Building from events keeps the limits ours: no tag ever constructs anything, and an alias bomb is counted, not expanded.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from guard.errors import PolicyError, Problem

MAX_BYTES = 1 << 20
MAX_NODES = 10_000  # after alias expansion
MAX_DEPTH = 32

_TAGGED = (ScalarEvent, SequenceStartEvent, MappingStartEvent)
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
} | dict.fromkeys(("", "~", "null", "Null", "NULL"))

_REMEDIES = {
    "cannot start any token": "quote text that begins with a special character; indent with blanks",
    "mapping values are not allowed here": "quote text that holds a colon and a blank",
    "'}', but got ':'": "quote text that holds a colon and a blank",
}

Place = tuple[int, int]
"""Line and column, from 1."""
Path_ = tuple[str | int, ...]
"""The keys and indices that lead to a node."""


@dataclass(slots=True)
class Node:
    """A value with its place. `content` is a scalar, a tuple of nodes, or a dict of nodes."""

    content: Any
    place: Place
    size: int = 1  # nodes below and with it, aliases expanded
    keys: dict[str, Place] = field(default_factory=dict)
    raw: tuple[int, int] = (0, 0)  # a scalar's slice of the text
    style: str | None = None

    def plain(self) -> Any:
        """The value without places: dicts, tuples and scalars."""
        match self.content:
            case dict():
                return {key: child.plain() for key, child in self.content.items()}
            case tuple():
                return tuple(child.plain() for child in self.content)
            case _:
                return self.content


class Source:
    """One YAML document and the places in it."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self._text = text
        self._lines = text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        self._anchors: dict[str, Node] = {}
        self.root = self._parse()

    def problem(
        self,
        path: Path_,
        code: str,
        message: str,
        hint: str = "",
        *,
        at_key: bool = False,
        offset: int | None = None,
        severity: Literal["error", "warning"] = "error",
    ) -> Problem:
        """A problem at a node: its value, its key (`at_key`), or at an offset in its text."""
        return self._problem(self._place(path, offset, at_key=at_key), code, message, hint, severity)

    def written(self, path: Path_) -> str:
        """A scalar as it is written in the file."""
        node = self.root
        for step in path:
            node = node.content[step]
        return self._text[slice(*node.raw)]

    def _problem(
        self,
        place: Place,
        code: str,
        message: str,
        hint: str = "",
        severity: Literal["error", "warning"] = "error",
    ) -> Problem:
        line, col = place
        shown = self._lines[line - 1] if 0 < line <= len(self._lines) else ""
        return Problem(self.file, line, col, code, message, hint, shown, severity)

    def _place(self, path: Path_, offset: int | None, *, at_key: bool) -> Place:
        node, place = self.root, self.root.place
        for step in path:
            content = node.content
            if isinstance(content, dict) and step in content:
                place = node.keys[str(step)] if at_key else content[step].place
                node = content[step]
            elif isinstance(content, tuple) and isinstance(step, int) and step < len(content):
                node = content[step]
                place = node.place
            else:
                return node.place  # the path leads to something that is not there: its parent is the place
        return place if offset is None else self._place_in_scalar(node, offset)

    def _place_in_scalar(self, node: Node, offset: int) -> Place:
        """Where a scalar's character stands in the file. Folding and escapes change spaces and quotes only, so it
        is found by matching all other characters, in order."""
        start, end = node.raw
        at = self._text.find("\n", start) + 1 if node.style in {"|", ">"} else start + bool(node.style)
        value = str(node.content)
        if offset >= len(value.rstrip()):
            return self._place_of(at + len(self._text[at:end].rstrip().removesuffix(node.style or "")))
        for character in value[:offset]:
            if not character.isspace():
                at = self._text.find(character, at, end) + 1 or end
        return self._place_of(max(self._text.find(value[offset], at, end), at))

    def _place_of(self, index: int) -> Place:
        before = self._text[:index]
        return before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1

    # --- building

    def _fail(self, event: Event, code: str, message: str, hint: str = "") -> NoReturn:
        raise PolicyError([self._problem(_start(event), code, message, hint)])

    def _parse(self) -> Node:
        """Raises PolicyError."""
        try:
            # "safe" and not "rt", which marks the folds of a `>` scalar with BEL characters inside the value
            events = iter(YAML(typ="safe", pure=True).parse(self._text))
            documents = [
                self._node(next(events), events, 1) for e in events if isinstance(e, DocumentStartEvent)
            ]
        except MarkedYAMLError as error:
            raise PolicyError([self._malformed(error)]) from None
        except ReaderError as error:
            told = f"the character U+{error.character:04X} is not allowed in YAML"
            hint = "is it a text file, in UTF-8?"
            raise PolicyError([self._problem(self._place_of(error.position), "yaml", told, hint)]) from None
        except YAMLError as error:
            raise PolicyError([self._problem((1, 1), "yaml", str(error).splitlines()[0])]) from None
        except (ValueError, OverflowError, IndexError, AttributeError, TypeError) as error:
            # ruamel's scanner trips over some malformed escapes and directives
            raise PolicyError([self._problem((1, 1), "yaml", f"not YAML: {error}")]) from None
        if not documents:
            raise PolicyError(
                [self._problem((1, 1), "empty", "the file is empty", "start with apiVersion: interlock/v1")]
            )
        if len(documents) > 1:
            place = documents[1].place
            raise PolicyError(
                [self._problem(place, "yaml", "a second document begins here", "use one file for each")]
            )
        return documents[0]

    def _malformed(self, error: MarkedYAMLError) -> Problem:
        """The parser's words and place; and where that began which it could not finish."""
        mark, began = error.problem_mark or error.context_mark, error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        message = ": ".join(str(part).strip() for part in (error.context, error.problem) if part)
        hint = (
            f"that began in line {began.line + 1}, column {began.column + 1}"
            if began and began is not mark
            else ""
        )
        for sign, remedy in _REMEDIES.items():
            if sign in message:
                hint = "; ".join(part for part in (hint, remedy) if part)
        return self._problem(place, "yaml", message, hint)

    def _node(self, event: Event, events: Iterator[Event], depth: int) -> Node:
        if depth > MAX_DEPTH:
            self._fail(event, "too-deep", f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, AliasEvent):
            if event.anchor not in self._anchors:
                self._fail(
                    event, "yaml", f"'*{event.anchor}' stands before the end of its anchor, or has none"
                )
            return self._anchors[event.anchor]
        if isinstance(event, _TAGGED) and event.tag is not None:
            self._fail(event, "tag", f"tags are not allowed: {event.tag}", "write the plain value")
        match event:
            case ScalarEvent():
                node = self._scalar(event)
            case SequenceStartEvent():
                node = self._sequence(event, events, depth)
            case MappingStartEvent():
                node = self._mapping(event, events, depth)
            case _:
                self._fail(event, "yaml", "unexpected end of the document")
        if node.size > MAX_NODES:
            self._fail(event, "too-large", f"more than {MAX_NODES:,} values after alias expansion")
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _scalar(self, event: ScalarEvent) -> Node:
        style = event.style or None
        content = event.value if style else _plain_scalar(event.value)
        raw = (self._index(event.start_mark), self._index(event.end_mark))
        return Node(content, _start(event), raw=raw, style=style)

    def _index(self, mark: Any) -> int:
        return int(self._starts[min(mark.line, len(self._starts) - 1)] + mark.column)

    def _sequence(self, event: Event, events: Iterator[Event], depth: int) -> Node:
        node = Node((), _start(event))
        items = []
        while not isinstance(item := next(events), SequenceEndEvent):
            items.append(self._node(item, events, depth + 1))
            node.size += items[-1].size
        node.content = tuple(items)
        return node

    def _mapping(self, event: Event, events: Iterator[Event], depth: int) -> Node:
        node = Node({}, _start(event))
        while not isinstance(key := next(events), MappingEndEvent):
            if not isinstance(key, ScalarEvent) or key.tag is not None:
                self._fail(key, "yaml", "a key must be plain text")
            if key.value in node.content:
                first = node.keys[key.value][0]
                self._fail(
                    key,
                    "duplicate-key",
                    f"duplicate key '{key.value}'",
                    f"it was already given in line {first}",
                )
            node.keys[key.value] = _start(key)
            node.content[key.value] = self._node(next(events), events, depth + 1)
            node.size += 1 + node.content[key.value].size
        return node


def _start(event: Event) -> Place:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _plain_scalar(text: str) -> str | float | bool | None:
    """YAML 1.2's core schema without infinities: `off`, `no` and dates stay text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) <= 20 else text  # noqa: PLR2004  (no policy needs a longer number)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def read_source(path: Path) -> Source:
    """Read a file. Raises PolicyError."""
    file = str(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyError(
            [Problem(file, 1, 1, "unreadable", f"cannot read the file: {error.strerror}")]
        ) from error
    if len(data) > MAX_BYTES:
        raise PolicyError([Problem(file, 1, 1, "too-large", "the file is larger than 1 MiB")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        col = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise PolicyError(
            [Problem(file, line, col, "encoding", "the file is not UTF-8", "save it as UTF-8")]
        ) from None
    return source_from_text(text, file)


def source_from_text(text: str, file: str) -> Source:
    """The same from text at hand. Raises PolicyError."""
    return Source(file, text.replace("\r\n", "\n").replace("\r", "\n"))
