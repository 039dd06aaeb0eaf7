"""The canonical layout of a policy file: keys in the schema's order, one way to indent. Comments stay where they belong.

Text in, text out. Block mappings are reordered by whole lines, so that a comment goes with the key below it; ruamel's
round trip then sets the indentation. Nothing is returned unless it means the same, to the digest, and keeps every comment.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver

from guard.errors import PolicyError, Problem
from guard.schema import DOCUMENTS
from guard.validate import models_in, read_document
from guard.yaml_source import Node, Source, source_from_text

WIDTH = 120
_MAX_PASSES = 3
_DASH = re.compile(r"( *)-( +)\S")

Model = type[BaseModel] | None
"""Whose keys a mapping has; None: free keys, which keep their order."""


def formatted(text: str, file: str) -> str:
    """The same policy in canonical layout. Raises PolicyError if it is not a valid one, or can't be laid out safely."""
    laid_out = _formatted(text, file)
    for _ in range(_MAX_PASSES):
        before, laid_out = laid_out, _formatted(laid_out, file)
        if before == laid_out:
            break
    return laid_out


def _formatted(text: str, file: str) -> str:
    """One pass. What one pass has laid out, the next may lay out more simply."""
    text = text.removeprefix("\ufeff")
    source = source_from_text(text, file)
    model = DOCUMENTS[read_document(source).kind]
    unix = text.replace("\r\n", "\n").replace("\r", "\n")
    clean = "\n".join(line.rstrip() for line in unix.split("\n")).lstrip("\n")
    for candidate in (clean, unix):  # blanks at the end of a line may belong to a block of text
        try:
            laid_out = _round_trip(_reordered(source_from_text(candidate, file), candidate, model), model)
            laid_out = _tidy_comments(source_from_text(laid_out, file), laid_out)
            after = source_from_text(laid_out, file)
        except (PolicyError, YAMLError, ValueError, TypeError, AttributeError, IndexError, KeyError):
            continue  # the file is a valid policy, so this is a form that ruamel's round trip doesn't take
        if _means(after) == _means(source) and _comments(after, laid_out) == _comments(source, unix):
            return laid_out
    message = "this file cannot be laid out without changing its meaning or losing a comment"
    hint = "it stays as it is; look for comments in unusual places, anchors, directives or escapes"
    raise PolicyError([Problem(file, 1, 1, "layout", message, hint)])


def _means(source: Source) -> str:
    """The document as canonical JSON, which is what the digest of a policy is made of."""
    return json.dumps(source.root.plain(), sort_keys=True)


def _comments(source: Source, text: str) -> Counter[str]:
    """Every comment: what follows a # outside the values."""
    lines = zip(text.split("\n"), _masked(source, text).split("\n"), strict=True)
    return Counter(line[at:].rstrip() for line, masked in lines if (at := _comment_at(masked)) >= 0)


def _comment_at(masked: str) -> int:
    found = re.search(r"(?:^|(?<=\s))#", masked)
    return found.start() if found else -1


def _masked(source: Source, text: str) -> str:
    """The text with an x for every character of a value, so that a # in it is not taken for a comment."""
    parts, at = [], 0
    for start, end in sorted(_scalars(source.root)):
        parts += [text[at:start], re.sub(r"[^\n]", "x", text[start:end])]
        at = end
    return "".join([*parts, text[at:]])


def _scalars(node: Node) -> Iterator[tuple[int, int]]:
    match node.content:
        case dict():
            for child in node.content.values():
                yield from _scalars(child)
        case tuple():
            for child in node.content:
                yield from _scalars(child)
        case _:
            yield node.raw


# --- whole lines, reordered


def _reordered(source: Source, text: str, model: Model) -> str:
    lines = text.split("\n")
    if any(getattr(event, "anchor", None) for event in YAML(typ="safe", pure=True).parse(text)):
        return "\n".join(lines)  # an alias must stay behind its anchor
    first = source.root.place[0] - 1
    return "\n".join([*lines[:first], *_laid(source.root, model, lines, first, len(lines))])


def _laid(node: Node, model: Model, lines: list[str], start: int, end: int) -> list[str]:
    """The lines from `start` to `end`, which the node begins, with the keys of its mappings in order."""
    line, col = node.place
    if not node.content or line - 1 != start or lines[start][col - 1 : col] in {"{", "["}:
        return lines[start:end]
    match node.content:
        case dict():
            return _laid_mapping(node, model, lines, start, end)
        case tuple():
            return _laid_sequence(node, model, lines, start, end)
        case _:
            return lines[start:end]


def _laid_mapping(node: Node, model: Model, lines: list[str], start: int, end: int) -> list[str]:
    col = node.place[1] - 1
    keys = list(node.content)
    if any(node.keys[key][1] - 1 != col for key in keys):
        return lines[start:end]
    tail = _lead(lines, end, start + 1, col)
    starts = [
        start if i == 0 else _lead(lines, node.keys[key][0] - 1, start + 1, col) for i, key in enumerate(keys)
    ]
    parts: dict[str, list[str]] = {}
    for key, first, last in zip(keys, starts, (*starts[1:], tail), strict=True):
        child = node.content[key]
        begins = max(first, min(child.place[0] - 1, last))
        below = _model_of(model, key)
        inner = (
            _laid(child, below, lines, begins, last) if begins > node.keys[key][0] - 1 else lines[begins:last]
        )
        parts[key] = [*lines[first:begins], *inner]
    return [line for key in _in_order(keys, model) for line in parts[key]] + lines[tail:end]


def _laid_sequence(node: Node, model: Model, lines: list[str], start: int, end: int) -> list[str]:
    dash = node.place[1] - 1
    starts = [
        start if i == 0 else _lead(lines, item.place[0] - 1, start + 1, dash)
        for i, item in enumerate(node.content)
    ]
    result: list[str] = []
    for item, first, last in zip(node.content, starts, (*starts[1:], end), strict=True):
        begins = item.place[0] - 1
        found = _DASH.match(lines[begins])
        if not isinstance(item.content, dict) or not found or len(found[0]) != item.place[1]:
            result += lines[first:last]
            continue
        bare = lines.copy()
        bare[begins] = " " * (item.place[1] - 1) + lines[begins][item.place[1] - 1 :]
        laid = _laid(item, model, bare, begins, last)
        while not laid[0].strip():
            del laid[0]
        laid[0] = " " * dash + "-" + laid[0][dash + 1 :]
        result += [*lines[first:begins], *laid]
    return result


def _lead(lines: list[str], at: int, lowest: int, col: int) -> int:
    """Where the blank lines and comments begin that stand right above a line, indented as it is."""
    while at > lowest and re.fullmatch(rf" {{{col}}}#.*|\s*", lines[at - 1]):
        at -= 1
    return at


def _in_order(keys: list[str], model: Model) -> list[str]:
    if model is None:
        return keys
    known = list(model.model_fields)
    return sorted(keys, key=known.index)


def _model_of(model: Model, key: str) -> Model:
    if model is None or key not in model.model_fields:
        return None
    return next(models_in(model.model_fields[key].annotation), None)


# --- one way to indent


class _AllText(VersionedResolver):
    """Every value is text, so that numbers and dates come out as they were written."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and value:
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


def _round_trip(text: str, model: Model) -> str:
    yaml = YAML(typ="rt", pure=True)
    yaml.Resolver = _AllText
    yaml.preserve_quotes = True
    yaml.width = WIDTH
    yaml.indent(mapping=2, sequence=4, offset=2)
    data = yaml.load(text)
    _reorder_flow(data, model)
    out = StringIO()
    yaml.dump(data, out)
    return re.sub(r"\n*\Z", "\n", out.getvalue(), count=1)


def _reorder_flow(value: Any, model: Model) -> None:
    """Mappings in braces have no lines to move; those without comments are reordered as data."""
    if isinstance(value, CommentedSeq):
        for item in value:
            _reorder_flow(item, model)
    if isinstance(value, CommentedMap):
        for key, below in value.items():
            _reorder_flow(below, _model_of(model, key))
        keys = _in_order(list(value), model)
        if value.fa.flow_style() and not value.ca.items and keys != list(value):
            for key in keys:
                value.move_to_end(key)


def _tidy_comments(source: Source, text: str) -> str:
    """Two blanks before a comment at the end of a line; one on a line of its own is not left of what it stands above."""
    tidy: list[str] = []
    below = 0  # the indentation of the next line that holds more than a comment
    for line, masked in zip(text.split("\n")[::-1], _masked(source, text).split("\n")[::-1], strict=True):
        at = _comment_at(masked)
        code = line[:at].rstrip() if at >= 0 else line
        if at >= 0:
            comment = line[at:].rstrip()
            tidy.append(f"{code}  {comment}" if code else " " * max(at, below) + comment)
        else:
            tidy.append(line)
        if code.strip():
            below = len(code) - len(code.lstrip())
    return "\n".join(tidy[::-1])
