"""What a reply must look like, and the grammar that says so, in the format of llguidance."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.tool_calls import CLOSE, OPEN

Schema = Mapping[str, Any]

MAX_BYTES = 64 * 1024
"""Of a grammar's source: the schemas of a request together."""

# On one line, with a space after a comma or a colon or without: a model can't pass its time with blanks.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_OPTIONS = "x-guidance"  # where llguidance looks for such options; a client's are not taken


class SourceError(ValueError):
    """A schema is too large to be looked at; the text is for the client."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a reply must look like: calls of tools, an answer, or whichever of both the model chooses."""

    answer: Schema | None = None  # JSON that keeps to it; None: any text
    tools: Mapping[str, Schema] | None = None  # that may be called, and the schema of their arguments
    must_call: bool = False  # a call instead of an answer
    at_most_one: bool = False  # call

    def source(self) -> str:
        """The grammar. Raises SourceError."""
        schemas = {} if self.answer is None else {"answer": self.answer}
        rules = [f"start: {' | '.join(self._alternatives())}"]
        if self.tools:
            rules += _call_rules(self.tools)
            schemas |= {f"arguments_{index}": schema for index, schema in enumerate(self.tools.values())}
        if self.answer is None and not self.must_call:
            rules += _FREE_TEXT
        lark = {"name": "reply", "lark_grammar": "\n".join(rules)}
        named = [{"name": name, "json_schema": _laid_out(schema)} for name, schema in schemas.items()]
        try:
            source = json.dumps({"grammars": [lark, *named]})
        except RecursionError as error:
            raise SourceError("the schema is nested too deeply") from error
        if len(source) > MAX_BYTES:
            raise SourceError(f"the schema is too large: at most {MAX_BYTES} bytes")
        return source

    def _alternatives(self) -> list[str]:
        more = "" if self.at_most_one else " (nl open call)*"
        is_free = self.answer is None and not self.must_call
        called = [f"{'called' if is_free else 'open'} call{more}"] if self.tools else []
        if self.must_call:
            return called
        return [*called, "FREE" if self.answer is None else "@answer"]


# Free text is anything without the tag that opens a call; `called` ends with the first such tag.
_FREE_TEXT = [
    f"FREE: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/",
    f"called[lazy]: /(?s:.*){OPEN}/",
]


def _call_rules(tools: Mapping[str, Schema]) -> list[str]:
    """A call as chat templates write it: name first, each on a line of its own if the model likes."""
    bodies = [f"body_{index}" for index in range(len(tools))]
    return [
        f"open: {json.dumps(OPEN)}",
        f"call: nl ({' | '.join(bodies)}) nl {json.dumps(CLOSE)}",
        'nl: "\\n"?',
        *(
            f"{body}: {json.dumps(_before_arguments(name))} @arguments_{index} {json.dumps('}')}"
            for index, (body, name) in enumerate(zip(bodies, tools, strict=True))
        ),
    ]


def _before_arguments(name: str) -> str:
    return f'{{"name": {json.dumps(name)}, "arguments": '


def _laid_out(schema: Schema) -> Schema:
    return {**schema, _OPTIONS: _LAYOUT}
