"""From a grammar's source to one that responses can be held to: tried where it can do no harm, then compiled, and kept."""

import asyncio
import os
import re
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from llguidance import LLTokenizer

from server.engines.base import EngineBusy, EngineError, EngineStopped, RequestRefused
from server.grammars import child
from server.grammars.matching import CompiledGrammar
from server.grammars.trial import Trial, TrialEndedError

_log = structlog.get_logger()
_MAX_KEPT = 64  # grammars
_MAX_WAITING = 32  # to be compiled; they take turns

Outcome = CompiledGrammar | str  # or why it is refused


class GrammarCompiler:
    """Over the vocabulary of one model. What was compiled or refused lately is answered at once."""

    def __init__(self, tokenizer: Any, *, num_ids: int, eos_token_ids: frozenset[int]) -> None:
        """`tokenizer` is a Hugging Face one; `num_ids` the width of the model's logits. Costs nothing before it is used."""
        self._tokenizer = tokenizer
        self._num_ids = num_ids
        self._eos_token_ids = sorted(eos_token_ids)
        self._vocabulary: LLTokenizer | None = None
        self._trial: Trial | None = None
        self._is_closed = False
        self._kept: OrderedDict[str, asyncio.Future[Outcome]] = OrderedDict()
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="interlock-grammar")
        self._matching = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="interlock-mask")

    async def compile(self, source: str) -> CompiledGrammar:
        """Raises RequestRefused with what is wrong with the grammar, EngineBusy, EngineStopped, and EngineError where it can't be tried."""
        kept = self._kept.get(source)
        if kept is None:
            if sum(not known.done() for known in self._kept.values()) >= _MAX_WAITING:
                raise EngineBusy(f"{_MAX_WAITING} schemas wait to be compiled")
            loop = asyncio.get_running_loop()
            kept = self._kept[source] = loop.run_in_executor(self._compiling, self._outcome, source)
            self._forget()
        self._kept.move_to_end(source)
        try:
            outcome = await asyncio.shield(kept)  # others may wait for the same
        except asyncio.CancelledError:
            if kept.cancelled():  # and not who asks
                raise EngineStopped("the engine was stopped") from None
            raise
        except EngineStopped:
            raise
        except Exception as error:
            self._kept.pop(source, None)  # the next one tries again
            raise EngineError(f"a schema could not be tried: {type(error).__name__}") from error
        if isinstance(outcome, str):
            raise RequestRefused(outcome)
        return outcome

    def close(self) -> None:
        """What is being compiled ends with an error."""
        self._is_closed = True
        self._compiling.shutdown(wait=False, cancel_futures=True)
        if self._trial is not None:
            self._trial.end()
        self._compiling.shutdown(wait=True)
        if self._trial is not None:
            self._trial.close()
        self._matching.shutdown(wait=True)

    def _forget(self) -> None:
        """Of the grammars that nobody waits for, those that were not asked for the longest."""
        for source in [source for source, kept in self._kept.items() if kept.done()]:
            if len(self._kept) <= _MAX_KEPT:
                return
            del self._kept[source]

    def _outcome(self, source: str) -> Outcome:
        """On the thread that compiles."""
        if self._trial is None or self._vocabulary is None:
            try:
                spec = self._tokenizer_spec()
                self._vocabulary = child.tokenizer(spec)
            except Exception as error:  # noqa: BLE001  # a tokenizer of another kind, in whatever way
                _log.warning("replies can't be held to schemas", cause=type(error).__name__)
                return "this model's tokenizer can't be constrained"
            self._trial = Trial(spec)
            if self._is_closed:  # meanwhile
                self._trial.end()
        try:
            error_text = self._trial.error(source)
        except TrialEndedError:
            if self._is_closed:
                raise EngineStopped("the engine was stopped") from None
            _log.warning("a schema was too complex to compile; the process that tried it begins anew")
            return _TOO_COMPLEX
        if error_text:
            return explained(error_text)
        matcher = child.compiled(self._vocabulary, source)
        return CompiledGrammar(matcher, self._num_ids, self._matching)

    def _tokenizer_spec(self) -> dict[str, Any]:
        """Raises where there is none."""
        if not self._eos_token_ids:
            raise ValueError("the model has no end-of-sequence token")
        backend = self._tokenizer.backend_tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        backend.no_padding()
        backend.no_truncation()
        return {
            "tokenizer": backend.to_str(),
            "num_ids": self._num_ids,
            "eos_token_ids": self._eos_token_ids,
        }


_TOO_COMPLEX = "the schema is too complex"
_EXPLAINED = (
    (r"Unimplemented keys", "the schema uses what can't be kept to: {quoted}"),
    (r"Unsatisfiable|NoExtension", "nothing satisfies the schema"),
    (r"recursion limit", "the schema is nested too deeply"),
    (r"not present in a registry|Pointer", "the schema has a $ref to something that is not in it"),
    (r"circular references", "the schema has a $ref to itself"),
    (r"regex parse error", "the schema has a pattern that can't be kept to"),
    (r"[Uu]nknown format", "the schema has a format that can't be kept to"),
    (r"oneOf", "the schema has a oneOf whose branches may overlap; use anyOf"),
    (r"disjoint", "the schema has patternProperties that may overlap"),
    (
        r"min/maxProperties",
        "the schema has minProperties or maxProperties beside properties that are optional",
    ),
    (r"fuel|too (big|large|many|complex)|Too many|[Ll]imit|max is|Unable to determine", _TOO_COMPLEX),
    (r"", "the schema is not valid, or can't be compiled"),
)  # the first that is found in llguidance's words, which may quote the schema
_KEYWORDS = frozenset(
    [
        "not",
        "if",
        "then",
        "else",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "propertyNames",
        "dependentRequired",
        "dependentSchemas",
        "unevaluatedItems",
        "unevaluatedProperties",
        "dependencies",
        "$dynamicRef",
        "$dynamicAnchor",
        "$recursiveRef",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "additionalItems",
    ]
)  # of JSON Schema, and not llguidance's: these may be named


def explained(error: str) -> str:
    """What a client is told of llguidance's error: nothing that its schema says but JSON Schema's own words."""
    text = next(text for found, text in _EXPLAINED if re.search(found, error))
    quoted = _KEYWORDS.intersection(re.findall(r'"([^"]*)"', error))
    return text.format(quoted=", ".join(sorted(quoted)) or "unknown keywords")
